"""Runs are made once, gone on with, scheduled side by side, and fail alone."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.experiment.made import Done, Reports, run_here, write_experiment
from visgraft.errors import CheckpointError, ConfigError
from visgraft.experiment import PlannedRun, load_experiment, run_experiment
from visgraft.experiment.run_folders import action_for
from visgraft.experiment.variant_results import as_table, as_values, results_of
from visgraft.folder_lock import LOCK_FILE, FolderLock
from visgraft.runs import Run, read_experiment_record
from visgraft.training.interrupt import Interrupted
from visgraft.training.loop import train
from visgraft.training.progress import TrainProgress, make_progress

pytestmark = pytest.mark.slow


@pytest.fixture
def quiet() -> TrainProgress:
    return make_progress(show=False)


def test_every_run_is_made_once_with_the_same_probes(tmp_path: Path) -> None:
    experiment = load_experiment(write_experiment(tmp_path, seeds=2))
    reports = Reports()
    outcomes = run_experiment(experiment, launch=run_here, progress=reports)
    assert [outcome.reason for outcome in outcomes] == [None] * 4
    assert reports.lines[:3] == ["0 of 4 finished", "projection-seed0 started on None", "projection-seed0 ended"]
    sample_prompts = [Run.open(outcome.folder).read("samples") for outcome in outcomes]
    asked = [[(record["id"], record["prompt"], record["expected"]) for record in records] for records in sample_prompts]
    assert asked[0] and all(each == asked[0] for each in asked)
    trained = [Run.open(outcome.folder).read_summary() or {} for outcome in outcomes]
    assert [bool(summary["trainable_parameters"]["language"]) for summary in trained] == [False, False, True, True]
    record = read_experiment_record(experiment.folder) or {}
    assert record["name"] == "tiny"
    assert record["runs"][2] == {"folder": "lora-seed0", "variant": "lora", "seed": 0, "changes": {}}
    again = Reports()
    run_experiment(experiment, launch=run_here, progress=again)
    assert again.lines == ["4 of 4 finished"]


def test_a_begun_run_is_gone_on_with_and_ends_as_if_never_stopped(tmp_path: Path, quiet: TrainProgress) -> None:
    path = write_experiment(tmp_path, variants={"lora": {}})
    whole = load_experiment(path, output=tmp_path / "whole")
    run_experiment(whole, launch=run_here, progress=Reports())
    experiment = load_experiment(path, output=tmp_path / "stopped")
    [run] = experiment.runs
    with pytest.raises(Interrupted):
        train(run.recipe, folder=experiment.folder_of(run), progress=quiet, stop=lambda step: step == 1)
    assert action_for(experiment.folder_of(run)) == "resume"
    reports = Reports()
    run_experiment(experiment, launch=run_here, progress=reports)
    assert reports.lines[1] == "lora-seed0 resumed on None"
    first, second = (Run.open(each.folder_of(run)).read_summary() or {} for each in (whole, experiment))
    assert first["validation_loss"] == second["validation_loss"]


def test_what_stopped_before_its_first_checkpoint_is_made_again(tmp_path: Path) -> None:
    experiment = load_experiment(write_experiment(tmp_path, variants={"lora": {}}))
    [run] = experiment.runs
    Run.create(run.recipe, folder=experiment.folder_of(run)).append("metrics", {"step": 1, "loss": 1.0})
    [outcome] = run_experiment(experiment, launch=run_here, progress=Reports())
    assert [record["step"] for record in Run.open(outcome.folder).read_metrics() if "loss" in record] == [1, 2]


def test_a_run_that_another_process_trains_is_left_to_it(tmp_path: Path) -> None:
    experiment = load_experiment(write_experiment(tmp_path, variants={"lora": {}, "other": {}}))
    folder = experiment.folder_of(experiment.runs[0])
    folder.mkdir(parents=True)
    with FolderLock() as lock:
        lock.take(folder, say=print)
        held, other = run_experiment(experiment, launch=run_here, progress=Reports())
        assert (folder / LOCK_FILE).exists()
    assert held.reason is not None
    assert re.fullmatch(rf"not run: process {os.getpid()} on .* is training it", held.reason)
    assert other.reason is None
    [held, _] = run_experiment(experiment, launch=run_here, progress=Reports())
    assert held.reason is None


def test_one_failure_stops_only_what_starts_from_it(tmp_path: Path) -> None:
    variants = {
        "bad": {"train.lora.target_modules": ["q_prj"]},
        "second": {"model.start_from": {"variant": "bad"}, "train.lora.target_modules": None},
        "good": {},
    }
    experiment = load_experiment(write_experiment(tmp_path, variants=variants))
    bad, second, good = run_experiment(experiment, launch=run_here, progress=Reports())
    assert bad.reason is not None and "'q_prj' matches no linear" in bad.reason
    assert "q_prj" in (bad.folder / "failure.txt").read_text()
    assert second.reason == "not run: it starts from bad-seed0, which failed"
    assert good.reason is None
    rows = {result.variant: result for result in results_of([bad, second, good])}
    assert (rows["bad"].trainable, rows["bad"].minutes) == (None, [])
    assert len(rows["good"].validation_losses) == 1
    assert [value["failed"] is None for value in as_values([bad, second, good])] == [False, False, True]
    assert as_table(list(rows.values())).row_count == 3


def test_a_failed_run_is_tried_again(tmp_path: Path) -> None:
    experiment = load_experiment(write_experiment(tmp_path, variants={"lora": {}}))
    [outcome] = run_experiment(experiment, launch=lambda *_: Done(1, "no memory"), progress=Reports())
    assert outcome.reason == "no memory"
    assert (outcome.folder / "failure.txt").read_text() == "no memory\n\nno memory\n"
    [outcome] = run_experiment(experiment, launch=run_here, progress=Reports())
    assert outcome.reason is None
    assert not (outcome.folder / "failure.txt").exists()


def test_a_second_stage_starts_from_the_model_of_the_first(tmp_path: Path) -> None:
    second = {"model.start_from": {"variant": "lora"}, "train.max_steps": 1, "train.lora.r": 4}
    experiment = load_experiment(write_experiment(tmp_path, variants={"second": second, "lora": {}}))
    reports = Reports()
    outcomes = run_experiment(experiment, launch=run_here, progress=reports)
    assert [outcome.run.folder_name for outcome in outcomes] == ["lora-seed0", "second-seed0"]
    assert {outcome.reason for outcome in outcomes} == {None}
    first, last = (Run.open(outcome.folder).read_summary() or {} for outcome in outcomes)
    assert last["parameters"]["language"] == first["parameters"]["language"] + last["trainable_parameters"]["language"]


def test_a_run_that_was_made_with_other_settings_is_refused(tmp_path: Path) -> None:
    path = write_experiment(tmp_path, variants={"lora": {}})
    run_experiment(load_experiment(path), launch=run_here, progress=Reports())
    changed = load_experiment(path, overrides=["train.learning_rate=0.5"])
    with pytest.raises(ConfigError, match=r"lora-seed0: was run with train\.learning_rate 0\.01, but now it is 0\.5"):
        run_experiment(changed, launch=run_here, progress=Reports())
    indifferent = load_experiment(path, overrides=["train.num_workers=1", "train.micro_batch_rows=1"])
    assert run_experiment(indifferent, launch=run_here, progress=Reports())[0].reason is None


def test_what_is_no_run_is_never_removed(tmp_path: Path) -> None:
    experiment = load_experiment(write_experiment(tmp_path, variants={"lora": {}}))
    place = experiment.folder / "lora-seed0"
    place.mkdir(parents=True)
    (place / "thesis.txt").write_text("three years")
    with pytest.raises(CheckpointError, match="lora-seed0: is in the way of the run of that name and no run"):
        run_experiment(experiment, launch=run_here, progress=Reports())
    assert (place / "thesis.txt").read_text() == "three years"


def test_a_record_keeps_what_other_calls_ran_and_a_broken_one_is_said(tmp_path: Path) -> None:
    path = write_experiment(tmp_path)
    experiments = [load_experiment(path, only=[name]) for name in ("lora", "projection")]
    for experiment in experiments:
        run_experiment(experiment, launch=lambda *_: Done(0, ""), progress=Reports())
    folder = experiments[0].folder
    assert [entry["variant"] for entry in (read_experiment_record(folder) or {})["runs"]] == ["lora", "projection"]
    (folder / "experiment.yaml").write_text(yaml.safe_dump(["no", "record"]))
    with pytest.raises(
        CheckpointError,
        match="record of an experiment: need `runs`, each with folder and variant; remove it",
    ):
        run_experiment(experiments[0], launch=run_here, progress=Reports())


class Slow:
    """A job that runs until it is let go."""

    def __init__(self, name: str, device: str | None, log: list[tuple[str, str | None]], looks: int) -> None:
        self.looks = looks
        log.append((name, device))

    def poll(self) -> int | None:
        self.looks -= 1
        return None if self.looks > 0 else 0

    def interrupt(self) -> None:
        raise AssertionError("no one interrupts it")

    kill = interrupt

    def failure(self) -> tuple[str, str]:
        raise AssertionError("it did not fail")


def launching(log: list[tuple[str, str | None]], looks: dict[str, int]) -> Callable[..., Any]:
    def launch(run: PlannedRun, folder: Path, device: str | None, say: Callable[[str], None]) -> Slow:
        return Slow(run.folder_name, device, log, looks.get(run.variant, 1))

    return launch


def test_a_device_gets_the_next_run_as_soon_as_it_is_free(tmp_path: Path) -> None:
    variants: dict[str, Any] = {name: {} for name in "abcde"}
    log: list[tuple[str, str | None]] = []
    experiment = load_experiment(write_experiment(tmp_path, variants=variants))
    run_experiment(experiment, devices=["0", "3"], launch=launching(log, {"a": 9, "b": 2, "c": 2}), progress=Reports())
    assert log == [("a-seed0", "0"), ("b-seed0", "3"), ("c-seed0", "3"), ("d-seed0", "3"), ("e-seed0", "3")]


def test_a_run_waits_for_the_one_that_it_starts_from_while_others_go_first(tmp_path: Path) -> None:
    variants = {"a": {}, "second": {"model.start_from": {"variant": "a"}}, "b": {}, "c": {}}
    log: list[tuple[str, str | None]] = []
    experiment = load_experiment(write_experiment(tmp_path, variants=variants))
    run_experiment(experiment, devices=["0", "1"], launch=launching(log, {"a": 3, "b": 2, "c": 9}), progress=Reports())
    assert [name for name, _ in log] == ["a-seed0", "b-seed0", "c-seed0", "second-seed0"]
