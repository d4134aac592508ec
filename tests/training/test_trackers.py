"""Trackers get the numbers of metrics.jsonl and the recipe; a wrong or missing one is a clear error."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from accelerate import tracking
from accelerate.tracking import GeneralTracker

from tests.training.tiny import tiny_recipe
from visgraft.errors import ConfigError
from visgraft.runs import Run
from visgraft.training.interrupt import Interrupted
from visgraft.training.loop import train
from visgraft.training.progress import TrainProgress
from visgraft.training.trackers import check_trackers


class Watched(GeneralTracker):
    """A tracker that is not of accelerate."""

    name = "watched"
    requires_logging_directory = True
    made: list["Watched"] = []  # noqa: RUF012

    def __init__(self, run_name: str, logging_dir: Path) -> None:
        super().__init__()
        self.run_name, self.logging_dir = run_name, logging_dir
        self.settings: dict[str, Any] = {}
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.is_finished = False
        self.made.append(self)

    @property
    def tracker(self) -> "Watched":
        return self

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.settings = values

    def log(self, values: dict[str, float], step: int | None = None, **_: Any) -> None:
        assert step is not None and not self.is_finished
        self.logged.append((step, values))

    def finish(self) -> None:
        self.is_finished = True


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Watched]]:
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "watched", Watched)
    Watched.made.clear()
    yield Watched.made


def test_a_tracker_gets_every_number_and_the_recipe(
    tmp_path: Path, quiet: TrainProgress, watched: list[Watched]
) -> None:
    folder = train(tiny_recipe(tmp_path, max_steps=3, report_to=["watched"]), progress=quiet)
    [tracker] = watched
    assert tracker.is_finished
    assert (tracker.run_name, tracker.logging_dir) == (folder.name, folder / "trackers")
    assert tracker.settings["train.lora.r"] == 2
    assert tracker.settings["run"] == str(folder)
    records = Run.open(folder).read_metrics()
    assert [step for step, _ in tracker.logged] == [record["step"] for record in records] == [1, 2, 3, 3]
    for (_, values), record in zip(tracker.logged, records, strict=True):
        for key in {"loss", "validation_loss", "grad_norm", "seconds"} & record.keys():
            assert values[key] == record[key]
        assert all(type(value) in (int, float) for value in values.values())
    assert tracker.logged[0][1]["learning_rate.projection"] == records[0]["learning_rate"]["projection"]


def test_a_tracker_is_closed_when_a_run_is_stopped(
    tmp_path: Path, quiet: TrainProgress, watched: list[Watched]
) -> None:
    with pytest.raises(Interrupted):
        train(tiny_recipe(tmp_path, report_to=["watched"]), progress=quiet, stop=lambda step: step == 1)
    assert watched[0].is_finished and len(watched[0].logged) == 1


def test_tensorboard_reads_what_a_run_wrote(tmp_path: Path, quiet: TrainProgress) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install 'visgraft[trackers]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = train(tiny_recipe(tmp_path, max_steps=2, report_to=["tensorboard"]), progress=quiet)
    events = EventAccumulator(str(folder / "trackers" / folder.name))
    events.Reload()
    losses = [record["loss"] for record in Run.open(folder).read_metrics() if "loss" in record]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(losses, rel=1e-6)


def test_an_unknown_tracker_is_refused_before_anything_is_built(tmp_path: Path, quiet: TrainProgress) -> None:
    with pytest.raises(ConfigError, match=r"train\.report_to: got 'tensorbord', .* did you mean tensorboard\?"):
        train(tiny_recipe(tmp_path, report_to=["tensorbord"]), progress=quiet)
    assert not (tmp_path / "runs").exists()


def test_a_tracker_that_is_not_installed_names_its_package() -> None:
    missing = next(name for name in ("comet_ml", "aim", "clearml") if find_spec(name) is None)
    package = missing.replace("comet_ml", "comet-ml")
    with pytest.raises(ConfigError, match=f"train.report_to: {missing} is not installed; pip install {package}, or"):
        check_trackers([missing])
