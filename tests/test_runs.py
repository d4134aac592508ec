"""Run folders: whole at every moment, readable by anything, honest about what is missing."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from visgraft.atomic import append_record, whole_folder
from visgraft.config import Recipe, load_recipe
from visgraft.errors import CheckpointError
from visgraft.runs import Run, environment, find_model, read_experiment_record
from visgraft.sealed import Summed, write_sealed


@pytest.fixture
def recipe(recipe_values: dict[str, Any], tmp_path: Path) -> Recipe:
    return load_recipe({**recipe_values, "output": str(tmp_path / "runs"), "name": "my run"})


def test_a_new_run_holds_its_recipe_and_environment(recipe: Recipe) -> None:
    run = Run.create(recipe)
    assert load_recipe(run.folder) == load_recipe(run.first_recipe_path) == recipe
    assert run.first_recipe_path.name == "first_recipe.yaml"
    described = json.loads((run.folder / "environment.json").read_text())
    assert described["versions"]["torch"]
    assert {"date", "python", "platform", "cpu_count", "git_commit"} <= described.keys()


def test_a_run_keeps_what_it_depends_on(recipe: Recipe) -> None:
    assert Run.create(recipe).read_fingerprints() is None
    run = Run.create(recipe, fingerprints={"recipe": {}, "versions": {"torch": "2"}})
    assert run.read_fingerprints() == {"recipe": {}, "versions": {"torch": "2"}, "changes": []}
    run.write_fingerprints({"recipe": {}, "changes": [{"step": 1}]})
    with pytest.raises(CheckpointError, match=r"fingerprints\.json: cannot be read .*; bring it back, or remove it"):
        run.read_fingerprints()
    (run.folder / "first_recipe.yaml").unlink()  # as older versions left it
    assert run.first_recipe_path == run.recipe_path


def test_run_folders_are_named_by_date_and_name_and_never_collide(recipe: Recipe) -> None:
    names = {Run.create(recipe).folder.name for _ in range(3)}
    assert len(names) == 3
    assert all(re.fullmatch(r"\d{8}-\d{6}-my-run(-\d+)?", name) for name in names)


@pytest.mark.parametrize(
    ("values", "end"),
    [
        ({"model": {"vision": "openai/clip-b", "language": "facebook/opt"}}, "-clip-b-opt"),
        ({"model": {"start_from": "runs/2026-first"}}, "-from-2026-first"),
        ({"model": {"start_from": "x"}, "name": "../up"}, "-up"),
        ({"model": {"start_from": "x"}, "name": "日本"}, "-run"),
    ],
)
def test_a_run_without_a_plain_name_gets_one(values: dict[str, Any], end: str, tmp_path: Path) -> None:
    run = Run.create(load_recipe({**values, "output": str(tmp_path)}))
    assert run.folder.parent == tmp_path
    assert run.folder.name[15:] == end


def test_a_run_may_be_made_in_a_folder_of_its_own(recipe: Recipe, tmp_path: Path) -> None:
    assert Run.create(recipe, folder=tmp_path / "a" / "b").folder == tmp_path / "a" / "b"
    with pytest.raises(CheckpointError, match="already there and not an empty folder; name another"):
        Run.create(recipe, folder=tmp_path / "a" / "b")


def test_open_gives_the_run_that_create_made(recipe: Recipe) -> None:
    run = Run.create(recipe)
    assert Run.open(str(run.folder)) == run


def test_open_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="gone: no such run folder; need the folder that `visgraft train` made"):
        Run.open(tmp_path / "gone")
    with pytest.raises(CheckpointError, match=r"not a run folder: it holds no recipe\.yaml"):
        Run.open(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"a model folder: it holds no recipe\.yaml"):
        Run.open(tmp_path)


class _NumpyLike:
    def item(self) -> float:
        return 0.5


def test_records_are_one_json_object_a_line(recipe: Recipe) -> None:
    run = Run.create(recipe)
    run.append("metrics", {"step": 1, "loss": math.nan, "rate": _NumpyLike(), "path": Path("a"), "parts": [math.inf]})
    run.append("metrics", {"step": 2, "answer": "犬\n"})
    lines = (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == run.read_metrics()
    assert run.read_metrics()[0] == {"step": 1, "loss": None, "rate": 0.5, "path": "a", "parts": [None]}
    assert run.read("samples") == []


def test_a_torn_last_line_is_left_out_and_never_glued_to_the_next(recipe: Recipe) -> None:
    run = Run.create(recipe)
    run.append("metrics", {"step": 1})
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    assert run.read_metrics() == [{"step": 1}]
    run.resume_from(1)
    run.append("metrics", {"step": 2})
    assert run.read_metrics() == [{"step": 1}, {"step": 2}]


def test_a_broken_line_inside_is_an_error_with_its_number(recipe: Recipe) -> None:
    run = Run.create(recipe)
    (run.folder / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: line 2 is not JSON: .*; mend or remove the line"):
        run.read_metrics()


def test_steps_that_a_resumed_run_made_again_count_once(recipe: Recipe) -> None:
    run = Run.create(recipe)
    for step in (1, 2, 3):
        run.append("metrics", {"step": step, "loss": 1.0})
        run.append("samples", {"step": step, "answer": "first"})
    run.resume_from(2)
    run.append("metrics", {"step": 3, "loss": 2.0})
    assert [(record["step"], record["loss"]) for record in run.read_metrics()] == [(1, 1.0), (2, 1.0), (3, 2.0)]
    assert [record["step"] for record in run.read("samples")] == [1, 2]
    assert len((run.folder / "metrics.jsonl").read_text().splitlines()) == 5  # append-only


def test_a_checkpoint_brings_every_log_to_the_disk(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.create(recipe)
    logs = [run.folder / f"{log}.jsonl" for log in ("metrics", "samples", "quarantine")]
    for path in logs:
        append_record(path, {"step": 1})
    synced: list[tuple[int, int]] = []
    monkeypatch.setattr("os.fsync", lambda file: synced.append((os.fstat(file).st_dev, os.fstat(file).st_ino)))
    assert run.sync_logs() == {"metrics": 12, "samples": 12}  # quarantine knows which samples it holds
    assert synced == [(path.stat().st_dev, path.stat().st_ino) for path in logs]


def test_what_was_logged_after_a_checkpoint_counts_once_however_often_the_run_was_killed(recipe: Recipe) -> None:
    run = Run.create(recipe)
    run.append("metrics", {"step": 3, "loss": 1.0})
    logs = run.sync_logs()
    for _ in range(3):  # resumed, validated and killed before the next checkpoint: the step is still that of the first
        run.append("metrics", {"step": 3, "validation_loss": 2.0})
        run.append("samples", {"step": 3, "answer": "a cat"})
        run.resume_from(3, logs=logs)
    assert (run.read_metrics(), run.read("samples")) == ([{"step": 3, "loss": 1.0}], [])
    run.append("metrics", {"step": 3, "validation_loss": 2.0})
    logs = run.sync_logs()
    run.append("metrics", {"step": 4, "loss": 0.5})
    run.resume_from(3, logs=logs)
    assert run.read_metrics() == [{"step": 3, "loss": 1.0}, {"step": 3, "validation_loss": 2.0}]


@pytest.mark.parametrize("tail", ['{"a": 2', '{"a": 2}', "x" * 100_000, ""])
def test_a_torn_last_line_is_mended_before_the_next_record(tmp_path: Path, tail: str) -> None:
    path = tmp_path / "a.jsonl"
    append_record(path, {"a": 1})
    with path.open("a") as file:
        file.write(tail)
    append_record(path, {"a": 3})
    assert path.read_text() == '{"a": 1}\n{"a": 3}\n'


def test_what_state_a_run_is_in_is_read_off_its_folder(recipe: Recipe, tmp_path: Path) -> None:
    assert Run(tmp_path / "nowhere").status() == "new"
    run = Run.create(recipe)
    seen = [run.last_changes()]
    assert (run.status(), run.read_failure()) == ("unfinished", None)
    run.failure_path.write_text("no memory\n")
    seen.append(run.last_changes())
    assert (run.status(), run.read_failure()) == ("failed", "no memory")
    run.summary_path.write_text("{}")
    seen.append(run.last_changes())
    assert run.status() == "finished"
    run.resume_from(0)
    run.failure_path.unlink()
    assert run.status() == "unfinished"
    assert len(set(seen)) == 3


def test_steps_and_validations_are_told_apart(recipe: Recipe) -> None:
    run = Run.create(recipe)
    step, validation = {"step": 1, "loss": math.nan}, {"step": 1, "validation_loss": 2.0, "exact_match": 0.5}
    for record in (step, validation, {"step": 1, "note": "neither"}):
        run.append("metrics", record)
    assert (run.steps(), run.validations()) == ([{"step": 1, "loss": None}], [validation])


def test_the_record_of_an_experiment_names_folder_and_variant_of_each_run(tmp_path: Path) -> None:
    assert read_experiment_record(tmp_path) is None
    (tmp_path / "experiment.yaml").write_text("name: a\nruns: [{folder: x-seed0, variant: x}]\n")
    assert read_experiment_record(tmp_path) == {"name": "a", "runs": [{"folder": "x-seed0", "variant": "x"}]}
    for broken in ("runs: 3", "runs: [{folder: x}]", "[", "a: \xff"):
        (tmp_path / "experiment.yaml").write_bytes(broken.encode("latin-1"))
        with pytest.raises(CheckpointError, match=r"experiment\.yaml: cannot be read as the record of an experiment"):
            read_experiment_record(tmp_path)


def save(run: Run, step: int, *, content: str = "all") -> Path:
    """Write a checkpoint of one file."""
    with whole_folder(run.checkpoint_path(step)) as folder:
        with (folder / "weights").open("wb") as file:
            summed = Summed(file)
            summed.write(content.encode())
        write_sealed(folder / "state.json", {"step": step, "files": {"weights": summed.sum}})
    return run.checkpoint_path(step)


def test_the_newest_whole_checkpoint_is_taken_and_damaged_ones_are_named(recipe: Recipe) -> None:
    run = Run.create(recipe)
    with pytest.raises(CheckpointError, match="holds no checkpoint to resume from; start the recipe again"):
        run.latest_checkpoint()
    for step in (2, 3, 4):
        save(run, step)
    assert run.latest_checkpoint() == (4, run.folder / "checkpoints" / "step-4")
    (run.checkpoint_path(4) / "weights").write_text("ale")
    (run.checkpoint_path(3) / "state.json").unlink()
    said: list[str] = []
    assert run.latest_checkpoint(say=said.append)[0] == 2
    assert [re.sub(r".*/checkpoints/", "", line) for line in said] == [
        "step-4/weights: damaged: its bytes are not those that were written: going on from step 2, the newest whole "
        "checkpoint",
        "step-3/state.json: missing: going on from step 2, the newest whole checkpoint",
    ]
    (run.checkpoint_path(2) / "weights").write_text("al")
    with pytest.raises(CheckpointError, match=r"no checkpoint is whole; .*step-4/weights.*step-2/weights: damaged: 2"):
        run.latest_checkpoint()


def test_what_a_kill_left_goes_away_when_the_run_goes_on(recipe: Recipe) -> None:
    run = Run.create(recipe)
    inside = save(run, 3)
    kept = sorted(path.name for path in run.folder.iterdir())
    for folder in (".step-7.new", ".step-2.gone"):
        (run.folder / "checkpoints" / folder / "deep").mkdir(parents=True)
    (run.folder / "sample_prompts").mkdir()
    kept.append("sample_prompts")
    for folder in (".model.new", ".model.new.gone"):
        (run.folder / folder).mkdir()
        (run.folder / folder / ".config.json.1234.new").write_text("half")
    (run.folder / ".recipe.yaml.1234.new").write_text("half")
    (run.folder / "sample_prompts" / ".3.jpg.1234.new").write_text("half")
    (inside / ".state.json.1234.new").write_text("half")
    assert list(run.checkpoints()) == [3]
    run.resume_from(3)
    assert sorted(path.name for path in run.folder.iterdir()) == kept
    assert [path.name for path in (run.folder / "checkpoints").iterdir()] == ["step-3"]
    assert sorted(path.name for path in inside.iterdir()) == ["state.json", "weights"]


def test_what_a_kill_left_of_a_run_that_was_not_there_yet_goes_away_when_it_is_begun(
    recipe: Recipe, tmp_path: Path
) -> None:
    folder = tmp_path / "begun"
    folder.mkdir()
    for name in ("environment.json", ".fingerprints.json.1234.new", ".recipe.yaml.1234.new"):
        (folder / name).write_text("half")
    Run.create(recipe, folder=folder)
    assert sorted(path.name for path in folder.iterdir()) == ["environment.json", "first_recipe.yaml", "recipe.yaml"]


def test_a_kill_between_two_renames_loses_no_checkpoint(recipe: Recipe) -> None:
    run = Run.create(recipe)
    save(run, 3).rename(run.folder / "checkpoints" / ".step-3.old")
    save(run, 4).rename(run.folder / "checkpoints" / ".step-4.new")
    assert run.latest_checkpoint()[0] == 3
    run.resume_from(3)
    assert run.latest_checkpoint() == (3, run.checkpoint_path(3))
    assert [path.name for path in (run.folder / "checkpoints").iterdir()] == ["step-3"]


def test_later_checkpoints_which_are_damaged_are_kept_aside_until_the_next_is_saved(recipe: Recipe) -> None:
    run = Run.create(recipe)
    for step in (2, 3, 4):
        save(run, step)
    run.resume_from(2)
    assert run.checkpoints() == {2: run.checkpoint_path(2)}
    assert (run.folder / "checkpoints" / "step-4.damaged").is_dir()
    save(run, 3)
    run.prune_checkpoints(keep=1)
    assert [path.name for path in (run.folder / "checkpoints").iterdir()] == ["step-3"]


def test_checkpoints_are_listed_by_number_and_pruned_from_the_oldest(recipe: Recipe) -> None:
    run = Run.create(recipe)
    for step in (9, 10, 100, 20):
        save(run, step)
    assert list(run.checkpoints()) == [9, 10, 20, 100]
    run.prune_checkpoints(keep=2, protect=[9])
    assert list(run.checkpoints()) == [9, 20, 100]
    run.prune_checkpoints(keep=5)
    assert list(run.checkpoints()) == [9, 20, 100]


def test_a_run_stands_for_its_model(recipe: Recipe, tmp_path: Path) -> None:
    run = Run.create(recipe)
    with pytest.raises(CheckpointError, match="this run has no model yet; finish it with `visgraft train --resume"):
        find_model(run.folder)
    run.model_path.mkdir()
    assert find_model(run.folder) == str(run.folder / "model")
    assert find_model(tmp_path) == str(tmp_path)
    assert find_model("some/model") == "some/model"


def test_the_environment_outside_a_repository_names_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert environment()["git_commit"] is None


def test_recipes_and_runs_import_no_torch() -> None:
    code = "import sys, visgraft, visgraft.runs; visgraft.Recipe; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
