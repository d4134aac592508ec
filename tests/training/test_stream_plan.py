"""Steps over streams: every sample once, the same whatever the workers, and a stopped run goes on bit for bit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.data.test_windows import png, tars, write_tars
from tests.training.tiny import tiny_recipe
from visgraft.config import DataSettings, SourceSettings
from visgraft.data.windows import open_streams
from visgraft.errors import ConfigError, DataError
from visgraft.processor import Processor
from visgraft.runs import Run
from visgraft.training.interrupt import Interrupted
from visgraft.training.loop import train
from visgraft.training.plan import Position, StepPlan
from visgraft.training.progress import TrainProgress
from visgraft.training.steps import LoaderSettings, Step, load_steps
from visgraft.training.stream_plan import StreamPlanner

START = Position(0, 0)


def make(folder: Path, processor: Processor, **settings: Any) -> StreamPlanner:
    entry = SourceSettings(**tars(write_tars(folder), group="content"))
    streams = open_streams([entry], key="data.train", settings=DataSettings(stream_window=4))
    assert streams is not None
    sizes = {"max_dialogs": 2, "text_tokens_per_step": 20, **settings}
    return StreamPlanner(streams, processor, seed=0, **sizes)


def texts_of(steps: list[StepPlan]) -> list[str]:
    held = [group.held for step in steps for group in step.groups]
    return [dialog[0].answer for group in held if group is not None for dialog in group.sample.dialogs]


def steps_of(planner: StreamPlanner, **settings: Any) -> list[Step]:
    chosen = LoaderSettings(**{"layout": "shared", "micro_batch_rows": None, "max_pixels": 10**6, **settings})
    return list(load_steps(planner, START, epochs=1.0, settings=chosen))


def test_an_epoch_holds_every_text_once_in_an_order_of_its_own(tmp_path: Path, processor: Processor) -> None:
    planner = make(tmp_path, processor)
    steps = list(planner.steps(START, epochs=2.0))
    texts = texts_of(steps)
    assert sorted(texts) == sorted(f"text {n}" for n in range(15) for _ in range(2))
    assert texts[:15] != texts[15:] and sorted(texts[:15]) != texts[:15]
    assert texts == texts_of(list(make(tmp_path, processor).steps(START, epochs=2.0)))
    assert steps[-1].end[:2] == (2, 0)


def test_planning_goes_on_from_every_position_as_a_checkpoint_holds_it(tmp_path: Path, processor: Processor) -> None:
    steps = list(make(tmp_path, processor).steps(START, epochs=2.0))
    for number, step in enumerate(steps):
        position = Position(*json.loads(json.dumps(step.start)))
        assert texts_of([make(tmp_path, processor).step(position, epochs=2.0)]) == texts_of(steps[number : number + 1])


def test_workers_change_nothing_and_processes_share_without_rest(tmp_path: Path, processor: Processor) -> None:
    planner = make(tmp_path, processor)
    alone, helped = steps_of(planner), steps_of(planner, num_workers=2)
    assert [step.plan for step in alone] == [step.plan for step in helped]
    for first, second in zip(alone, helped, strict=True):
        for batch, other in zip(first.batches, second.batches, strict=True):
            assert torch.equal(batch.input_ids, other.input_ids)
            assert torch.equal(batch.vision_inputs["pixel_bytes"], other.vision_inputs["pixel_bytes"])
    shares = [steps_of(planner, process_index=index, num_processes=3) for index in range(3)]
    for step, parts in zip(alone, zip(*shares, strict=True), strict=True):
        assert sum(part.num_samples for part in parts) == step.num_samples == len(step.plan.groups)


def test_bad_rows_come_to_light_with_their_window_and_the_budget_grows_with_what_is_read(
    tmp_path: Path, processor: Processor
) -> None:
    planner = make(tmp_path, processor)
    whole = (tmp_path / "a-1.tar").read_bytes()
    (tmp_path / "a-1.tar").write_bytes(whole[:2500])
    steps = list(planner.steps(START, epochs=1.0))
    assert [(bad.where, bad.reason) for step in steps for bad in step.bad] == [("a-1.tar", "tar is damaged")]
    assert planner.num_samples(START) == 4 and planner.num_samples(steps[-1].end) == 12


def recipe_of(folder: Path, **train_settings: Any) -> dict[str, Any]:
    recipe = tiny_recipe(folder, **{"max_steps": 7, "epochs": 3.0, "text_tokens_per_step": 30, **train_settings})
    entry = {"source": "webdataset", "path": write_tars(folder / "tars"), "streaming": True, "group": "content"}
    return {**recipe, "data": {"train": [entry], "stream_window": 4}}


@pytest.mark.slow
def test_a_run_over_a_stream_stops_and_goes_on_bit_for_bit(tmp_path: Path, quiet: TrainProgress) -> None:
    recipe = recipe_of(tmp_path, checkpoint_every_steps=7)
    whole = train(recipe, progress=quiet)
    with pytest.raises(Interrupted) as stopped:
        train(recipe, progress=quiet, stop=lambda step: step == 3)
    went_on = train(resume=stopped.value.folder, progress=quiet)
    states = [Run.open(folder).latest_checkpoint()[1] for folder in (whole, went_on)]
    first, second = ((state / "trained.safetensors").read_bytes() for state in states)
    assert first == second
    last = [Run.open(folder).read_metrics()[-1] for folder in (whole, went_on)]
    assert last[0]["loss"] == last[1]["loss"] and last[0]["sources"] == last[1]["sources"]
    assert last[0]["sources"]["webdataset"]["epochs"] is None


def test_a_run_ends_with_its_epochs_where_the_stream_is_shorter_than_its_steps(
    tmp_path: Path, quiet: TrainProgress
) -> None:
    folder = train(recipe_of(tmp_path, max_steps=1000, epochs=1.0), progress=quiet)
    record = Run.open(folder).read_metrics()[-1]
    assert record["epoch"] == 1.0 and record["sources"]["webdataset"]["texts"] == 15


def test_a_stream_needs_a_number_of_steps(tmp_path: Path, quiet: TrainProgress) -> None:
    with pytest.raises(ConfigError, match=r"data\.train: holds streams, .*; set train\.max_steps: N"):
        train(recipe_of(tmp_path, max_steps=None), progress=quiet)


def test_a_stream_of_nothing_says_so(tmp_path: Path, quiet: TrainProgress) -> None:
    recipe = recipe_of(tmp_path)
    for path in (tmp_path / "tars").iterdir():
        path.write_bytes(png(0))
    with pytest.raises(DataError, match=r"source 'webdataset' has no good sample: all 3 are bad: tar is damaged"):
        train(recipe, progress=quiet)
