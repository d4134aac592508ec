"""The same rows by actors on Ray, on a cluster of this machine; in an environment that has Ray (`make test-ray`)."""

import os
import signal
from pathlib import Path

import pytest

from tests.annotate.kill_many import command_of, descendants_of
from tests.annotate.made import label, request_of, rows_of, same_rows, save_tars
from visgraft.annotate import on_ray
from visgraft.annotate.labelling import Labelled
from visgraft.annotate.progress import Progress
from visgraft.errors import DataError, VisgraftError

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def cluster() -> object:
    """A cluster with several logical CPUs, whatever this machine has."""
    paths = [path for path in (os.environ.get("PYTHONPATH"), str(Path(__file__).parents[2])) if path]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)  # for its workers
    ray.init(num_cpus=4, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()


def test_actors_give_the_rows_of_one_process_and_one_that_is_lost_costs_nothing(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label(request_of(model, photos, tmp_path / "alone", rows_per_unit=1))
    standing = label(request_of(model, photos, tmp_path / "ray", rows_per_unit=1), engine="ray", workers=2)
    assert (standing.images, standing.is_finished) == (8, True)
    assert same_rows(rows_of(tmp_path / "ray"), rows_of(tmp_path / "alone"))
    killed: list[int] = []
    said: list[str] = []
    done = Progress.unit_done

    def kill_once(self: Progress, labelled: Labelled, **settings: object) -> None:
        done(self, labelled, **settings)  # type: ignore[arg-type]
        if not killed:
            killed.append(next(pid for pid in descendants_of(os.getpid()) if "ray::Labelling" in command_of(pid)))
            os.kill(killed[0], signal.SIGKILL)

    monkeypatch.setattr(Progress, "unit_done", kill_once)
    monkeypatch.setattr(Progress, "say", lambda _, text: said.append(text))
    standing = label(request_of(model, photos, tmp_path / "lost", rows_per_unit=1), engine="ray", workers=2)
    assert killed
    assert standing.is_finished
    assert same_rows(rows_of(tmp_path / "lost"), rows_of(tmp_path / "alone"))
    assert any("an actor was lost" in text for text in said), said
    assert not (tmp_path / "lost" / "claims").exists()


def test_a_shard_that_is_damaged_is_said_at_the_end(model: Path, photos: Path, tmp_path: Path) -> None:
    pattern = save_tars(tmp_path / "tars", photos, number=6, per_tar=2)
    (tmp_path / "tars" / "part-001.tar").write_bytes(b"damaged" * 200)
    with pytest.raises(DataError, match=r"1 of 3 shards could not be read, all else is done; the first is part-001"):
        label(request_of(model, pattern, tmp_path / "out"), engine="ray", workers=1)
    assert len(rows_of(tmp_path / "out")) == 4 * 2


def test_actors_that_are_lost_again_and_again_end_the_call(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dying(on_ray.Labelling):
        def label(self, unit: object) -> Labelled:
            os._exit(1)

    monkeypatch.setattr(on_ray, "Labelling", Dying)
    with pytest.raises(VisgraftError, match="3 actors were lost one behind the other"):
        label(request_of(model, photos, tmp_path / "out"), engine="ray", workers=1)
