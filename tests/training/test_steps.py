"""Batches come in order, the same whatever the number of workers, and processes share a step without rest."""

import gc
import multiprocessing
import os
import resource
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch

from visgraft.training.plan import Planner, Position
from visgraft.training.steps import LoaderSettings, Step, cut_finer, load_steps, num_groups

Make = Callable[..., Planner]


def steps_of(planner: Planner, *, epochs: float = 1.0, **settings: Any) -> list[Step]:
    chosen = LoaderSettings(**{"layout": "shared", "micro_batch_rows": None, "max_pixels": 10**6, **settings})
    return list(load_steps(planner, Position(0, 0), epochs=epochs, settings=chosen))


def test_the_number_of_workers_changes_nothing(make_planner: Make) -> None:
    planner = make_planner(bad=1)
    alone, helped = steps_of(planner), steps_of(planner, num_workers=2)
    assert [step.plan for step in alone] == [step.plan for step in helped]
    assert [step.bad for step in alone] == [step.bad for step in helped]
    for first, second in zip(alone, helped, strict=True):
        for batch, other in zip(first.batches, second.batches, strict=True):
            assert torch.equal(batch.input_ids, other.input_ids)
            assert torch.equal(batch.vision_inputs["pixel_bytes"], other.vision_inputs["pixel_bytes"])


def test_pixels_travel_as_bytes_and_become_those_of_the_sample_bit_for_bit(make_planner: Make) -> None:
    planner = make_planner()
    processor = planner.processor
    step = steps_of(planner, num_workers=1)[0]
    made = torch.cat([processor.finish(batch).vision_inputs["pixel_values"] for batch in step.batches])
    direct = [processor.encode(planner.sample(group)).vision_inputs["pixel_values"] for group in step.plan.groups]
    assert sorted(map(torch.Tensor.tolist, made)) == sorted(torch.cat(direct).tolist())


def test_making_a_loader_leaves_the_random_state_alone(make_planner: Make) -> None:
    before = torch.get_rng_state()
    steps_of(make_planner(), num_workers=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_processes_divide_every_step_among_them(make_planner: Make) -> None:
    planner = make_planner()
    whole = steps_of(planner)
    shares = [steps_of(planner, process_index=index, num_processes=3) for index in range(3)]
    for number, step in enumerate(whole):
        ids = sorted(name for batch in step.batches for name in batch.sample_ids)
        parts = [share[number] for share in shares]
        assert sorted(name for part in parts for batch in part.batches for name in batch.sample_ids) == ids
        assert sum(part.num_samples for part in parts) == step.num_samples == len(step.plan.groups)


def test_a_process_without_a_group_gets_a_step_without_batches(make_planner: Make) -> None:
    steps = steps_of(make_planner(text_tokens_per_step=1), process_index=1, num_processes=2)
    assert all(step.batches == () and step.num_samples == 0 for step in steps)


@pytest.mark.parametrize("layout", ["shared", "rows"])
def test_micro_batches_hold_so_many_rows_and_together_all_of_them(make_planner: Make, layout: str) -> None:
    planner = make_planner()
    for whole, parts in zip(
        steps_of(planner, layout=layout), steps_of(planner, layout=layout, micro_batch_rows=2), strict=True
    ):
        assert len(whole.batches) == 1
        assert max(len(batch.kind) for batch in parts.batches) <= 2
        same = ("text_tokens", "image_tokens", "samples", "dialogs", "answer_characters")
        assert {key: whole.counts()[key] for key in same} == {key: parts.counts()[key] for key in same}
        assert parts.counts()["pads"] <= whole.counts()["pads"]


def test_every_group_of_a_batch_is_named_by_its_sample(make_planner: Make) -> None:
    for layout in ("shared", "rows"):
        for step in steps_of(make_planner(), layout=layout, row_positions=60 if layout == "shared" else None):
            for batch in step.batches:
                groups = (batch.group.amax(1) + 1).tolist()
                assert len(batch.sample_ids) == sum(groups) == num_groups(batch)
                assert batch.target_sample.max() < len(batch.sample_ids)


@pytest.mark.parametrize("row_positions", [None, 60, 10_000])
def test_rows_are_filled_and_hold_what_single_rows_hold(make_planner: Make, row_positions: int | None) -> None:
    planner = make_planner(text_tokens_per_step=250)
    for step, single in zip(
        steps_of(planner, row_positions=row_positions), steps_of(planner, row_positions=1), strict=True
    ):
        mine, theirs = step.counts(), single.counts()
        sums = ("text_tokens", "image_tokens", "samples", "dialogs", "answer_characters")
        assert {key: mine[key] for key in sums} == {key: theirs[key] for key in sums}
        assert all(batch.group.max() == 0 for batch in single.batches)
        [batch] = step.batches
        if row_positions is None:
            assert mine["pads"] <= 0.05 * mine["positions"]
        else:
            assert batch.kind.shape[1] <= row_positions
        assert len(batch.kind) == 1 or row_positions != 10_000


@pytest.mark.parametrize("layout", ["shared", "rows"])
@pytest.mark.parametrize("limit", [30, 64, 200])
def test_micro_batches_hold_so_many_positions_unless_a_sample_alone_has_more(
    make_planner: Make, layout: str, limit: int
) -> None:
    [first, *rest] = steps_of(make_planner(text_tokens_per_step=250), layout=layout, micro_batch_positions=limit)
    for step in (first, *rest):
        assert all(batch.kind.numel() <= limit or num_groups(batch) == 1 for batch in step.batches)
    assert any(batch.kind.numel() > limit / 2 for batch in first.batches)


@pytest.mark.parametrize("layout", ["shared", "rows"])
def test_a_step_that_is_cut_finer_holds_the_same_samples_with_their_images(make_planner: Make, layout: str) -> None:
    planner = make_planner(text_tokens_per_step=250)
    settings = LoaderSettings(layout=layout, max_pixels=10**6, micro_batch_positions=80)  # type: ignore[arg-type]
    [step, *_] = steps_of(planner, layout=layout, row_positions=None if layout == "rows" else 500)
    [made_so, *_] = steps_of(planner, layout=layout, micro_batch_positions=80)
    finer = cut_finer(step, planner.processor, settings=settings)
    assert len(finer.batches) > len(step.batches)
    kept = step.counts().keys() - {"pads", "positions"}
    assert {key: finer.counts()[key] for key in kept} == {key: step.counts()[key] for key in kept}
    assert cut_finer(finer, planner.processor, settings=settings) is finer
    assert images_by_sample(finer) == images_by_sample(step) == images_by_sample(made_so)


def images_by_sample(step: Step) -> set[tuple[str, float]]:
    """Name every sample with the sum of its image (the tiny data have one image each)."""
    return {
        (name, float(image.sum()))
        for batch in step.batches
        for name, image in zip(batch.sample_ids, batch.vision_inputs["pixel_bytes"], strict=True)
    }


def test_a_bad_image_is_reported_by_the_process_that_met_it(make_planner: Make) -> None:
    planner = make_planner(bad=2)
    found = [
        bad.reason for index in range(2)
        for step in steps_of(planner, process_index=index, num_processes=2) for bad in step.bad
    ]  # fmt: skip
    assert found == ["not an image"] * 2
    assert sum(step.counts()["samples"] for step in steps_of(planner)) == 18


def test_counts_tell_pads_from_positions(make_planner: Make) -> None:
    [step, *_] = steps_of(make_planner())
    counts = step.counts()
    assert counts["positions"] == counts["pads"] + counts["text_tokens"] + counts["image_tokens"]


def test_few_open_files_suffice_for_many_micro_batches_and_workers(make_planner: Make) -> None:
    planner = make_planner(num_images=60, text_tokens_per_step=1000)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(60)  # it once waited for ever
            resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
            alone, helped = (steps_of(planner, epochs=4.0, micro_batch_rows=1, num_workers=n) for n in (0, 4))
            assert max(len(step.batches) for step in alone) > 8
            for first, second in zip(alone, helped, strict=True):
                assert first.plan == second.plan and first.parts == second.parts
                for batch, other in zip(first.batches, second.batches, strict=True):
                    assert batch.keys() == other.keys()
                    assert torch.equal(batch.input_ids, other.input_ids)
                    assert torch.equal(batch.vision_inputs["pixel_bytes"], other.vision_inputs["pixel_bytes"])
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize(("layout", "row_positions"), [("shared", None), ("shared", 120), ("rows", None)])
def test_a_step_that_is_cut_again_is_cut_as_it_would_have_been_at_once(
    make_planner: Make, layout: str, row_positions: int | None
) -> None:
    planner = make_planner(num_images=24, text_tokens_per_step=400)
    sizes = {"layout": layout, "row_positions": row_positions}
    for limit in (240, 100, 40):
        settings = LoaderSettings(max_pixels=10**6, micro_batch_positions=limit, **sizes)  # type: ignore[arg-type]
        at_once = steps_of(planner, micro_batch_positions=limit, **sizes)
        for step, expected in zip(steps_of(planner, **sizes), at_once, strict=True):
            again = cut_finer(step, planner.processor, settings=settings)
            assert again.parts == expected.parts and again.limit == expected.limit == limit
            for batch, other in zip(again.batches, expected.batches, strict=True):
                assert batch.sample_ids == other.sample_ids
                assert all(torch.equal(batch[key], other[key]) for key in ("input_ids", "group", "source", "target"))
                assert torch.equal(batch.vision_inputs["pixel_bytes"], other.vision_inputs["pixel_bytes"])


def test_workers_end_as_soon_as_nobody_waits_for_their_steps(make_planner: Make) -> None:
    others = set(multiprocessing.active_children())
    steps = load_steps(make_planner(), Position(0, 0), epochs=9.0, settings=LoaderSettings("shared", 1, num_workers=1))
    next(steps)
    [worker] = set(multiprocessing.active_children()) - others
    gc.disable()
    try:
        del steps
        worker.join(timeout=20)
        assert not worker.is_alive()
    finally:
        gc.enable()
