"""A step that does not fit into memory is computed in smaller pieces, with the same loss and the same gradients."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.small_memory import CPU_SAYS, limit_memory
from tests.training.tiny import tiny_recipe
from visgraft.config import load_recipe
from visgraft.errors import MaskSizeError, ModelError
from visgraft.runs import Run
from visgraft.training import gradients, loop
from visgraft.training.gradients import add_gradients
from visgraft.training.loop import Interrupted, train, train_step
from visgraft.training.progress import TrainProgress, make_progress
from visgraft.training.session import Session
from visgraft.training.setup import open_session
from visgraft.training.steps import Step, load_steps

EVERYTHING = {"vision": "full", "projection": "full", "language": "full", "head": "full", "text_tokens_per_step": 250}


def make(
    tmp_path: Path, *, largest: int, error: Callable[[], Exception], **settings: Any
) -> tuple[Session, list[str], list[int]]:
    """Open a session whose model takes so many positions at once; give it, what it says, and the sizes it was given."""
    said: list[str] = []
    progress = make_progress(show=False)
    progress.say = said.append  # type: ignore[method-assign]
    session = open_session(load_recipe(tiny_recipe(tmp_path, **{**EVERYTHING, **settings})), progress=progress)
    said.clear()
    return session, said, limit_memory(session.model, largest=largest, error=error)


def first_gradients(session: Session) -> tuple[dict[str, Tensor], float]:
    steps = load_steps(session.planner, session.state.position, epochs=1.0, settings=session.loader)
    done = add_gradients(session, next(steps), steps)
    loss = sum(float(part.sum()) for part in done.losses) / done.total
    return {name: p.grad.clone() for name, p in session.trained.items() if p.grad is not None}, loss


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert len(first) > 40
    for name, gradient in first.items():
        torch.testing.assert_close(second[name], gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["shared", "rows"])
@pytest.mark.parametrize(
    "error",
    [
        lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        lambda: RuntimeError(CPU_SAYS),
        lambda: MaskSizeError("a dense attention mask of 9 rows"),
    ],
    ids=["gpu", "cpu", "mask"],
)
def test_out_of_memory_halves_the_micro_batch_and_changes_no_gradient(
    tmp_path: Path, error: Callable[[], Exception], layout: str
) -> None:
    whole, _, _ = make(tmp_path, largest=10**9, error=error, layout=layout)
    expected, loss = first_gradients(whole)
    session, said, sizes = make(tmp_path, largest=90, error=error, layout=layout)
    found, same_loss = first_gradients(session)
    assert_same(expected, found)
    assert same_loss == pytest.approx(loss, rel=1e-5)
    first, *rest = sizes
    assert first > 180  # so it was halved more than once
    assert len(said) == sum(size > 90 for size in sizes) >= 2
    assert f"memory does not suffice for a micro-batch of {first} positions" in said[0]
    assert f"train.micro_batch_positions: {first // 2} halves it" in said[0]
    assert session.loader.micro_batch_positions is not None
    assert max(rest[-2:]) <= session.loader.micro_batch_positions <= 90


@pytest.mark.slow
def test_what_fits_is_kept_for_the_rest_of_the_run(tmp_path: Path) -> None:
    session, said, _ = make(tmp_path, largest=90, error=lambda: RuntimeError(CPU_SAYS), max_steps=3)
    steps = load_steps(session.planner, session.state.position, epochs=9.0, settings=session.loader)
    train_step(session, steps)
    so_far = sum("memory" in line for line in said)
    for _ in range(2):
        train_step(session, steps)
    assert so_far == sum("memory" in line for line in said) > 0
    records = session.run.read_metrics()
    assert [record["step"] for record in records] == [1, 2, 3]
    assert all(record["padding"] <= 0.2 for record in records)


def short_at_the_second_step(monkeypatch: pytest.MonkeyPatch, *, largest: int = 60) -> None:
    """Let every run find memory short in its second step, and in no other."""

    def opened(*arguments: Any, **settings: Any) -> Session:
        session = open_session(*arguments, **settings)
        limit_memory(session.model, largest=largest, is_short=lambda: session.state.step == 1)
        return session

    monkeypatch.setattr(loop, "open_session", opened)


@pytest.mark.parametrize(("num_workers", "layout"), [(2, "shared"), pytest.param(0, "rows", marks=pytest.mark.slow)])
def test_a_run_resumed_behind_a_halving_is_the_run_that_never_stopped(
    tmp_path: Path, quiet: TrainProgress, monkeypatch: pytest.MonkeyPatch, num_workers: int, layout: str
) -> None:
    short_at_the_second_step(monkeypatch)
    sizes = {"text_tokens_per_step": 120, "max_steps": 5, "checkpoint_every_steps": 5, "layout": layout}
    recipe = tiny_recipe(tmp_path, family="opt", dropout=0.2, epochs=3, num_workers=num_workers, **sizes)
    whole = train(recipe, progress=quiet)
    limit = state_of(whole)["micro_batch_positions"]
    assert limit is not None
    for stopped_at in (1, 3):
        with pytest.raises(Interrupted) as stopped:
            train(recipe, progress=quiet, stop=lambda step, at=stopped_at: step == at)  # type: ignore[misc]
        assert state_of(stopped.value.folder)["micro_batch_positions"] == (None if stopped_at == 1 else limit)
        went_on = train(resume=stopped.value.folder, progress=quiet)
        for name in ("trained.safetensors", "optimizer.pt"):
            first, second = (Run.open(f).latest_checkpoint()[1] / name for f in (whole, went_on))
            assert first.read_bytes() == second.read_bytes(), (name, stopped_at)
        assert state_of(whole)["random_states"] == state_of(went_on)["random_states"]
        assert losses(whole) == losses(went_on)


def state_of(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((Run.open(folder).latest_checkpoint()[1] / "state.json").read_text())
    return state


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in Run.open(folder).read_metrics() if "loss" in record]


def test_a_pass_that_fails_draws_no_random_number_of_the_run(tmp_path: Path) -> None:
    settings = {"family": "opt", "dropout": 0.2, "layout": "rows", "micro_batch_positions": 90}
    whole, _, _ = make(tmp_path, largest=10**9, error=lambda: RuntimeError(CPU_SAYS), **settings)
    failed = 0

    def fails_once() -> bool:
        nonlocal failed
        failed += 1
        return failed == 3  # in the middle of a step

    session, said, _ = make(tmp_path, largest=89, error=lambda: RuntimeError(CPU_SAYS), **settings)
    limit_memory(session.model, largest=0, is_short=fails_once)
    for one in (whole, session):
        torch.manual_seed(3)
        first_gradients(one)
    assert len(said) == 1
    cut_so = session.loader
    after = torch.get_rng_state()
    whole.loader = cut_so  # cut as it is in the end, it draws the same
    torch.manual_seed(3)
    first_gradients(whole)
    assert torch.equal(torch.get_rng_state(), after)


def test_behind_a_halving_steps_are_collated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session, said, _ = make(tmp_path, largest=90, error=lambda: RuntimeError(CPU_SAYS), max_steps=4, epochs=9)
    steps = load_steps(session.planner, session.state.position, epochs=9.0, settings=session.loader)
    train_step(session, steps)
    assert said
    cut_again: list[Step] = []
    monkeypatch.setattr(gradients, "cut_finer", lambda step, *_, **__: cut_again.append(step) or step)  # type: ignore[func-returns-value]
    for _ in range(3):
        train_step(session, steps)
    assert [step.limit for step in cut_again] == [session.state.micro_batch_positions] * 3


@pytest.mark.slow
def test_a_sample_that_does_not_fit_alone_ends_the_run_and_says_what_to_change(tmp_path: Path) -> None:
    session, said, _ = make(tmp_path, largest=3, error=lambda: RuntimeError(CPU_SAYS))
    message = r"memory does not suffice for sample .*\.png.* alone\. Make a sample smaller .*`visgraft estimate RECIPE`"
    with pytest.raises(ModelError, match=message):
        first_gradients(session)
    assert len(said) >= 2


def test_other_errors_are_not_taken_for_a_lack_of_memory(tmp_path: Path) -> None:
    session, said, _ = make(tmp_path, largest=90, error=lambda: RuntimeError("the size of tensor a must match"))
    with pytest.raises(RuntimeError, match="must match"):
        first_gradients(session)
    assert said == []


def test_the_setting_bounds_micro_batches_and_changes_no_run(tmp_path: Path, quiet: TrainProgress) -> None:
    whole, parts = (
        train(tiny_recipe(tmp_path, max_steps=3, **{**EVERYTHING, **settings}), progress=quiet)
        for settings in ({}, {"micro_batch_positions": 64, "row_positions": 40})
    )
    for one, other in zip(*(Run.open(folder).read_metrics() for folder in (whole, parts)), strict=True):
        if "loss" in one:
            assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)
            assert one["padding"] <= 0.05
        else:
            assert one["validation_loss"] == pytest.approx(other["validation_loss"], rel=1e-3)
