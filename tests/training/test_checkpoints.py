"""A run goes on though checkpoints are damaged or lost, says so, and its records read as if nothing had happened."""

import errno
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from tests.full_disk import Disk
from tests.training.tiny import tiny_recipe
from visgraft.errors import DiskError
from visgraft.model.vlm import VisionLanguageModel
from visgraft.runs import Run
from visgraft.training.interrupt import Interrupted
from visgraft.training.loop import train
from visgraft.training.progress import TrainProgress, make_progress

LOSSES = {1: 3.0, 2: 1.0, 3: 2.0, 4: 4.0, 5: 5.0, 6: 6.0}  # the best is that of step 2


class Killed(BaseException):
    """The run ends here and saves nothing."""


class Heard(TrainProgress):
    """A display that keeps what it was told to say."""

    def __init__(self) -> None:
        super().__init__(Console(quiet=True))
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def validated() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "visgraft.training.loop.validate",
            lambda session: {"step": session.state.step, "validation_loss": LOSSES[session.state.step]},
        )
        yield


@pytest.fixture(scope="module")
def never_stopped(validated: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Run]:
    """A recipe, and its run."""
    recipe = recipe_of(tmp_path_factory.mktemp("whole"))
    return recipe, Run.open(train(recipe, progress=make_progress(show=False)))


def recipe_of(folder: Path, **train: Any) -> dict[str, Any]:
    settings = {"max_steps": 6, "validate_every_steps": 1, "sample_every_steps": 2, "checkpoint_every_steps": 2}
    return tiny_recipe(folder, **{**settings, **train})


def stopped_at(step: int, recipe: dict[str, Any], folder: Path, quiet: TrainProgress) -> Run:
    with pytest.raises(Interrupted):
        train(recipe, folder=folder, progress=quiet, stop=lambda done: done == step)
    return Run.open(folder)


def kill_at(step: int) -> Callable[[int], bool]:
    def stop(done: int) -> bool:
        if done == step:
            raise Killed
        return False

    return stop


def flip(path: Path, *, place: int = -100) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def records_of(run: Run) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    metrics = [{k: v for k, v in record.items() if k != "seconds"} for record in run.read_metrics()]
    return metrics, run.read("samples")


def assert_same(run: Run, whole: Run) -> None:
    assert records_of(run) == records_of(whole)
    first, second = (load_file(one.model_path / "model.safetensors") for one in (run, whole))
    assert all(torch.equal(first[name], second[name]) for name in first)
    first, second = (load_file(one.latest_checkpoint()[1] / "trained.safetensors") for one in (run, whole))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.usefixtures("validated")
@pytest.mark.parametrize("name", ["trained.safetensors", "optimizer.pt", "state.json"])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_taken(
    tmp_path: Path, quiet: TrainProgress, never_stopped: tuple[dict[str, Any], Run], name: str
) -> None:
    recipe, whole = never_stopped
    run = stopped_at(5, recipe, tmp_path / "stopped", quiet)
    flip(run.checkpoint_path(5) / name)
    heard = Heard()
    train(resume=run.folder, progress=heard)
    told = f"step-5/{name}: damaged"
    assert [line for line in heard.lines if told in line and "going on from step 4, the newest whole" in line]
    assert_same(run, whole)
    assert not list(run.folder.rglob("*.damaged"))


@pytest.mark.usefixtures("validated")
@pytest.mark.parametrize("damage", ["no folder", "no weights", "a flipped bit"])
@pytest.mark.parametrize("when", ["before the resume", "behind it"])
def test_lost_best_weights_are_told_of_and_the_newest_become_the_model(
    tmp_path: Path, quiet: TrainProgress, damage: str, when: str
) -> None:
    run = stopped_at(4, recipe_of(tmp_path), tmp_path / "stopped", quiet)

    def lose(step: int) -> bool:
        best = run.checkpoint_path(2)
        if step == 5 and damage == "no folder":
            shutil.rmtree(best)
        elif step == 5 and damage == "no weights":
            (best / "trained.safetensors").unlink()
        elif step == 5:
            flip(best / "trained.safetensors")
        return False

    if when == "before the resume":
        lose(5)
    heard = Heard()
    train(resume=run.folder, progress=heard, stop=None if when == "before the resume" else lose)
    told = [line for line in heard.lines if line.startswith("the best weights are lost: ")]
    assert len(told) == (2 if when == "before the resume" else 1)
    assert "checkpoints/step-2" in told[0] and ("damaged" if damage == "a flipped bit" else "missing") in told[0]
    assert told[-1].endswith("; the model is that of step 6, the newest")
    newest = load_file(run.latest_checkpoint()[1] / "trained.safetensors")
    model = VisionLanguageModel.from_pretrained(run.model_path)
    assert torch.equal(model.projection.linear.weight, newest["projection.linear.weight"])
    summary = run.read_summary()
    assert summary is not None
    assert (summary["model_step"], summary["validation_step"], summary["validation_loss"]) == (6, 6, 6.0)


def test_records_that_were_there_and_are_lost_are_told_of(tmp_path: Path, quiet: TrainProgress) -> None:
    run = stopped_at(4, recipe_of(tmp_path), tmp_path / "stopped", quiet)
    log = run.folder / "metrics.jsonl"
    whole = log.read_bytes()
    log.write_bytes(whole[: len(whole) // 2])
    (run.folder / "samples.jsonl").unlink(missing_ok=True)
    heard = Heard()
    train(resume=run.folder, progress=heard)
    missing = len(whole) - len(whole) // 2
    assert f"metrics.jsonl has lost at least {missing:,} bytes of records that were there at step 4" in heard.lines
    assert [record["step"] for record in run.steps()][-2:] == [5, 6]


@pytest.mark.usefixtures("validated")
def test_the_summary_says_whose_weights_the_model_has(tmp_path: Path, quiet: TrainProgress) -> None:
    summary = Run.open(train(recipe_of(tmp_path), progress=quiet)).read_summary()
    assert summary is not None
    assert (summary["model_step"], summary["validation_step"], summary["validation_loss"]) == (2, 2, 1.0)


@pytest.mark.usefixtures("validated")
def test_a_run_that_was_stopped_and_killed_again_and_again_has_every_record_once(
    tmp_path: Path, quiet: TrainProgress
) -> None:
    recipe = recipe_of(tmp_path, checkpoint_every_steps=100)
    whole = Run.open(train(recipe, progress=quiet))
    run = stopped_at(4, recipe, tmp_path / "stopped", quiet)  # its validation, not the best, is made by each resume
    for _ in range(2):
        with pytest.raises(Killed):
            train(resume=run.folder, progress=quiet, stop=kill_at(5))
    train(resume=run.folder, progress=quiet)
    assert_same(run, whole)
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    assert len(lines) > len(records_of(whole)[0])  # append-only: what no longer counts still stands there


def test_a_validation_loss_that_is_no_number_is_never_the_best(
    tmp_path: Path, quiet: TrainProgress, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = {1: float("nan"), 2: 2.0, 3: float("nan")}
    monkeypatch.setattr(
        "visgraft.training.loop.validate",
        lambda session: {"step": session.state.step, "validation_loss": losses[session.state.step]},
    )
    summary = Run.open(train(recipe_of(tmp_path, max_steps=3), progress=quiet)).read_summary()
    assert summary is not None
    assert (summary["model_step"], summary["validation_loss"]) == (2, 2.0)


# --- A disk that takes no more


@pytest.mark.usefixtures("validated")
@pytest.mark.parametrize(
    ("match", "call", "number"),
    [
        ("checkpoints/.step-4.new/trained.safetensors", "write", errno.ENOSPC),
        ("checkpoints/.step-4.new/optimizer.pt", "write", errno.ENOSPC),
        ("checkpoints/.step-4.new/.state.json", "open", errno.ENOSPC),
        ("checkpoints/.step-4.new/optimizer.pt", "fsync", errno.ENOSPC),
        ("checkpoints/.step-4.new", "rename", errno.EROFS),
        ("metrics.jsonl", "write", errno.ENOSPC),
        ("samples.jsonl", "open", errno.EROFS),
        ("model.new/config.json", "write", errno.ENOSPC),
        (".summary.json", "write", errno.ENOSPC),
    ],
)
def test_a_run_that_met_a_full_disk_goes_on_when_there_is_room_and_ends_the_same(
    tmp_path: Path,
    quiet: TrainProgress,
    monkeypatch: pytest.MonkeyPatch,
    never_stopped: tuple[dict[str, Any], Run],
    match: str,
    call: str,
    number: int,
) -> None:
    recipe, whole = never_stopped
    disk = Disk(monkeypatch)
    folder = tmp_path / "stopped"

    def refuse(step: int) -> bool:
        if step == 3:
            disk.refuse(call, number, match=match, after_bytes=50)
        return False

    with pytest.raises(DiskError, match=r"^/.*: cannot be written: the disk is .*; needs [0-9,]+ bytes|more than"):
        train(recipe, folder=folder, progress=quiet, stop=refuse)
    disk.repair()
    assert disk.refused
    assert not list(folder.rglob("*.new"))
    for file in folder.rglob("*"):
        assert file.is_dir() or file.stat().st_size, f"{file} is empty"
    train(resume=folder, progress=quiet)
    assert_same(Run.open(folder), whole)


def test_the_room_that_a_checkpoint_needs_is_that_of_all_of_it(
    tmp_path: Path, quiet: TrainProgress, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Run.open(train(recipe_of(tmp_path, max_steps=2), progress=quiet))
    size = sum(file.stat().st_size for file in whole.checkpoint_path(2).iterdir())
    disk = Disk(monkeypatch)
    disk.refuse("write", errno.ENOSPC, match=".new/trained.safetensors")
    with pytest.raises(DiskError, match=r"checkpoints/step-\d: cannot .* full; needs [0-9,]+ bytes, has room") as told:
        train(recipe_of(tmp_path, max_steps=2), progress=quiet)
    disk.repair()
    needed = int(re.findall(r"needs ([0-9,]+)", str(told.value))[0].replace(",", ""))
    assert 0.95 * size < needed <= size


def test_a_run_that_cannot_even_be_begun_leaves_no_folder(
    tmp_path: Path, quiet: TrainProgress, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    disk.refuse("write", errno.ENOSPC, match=".recipe.yaml")
    for folder in (tmp_path / "own", None):
        with pytest.raises(DiskError, match=r"recipe\.yaml: cannot be written: the disk is full"):
            train(recipe_of(tmp_path), folder=folder, progress=quiet)
    assert list((tmp_path / "own").iterdir()) == []
    assert list((tmp_path / "runs").iterdir()) == []
