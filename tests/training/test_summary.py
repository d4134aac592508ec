"""A finished run says what it cost and how good its model is; stopping on the way changes none of it but the time."""

import time
from pathlib import Path

import pytest
import torch

from tests.training.tiny import tiny_recipe
from visgraft.config import load_recipe
from visgraft.runs import Run
from visgraft.training.interrupt import Interrupted
from visgraft.training.loop import train
from visgraft.training.progress import TrainProgress
from visgraft.training.setup import open_session
from visgraft.training.summary import peak_memory_bytes

pytestmark = pytest.mark.slow


def test_a_summary_adds_up_what_the_steps_say(tmp_path: Path, quiet: TrainProgress) -> None:
    started = time.monotonic()
    recipe = tiny_recipe(tmp_path, max_steps=4, validate_every_steps=1, exact_match_samples=2)
    run = Run.open(train(recipe, progress=quiet))
    took = time.monotonic() - started
    records = run.read_metrics()
    steps = [record for record in records if "loss" in record]
    best = min((r for r in records if "validation_loss" in r), key=lambda record: record["validation_loss"])
    summary = run.read_summary()
    assert summary is not None
    assert summary["steps"] == 4
    for key in ("samples", "dialogs", "text_tokens", "supervised_tokens"):
        assert summary[key] == sum(record[key] for record in steps) > 0
    assert summary["step_seconds"] == pytest.approx(sum(record["seconds"] for record in steps))
    assert summary["samples_per_second"] == pytest.approx(summary["samples"] / summary["step_seconds"])
    assert summary["step_seconds"] < summary["wall_seconds"] < took
    assert summary["hours"] == summary["wall_seconds"] / 3600
    assert (summary["joules"] is None) == (summary["joules_of"] == [])
    assert (summary["validation_step"], summary["validation_loss"]) == (best["step"], best["validation_loss"])
    assert summary["scores"] == {"exact_match": best["exact_match"]}
    assert (summary["loss"], summary["device"], summary["memory"]) == (steps[-1]["loss"], "cpu", "resident")


def test_trainable_parameters_are_those_that_the_optimizer_has(tmp_path: Path, quiet: TrainProgress) -> None:
    recipe = tiny_recipe(tmp_path, max_steps=1, vision="lora", head="full")
    summary = Run.open(train(recipe, progress=quiet)).read_summary()
    assert summary is not None
    session = open_session(load_recipe(recipe), progress=quiet)
    num_trained = sum(p.numel() for group in session.optimizer.param_groups for p in group["params"])
    assert sum(summary["trainable_parameters"].values()) == num_trained
    assert all(0 < count <= summary["parameters"][part] for part, count in summary["trainable_parameters"].items())
    assert sum(summary["parameters"].values()) == sum(p.numel() for p in session.model.parameters())


def test_a_run_that_was_stopped_sums_up_the_same_and_only_when_it_is_over(tmp_path: Path, quiet: TrainProgress) -> None:
    recipe = tiny_recipe(tmp_path, max_steps=4)
    whole = Run.open(train(recipe, progress=quiet)).read_summary()
    folder = tmp_path / "stopped"
    with pytest.raises(Interrupted):
        train(recipe, folder=folder, progress=quiet, stop=lambda step: step == 2)
    assert Run.open(folder).read_summary() is None
    train(resume=folder, progress=quiet)
    resumed = Run.open(folder).read_summary()
    assert whole is not None and resumed is not None
    of_time = {"step_seconds", "wall_seconds", "samples_per_second", "supervised_tokens_per_second"}
    of_time |= {"peak_memory_bytes", "hours", "joules"}
    assert {k: v for k, v in whole.items() if k not in of_time} == {
        k: v for k, v in resumed.items() if k not in of_time
    }
    assert resumed["wall_seconds"] > resumed["step_seconds"]


def test_a_finished_run_that_goes_on_has_no_summary_until_its_new_end(tmp_path: Path, quiet: TrainProgress) -> None:
    folder = train(tiny_recipe(tmp_path, max_steps=2), progress=quiet)
    longer = load_recipe(folder, overrides=["train.max_steps=4"])
    with pytest.raises(Interrupted):
        train(longer, resume=folder, progress=quiet, stop=lambda step: step == 3)
    assert Run.open(folder).read_summary() is None


def test_a_run_without_validation_data_has_no_score(tmp_path: Path, quiet: TrainProgress) -> None:
    recipe = tiny_recipe(tmp_path, max_steps=1)
    recipe["data"]["validation"] = []
    summary = Run.open(train(recipe, progress=quiet)).read_summary()
    assert summary is not None
    assert summary["scores"] == {}
    assert {summary[key] for key in summary if key.startswith("validation")} == {None}


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="Linux alone writes it there")
def test_peak_memory_is_what_the_system_says_of_this_process() -> None:
    lines = Path("/proc/self/status").read_text().splitlines()
    [highest] = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")]
    assert peak_memory_bytes(torch.device("cpu")) == pytest.approx(highest, rel=0.01)
