"""A run that signals stop, or that is killed early, is the run that never stopped; its records stand once."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.training.tiny import save_data, tiny_recipe
from visgraft.errors import CheckpointError, ConfigError
from visgraft.folder_lock import LOCK_FILE
from visgraft.inference import Engine
from visgraft.model.vlm import VisionLanguageModel
from visgraft.runs import Run
from visgraft.training import interrupt, loop
from visgraft.training.interrupt import Interrupted
from visgraft.training.loop import train
from visgraft.training.progress import TrainProgress

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow  # real trainings


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_recipe(tmp_path_factory.mktemp("stopped"), dropout=0.1)


def make_recipe(folder: Path, *, dropout: float) -> dict[str, Any]:
    values = tiny_recipe(
        folder, family="opt", dropout=dropout, max_steps=4, validate_every_steps=2, sample_every_steps=4,
        exact_match_samples=2, max_new_tokens=3, text_tokens_per_step=40,
    )  # fmt: skip
    save_data(folder / "validation", num_images=12, first=100)
    return values


@pytest.fixture(scope="module")
def whole(recipe: dict[str, Any]) -> Path:
    return train(recipe, progress=loop.make_progress(show=False))


def records(folder: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in record.items() if key != "seconds"} for record in Run.open(folder).read_metrics()
    ]


def assert_equal(folder: Path, whole: Path) -> None:
    """Compare weights, moments and records; a signal leaves nothing in a log that a reader has to leave out."""
    newest, other = (Run.open(each).latest_checkpoint()[1] for each in (folder, whole))
    weights, others = (load_file(each / "trained.safetensors") for each in (newest, other))
    assert weights.keys() == others.keys()
    assert all(torch.equal(tensor, others[name]) for name, tensor in weights.items())
    moments, others = (torch.load(each / "optimizer.pt")["optimizer"]["state"] for each in (newest, other))
    assert all(torch.equal(moments[i][key], others[i][key]) for i in others for key in others[i])
    assert records(folder) == records(whole)
    assert Run.open(folder).read("samples") == Run.open(whole).read("samples")
    assert not (folder / LOCK_FILE).exists()


def raising(number: int, *, at: int) -> Callable[..., None]:
    """Make a hook that sends this process a signal at a call."""
    calls = iter(range(1, 1_000_000))

    def hook(*_: Any) -> None:
        if next(calls) == at:
            os.kill(os.getpid(), number)

    return hook


@pytest.mark.parametrize("number", interrupt.STOP_SIGNALS)
def test_every_signal_stops_behind_the_step_and_saves(
    recipe: dict[str, Any], whole: Path, quiet: TrainProgress, number: int
) -> None:
    def send(step: int) -> bool:
        if step == 3:
            os.kill(os.getpid(), number)
        return False

    with pytest.raises(Interrupted, match="stopped and saved; go on with") as stopped:
        train(recipe, progress=quiet, stop=send)
    folder = stopped.value.folder
    assert stopped.value.number == number
    assert Run.open(folder).latest_checkpoint()[0] in (3, 4)  # the handler runs when the interpreter gets to it
    assert_equal(train(resume=folder, progress=quiet), whole)


def test_a_validation_is_stopped_between_two_batches_and_taken_up_there(
    recipe: dict[str, Any], whole: Path, quiet: TrainProgress, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[bool] = []
    loss = VisionLanguageModel.loss

    def counted(model: VisionLanguageModel, batch: Any) -> Any:
        if not model.training:
            batches.append(True)
            if len(batches) == 3:
                os.kill(os.getpid(), signal.SIGTERM)
        return loss(model, batch)

    monkeypatch.setattr("visgraft.training.setup.preflight", lambda *_: type("Checked", (), {"notes": ()}))
    monkeypatch.setattr(VisionLanguageModel, "loss", counted)
    with pytest.raises(Interrupted) as stopped:
        train(recipe, progress=quiet)
    folder = stopped.value.folder
    assert Run.open(folder).latest_checkpoint()[0] == 2
    assert [record["step"] for record in records(folder)] == [1, 2]
    assert len(batches) == 3
    assert_equal(train(resume=folder, progress=quiet), whole)
    in_one = len(batches) / 2
    assert in_one == int(in_one) > 3  # none was measured twice


@pytest.mark.parametrize(("at", "step"), [(1, 2), (2, 4), (3, 4)])
def test_questions_are_stopped_between_two_tokens_and_asked_again(
    recipe: dict[str, Any], whole: Path, quiet: TrainProgress, monkeypatch: pytest.MonkeyPatch, at: int, step: int
) -> None:
    hook, step_of = raising(signal.SIGUSR1, at=2 * at), Engine.step  # two steps or more make an answer

    def stepping(engine: Engine) -> None:
        hook()
        step_of(engine)

    monkeypatch.setattr(Engine, "step", stepping)
    with pytest.raises(Interrupted) as stopped:
        train(recipe, progress=quiet)
    assert stopped.value.number == signal.SIGUSR1
    assert Run.open(stopped.value.folder).latest_checkpoint()[0] == step
    assert_equal(train(resume=stopped.value.folder, progress=quiet), whole)


def test_a_second_ctrl_c_in_a_validation_stops_at_once(
    recipe: dict[str, Any], quiet: TrainProgress, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(*_: Any) -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)  # the first is handled before the second comes

    monkeypatch.setattr(loop, "validate", pressed)
    with pytest.raises(KeyboardInterrupt) as stopped:
        train(recipe, progress=quiet)
    assert not isinstance(stopped.value, Interrupted)


# --- Checkpoints by time, and runs without one


def checkpoints_on_the_way(recipe: dict[str, Any], quiet: TrainProgress, **settings: Any) -> list[int]:
    """Train, and list the checkpoints that were there after each step."""
    made: set[int] = set()
    folder = Path(recipe["output"]) / f"by-time-{settings}"

    def look(_: int) -> bool:
        made.update(Run(folder).checkpoints())
        return False

    values = {**recipe["train"], "validate_every_steps": 99, "sample_every_steps": 99, **settings}
    train({**recipe, "train": values}, folder=folder, progress=quiet, stop=look)
    return sorted(made)


def test_a_checkpoint_is_written_whenever_its_time_has_come(recipe: dict[str, Any], quiet: TrainProgress) -> None:
    assert checkpoints_on_the_way(recipe, quiet, checkpoint_every_minutes=1e-9) == [1, 2, 3]
    assert checkpoints_on_the_way(recipe, quiet, checkpoint_every_minutes=60.0) == []
    assert checkpoints_on_the_way(recipe, quiet, checkpoint_every_minutes=None) == []


class DiedError(Exception):
    """What ended a run without a word."""


def die(_: int) -> bool:
    raise DiedError


def test_a_run_without_a_checkpoint_begins_again_in_its_folder(
    recipe: dict[str, Any], whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = whole.parent / "no-checkpoint"
    with pytest.raises(DiedError):
        train(recipe, folder=folder, progress=loop.make_progress(), stop=lambda step: step == 2 and die(step))
    assert Run(folder).checkpoints() == {}
    assert train(resume=folder, progress=loop.make_progress()) == folder
    assert "holds no checkpoint yet: the run begins again" in " ".join(capsys.readouterr().err.split())
    assert_equal(folder, whole)


def test_resume_or_start_begins_goes_on_and_leaves_a_finished_run_alone(
    recipe: dict[str, Any], whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = whole.parent / "requeued"
    call: dict[str, Any] = {"folder": folder, "resume_or_start": True}
    with pytest.raises(DiedError):
        train(recipe, **call, stop=die)  # no checkpoint yet
    with pytest.raises(Interrupted):
        train(recipe, **call, stop=lambda step: step == 3)
    assert train(recipe, **call) == folder
    assert_equal(folder, whole)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    capsys.readouterr()
    assert train(recipe, **call) == folder
    assert "this run is finished; --resume goes on with it" in " ".join(capsys.readouterr().err.split())
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_resume_or_start_begins_where_a_killed_start_left_no_recipe(
    recipe: dict[str, Any], tmp_path: Path, quiet: TrainProgress
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("environment.json", ".recipe.yaml.1234.new", LOCK_FILE):
        (folder / name).touch()
    (folder / LOCK_FILE).unlink()
    assert train(recipe, folder=folder, resume_or_start=True, progress=quiet) == folder


@pytest.mark.parametrize("call", [{}, {"folder": "a", "resume": "b"}])
def test_resume_or_start_needs_the_one_folder_of_the_run(
    recipe: dict[str, Any], quiet: TrainProgress, call: dict[str, str]
) -> None:
    with pytest.raises(ConfigError, match=r"--resume-or-start: got (no folder|--resume b too); name the run's folder"):
        train(recipe, resume_or_start=True, progress=quiet, **call)


def test_a_run_that_is_training_cannot_be_resumed_or_begun_again(
    recipe: dict[str, Any], tmp_path: Path, quiet: TrainProgress
) -> None:
    folder, refused = tmp_path / "run", []

    def try_too(step: int) -> bool:
        for call in ({"folder": folder}, {"resume": folder}, {"folder": folder, "resume_or_start": True}):
            with pytest.raises(CheckpointError, match=rf"process {os.getpid()} on .* is training this run") as error:
                train(recipe, **call)
            refused.append(error)
        return step == 1

    with pytest.raises(Interrupted):
        train(recipe, folder=folder, progress=quiet, stop=try_too)
    assert len(refused) == 3
    train(resume=folder, progress=quiet)


def test_a_run_that_another_process_took_over_ends(
    recipe: dict[str, Any], tmp_path: Path, quiet: TrainProgress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visgraft.folder_lock.FolderLock.take", lambda lock, *_, **__: setattr(lock, "is_lost", True))
    with pytest.raises(CheckpointError, match="another process took this run over, as this one did not answer"):
        train(recipe, folder=tmp_path / "run", progress=quiet)


# --- Steps that take long


def slow_child(recipe: dict[str, Any], folder: Path, *, number: int) -> int:
    """Train in a fork whose third step takes far longer than there is time behind the signal; return its status."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    status = 1
    try:
        interrupt.SAVED_WITHIN_S, loop.LEAST_SECONDS_TO_SAVE = 0.5, 0.1
        add_gradients, calls = loop.add_gradients, iter(range(1, 99))

        def slow(*args: Any) -> Any:
            done = add_gradients(*args)
            if next(calls) == 3:
                os.kill(os.getpid(), number)
                end = time.monotonic() + (2.0 if number == signal.SIGINT else 60.0)
                while time.monotonic() < end:
                    time.sleep(0.05)
            return done

        loop.add_gradients = slow  # type: ignore[attr-defined]
        train(recipe, folder=folder, progress=loop.make_progress(show=False))
    except Interrupted as stopped:
        status = interrupt.exit_status(stopped)
    finally:
        os._exit(status)


def test_a_step_that_takes_too_long_is_left_and_the_one_before_it_saved(
    recipe: dict[str, Any], whole: Path, quiet: TrainProgress
) -> None:
    folder, begun = whole.parent / "slow", time.monotonic()
    assert slow_child(recipe, folder, number=signal.SIGTERM) == 143
    assert time.monotonic() - begun < 40
    assert list(Run.open(folder).checkpoints()) == [2]
    assert_equal(train(resume=folder, progress=quiet), whole)


def test_behind_ctrl_c_a_step_that_takes_long_is_finished_and_the_one_before_it_saved_meanwhile(
    recipe: dict[str, Any], whole: Path, quiet: TrainProgress
) -> None:
    folder = whole.parent / "slow-ctrl-c"
    assert slow_child(recipe, folder, number=signal.SIGINT) == 130
    assert list(Run.open(folder).checkpoints()) == [2, 3]
    assert_equal(train(resume=folder, progress=quiet), whole)


# --- Two processes


@pytest.mark.slow
def test_two_processes_stop_together_and_go_on_as_if_never_stopped(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(make_recipe(tmp_path / "made", dropout=0.1)))
    subprocess.run(
        [sys.executable, "-m", "tests.training.stopped_of_two", str(tmp_path / "recipe.yaml"), str(tmp_path)],
        check=True, cwd=ROOT, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    ended = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in ("whole", "validation", "step")}
    assert ended["whole"]["statuses"] == [0, 0]
    assert ended["validation"] == {"statuses": [138, 138], "saved": [2]}
    assert ended["step"] == {"statuses": [143, 143], "saved": [2]}
    assert_equal(tmp_path / "validation", tmp_path / "whole")
    assert_equal(tmp_path / "step", tmp_path / "whole")
    assert (tmp_path / "step.log").read_text().count("stopped and saved; go on with") == 1
