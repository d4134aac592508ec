"""Several processes at once: their devices, one that dies or cannot go on, ranks of a launcher; and how far it is."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.annotate.kill_many import children_of
from tests.annotate.made import label, request_of, rows_of, same_rows, save_tars
from tests.warm_python import warm_python
from visgraft.annotate import Request, processes, running
from visgraft.annotate.job import Job
from visgraft.annotate.labelling import Labelled
from visgraft.annotate.processes import environment_of, run_processes
from visgraft.annotate.progress import Progress, in_words, total_of
from visgraft.errors import ConfigError, VisgraftError


@pytest.fixture
def warm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "COMMAND", [*warm_python(), *processes.COMMAND[1:]])


@pytest.mark.slow
def test_two_processes_give_the_rows_of_one_though_one_of_them_is_killed(
    model: Path, photos: Path, tmp_path: Path, warm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    label(request_of(model, photos, tmp_path / "alone", rows_per_unit=1))
    killed: list[int] = []
    done = Progress.unit_done

    def kill_once(self: Progress, labelled: Labelled, **settings: Any) -> None:
        done(self, labelled, **settings)
        if not killed:
            killed.append(children_of(os.getpid())[-1])
            os.kill(killed[0], signal.SIGKILL)

    monkeypatch.setattr(Progress, "unit_done", kill_once)
    standing = label(request_of(model, photos, tmp_path / "out", rows_per_unit=1), workers=2)
    assert killed
    assert standing.is_finished
    assert same_rows(rows_of(tmp_path / "out"), rows_of(tmp_path / "alone"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["data", "manifest.json", "progress.json"]


def fake_workers(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Let workers be a few lines of Python that know nothing of us."""
    monkeypatch.setattr(processes, "COMMAND", [os.sys.executable, "-S", "-c", f"import os, sys, time\n{code}"])  # type: ignore[attr-defined]


def run(model: Path, photos: Path, output: Path) -> None:
    job = Job.begin(request_of(model, photos, output, workers=2), say=lambda text: None)
    with Progress(job, is_shown=False) as progress:
        run_processes(job, progress)


def test_a_worker_that_dies_again_and_again_ends_the_call_with_what_to_do(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_workers(monkeypatch, "os.kill(os.getpid(), 9)")
    with pytest.raises(
        ConfigError, match=r"was killed by signal 9, and 3 times in a row .* take fewer --workers or a smaller"
    ):
        run(model, photos, tmp_path / "out")


def test_what_a_worker_cannot_go_on_with_is_the_calls_error_and_ends_the_others(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "number = '\"number\": 0' in sys.stdin.readline()\nif not number: sys.stdin.read(); sys.exit(130)\n"
    fake_workers(monkeypatch, code + 'print(\'{"error": "the disk is full"}\', flush=True); sys.exit(2)')
    with pytest.raises(VisgraftError, match="the disk is full"):
        run(model, photos, tmp_path / "out")
    assert children_of(os.getpid()) == [] or all(  # the warm Python's server may be there
        "--serve" in Path(f"/proc/{pid}/cmdline").read_text() for pid in children_of(os.getpid())
    )


def test_each_process_has_a_gpu_of_its_own_or_its_share_of_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    environment = environment_of(1, 4, device="cpu")
    assert environment["OMP_NUM_THREADS"] == "2"
    assert "CUDA_VISIBLE_DEVICES" not in environment
    monkeypatch.setattr(processes, "pick_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [environment_of(n, 4, device=None)["CUDA_VISIBLE_DEVICES"] for n in range(4)] == ["0", "1", "0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert [environment_of(n, 2, device=None)["CUDA_VISIBLE_DEVICES"] for n in range(2)] == ["5", "7"]


@pytest.mark.slow
def test_ranks_of_a_launcher_share_out_the_work(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label(request_of(model, photos, tmp_path / "alone", rows_per_unit=1))
    firsts: list[float] = []
    work = running.work_through

    def seen(*args: Any, first: float, **settings: Any) -> None:
        firsts.append(first)
        work(*args, first=first, **settings)

    monkeypatch.setattr(running, "work_through", seen)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):  # the other one finds nothing left to do
        monkeypatch.setenv("RANK", rank)
        label(request_of(model, photos, tmp_path / "out", rows_per_unit=1))
    assert firsts == [0.5, 0.0]
    assert same_rows(rows_of(tmp_path / "out"), rows_of(tmp_path / "alone"))


@pytest.mark.parametrize("asked", [{"workers": 2}, {"engine": "ray"}])
def test_a_rank_does_not_start_processes_of_its_own(monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match="got it beside WORLD_SIZE 4, so that each of torchrun's ranks would start"):
        label(Request(model="m", data="d", output="o"), **asked)


def test_each_rank_takes_the_gpu_of_its_place_on_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "pick_device", lambda _: torch.device("cuda"))
    environment = {"WORLD_SIZE": "16", "RANK": "11", "LOCAL_RANK": "3"}
    rank, count, request = running._place_among(Request(model="m", data="d", output="o"), environment)
    assert (rank, count, request.device) == (11, 16, "cuda:3")


# --- How far it is


@pytest.fixture
def tars_half_done(model: Path, photos: Path, tmp_path: Path) -> Callable[[], Job]:
    pattern = save_tars(tmp_path / "tars", photos, number=6, per_tar=3)
    return lambda: Job.begin(request_of(model, pattern, tmp_path / "out"), say=lambda text: None)


def test_of_tars_that_nobody_has_opened_the_number_of_rows_is_reckoned(
    tars_half_done: Callable[[], Job], model: Path
) -> None:
    job = tars_half_done()
    assert total_of(job, job.output.done()) == (None, True)
    with Progress(job, is_shown=False) as progress:
        assert str(progress.standing()) == "0 images"
    unit = job.units(0)[0]
    job.output.part(unit).write_bytes(b"")
    assert total_of(job, job.output.done()) == (6, True)
    with Progress(job, is_shown=False) as progress:
        progress.advance(2)
        standing = progress.standing()
    assert (standing.images, standing.total, standing.is_finished) == (5, 6, False)
    assert str(standing).startswith("5 of about 6 images")


def test_progress_counts_what_all_workers_have_begun_and_forgets_what_a_lost_one_had(
    model: Path, photos: Path, tmp_path: Path
) -> None:
    job = Job.begin(request_of(model, photos, tmp_path / "out"), say=lambda text: None)
    with Progress(job, is_shown=False) as progress:
        progress.advance(2, worker=0)
        progress.advance(1, worker=1)
        assert progress.standing().images == 3
        progress.worker_lost(0)
        assert progress.standing().images == 1
        progress.unit_done(Labelled(1, 1), worker=1)
        assert (progress.standing().images, progress.standing().errors) == (0, 1)
    written = json.loads((tmp_path / "out" / "progress.json").read_text())
    assert set(written) == {
        "images", "total", "total_is_estimate", "images_per_second", "seconds_left", "errors", "finished", "updated"
    }  # fmt: skip


def test_times_are_said_as_one_reckons() -> None:
    assert [in_words(seconds) for seconds in (40.2, 700, 12600, 200_000)] == ["40 s", "12 min", "3.5 h", "2.3 days"]
