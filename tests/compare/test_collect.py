"""Which runs are found, how they become variants, and what is said of folders that are no runs."""

from pathlib import Path

import pytest

from tests.compare.made_runs import save_experiment, save_run
from visgraft.compare.collect import check_common_data, choose, collect, find_runs
from visgraft.errors import CheckpointError, ConfigError


def test_an_experiment_gives_its_variants_in_its_own_order_with_their_seeds(tmp_path: Path) -> None:
    comparison = collect([save_experiment(tmp_path / "modules", num_variants=3, num_steps=20)])
    assert [(v.name, [run.seed for run in v.runs]) for v in comparison.variants] == [
        ("projection", [0, 1]), ("lora", [0, 1]), ("language", [0, 1]),
    ]  # fmt: skip
    assert {run.status for run in comparison.runs} == {"finished"}


def test_runs_of_no_experiment_that_differ_only_in_their_seed_are_one_variant(tmp_path: Path) -> None:
    for seed in (1, 0):
        save_run(tmp_path / f"a-{seed}", name="a", seed=seed, num_steps=10)
    save_run(tmp_path / "b", name="a", num_steps=10, train={"learning_rate": 0.5})
    comparison = collect([tmp_path / name for name in ("a-1", "a-0", "b", "a-0")])
    assert [(v.name, [run.seed for run in v.runs]) for v in comparison.variants] == [
        ("a (learning_rate 0.0001)", [0, 1]), ("a (learning_rate 0.5)", [0]),
    ]  # fmt: skip


def test_a_folder_of_runs_needs_no_experiment_file(tmp_path: Path) -> None:
    save_run(tmp_path / "runs" / "20260102-030405-a", num_steps=10)
    assert [found.folder.name for found in find_runs([tmp_path / "runs"])] == ["20260102-030405-a"]


def test_a_run_without_a_summary_is_unfinished_and_a_failed_one_says_so(tmp_path: Path) -> None:
    save_run(tmp_path / "half", num_steps=10, planned_steps=20)
    failed = save_run(tmp_path / "failed", name="b", num_steps=10, planned_steps=20)
    (failed / "failure.txt").write_text("out of memory")
    nearly = save_run(tmp_path / "nearly", name="c", num_steps=10, with_summary=False)
    whole = save_run(tmp_path / "whole", name="d", num_steps=10)
    assert [run.status for run in collect([tmp_path / "half", failed, nearly, whole]).runs] == [
        "unfinished", "failed", "unfinished", "finished",
    ]  # fmt: skip


def test_runs_of_an_experiment_that_have_no_metrics_are_left_out_and_named(tmp_path: Path) -> None:
    folder = save_experiment(tmp_path / "modules", num_variants=2, seeds=1, num_steps=10)
    (folder / "lora-seed0" / "metrics.jsonl").unlink()
    comparison = collect([folder])
    assert [variant.name for variant in comparison.variants] == ["projection"]
    assert comparison.notes == ("lora-seed0: not begun yet",)
    (folder / "lora-seed0" / "failure.txt").write_text("no such data\n")
    assert collect([folder]).notes == ("lora-seed0: failed before its first step: no such data",)
    (folder / "projection-seed0" / "metrics.jsonl").unlink()
    with pytest.raises(CheckpointError, match="no run there has metrics yet; projection-seed0: not begun yet"):
        collect([folder])


def test_what_is_no_run_is_refused_with_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere: no such run folder"):
        collect([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"neither a run nor a folder of runs: it holds no recipe\.yaml"):
        collect([tmp_path / "empty"])
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="a model folder"):
        collect([tmp_path / "model"])
    run = save_run(tmp_path / "run", num_steps=5)
    (run / "metrics.jsonl").unlink()
    with pytest.raises(CheckpointError, match="this run has no metrics yet, so there is nothing to compare"):
        collect([run])


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    run = save_run(tmp_path / "a", num_steps=5)
    (run / "summary.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"summary\.json: is not JSON"):
        collect([run])
    (run / "recipe.yaml").write_text("modell: {}\n")
    with pytest.raises(ConfigError, match="its recipe cannot be read: modell"):
        collect([run])
    (tmp_path / "experiment.yaml").write_text("runs: 3\n")
    with pytest.raises(CheckpointError, match=r"experiment\.yaml: cannot be read as the record .*: need `runs`"):
        collect([tmp_path])


def test_only_names_variants_and_a_wrong_name_gets_the_nearest(tmp_path: Path) -> None:
    comparison = collect([save_experiment(tmp_path / "modules", num_variants=3, seeds=1, num_steps=10)])
    assert choose(comparison, []) == ["projection", "lora", "language"]
    assert choose(comparison, ["language", "lora"]) == ["lora", "language"]
    with pytest.raises(ConfigError, match=r"--only langage: no variant has that name; did you mean language\?"):
        choose(comparison, ["langage"])
    with pytest.raises(ConfigError, match="there are projection, lora, language"):
        choose(comparison, ["xyz"])


def test_only_takes_the_folder_of_a_run_too(tmp_path: Path) -> None:
    save_run(tmp_path / "slow", name="a", num_steps=10)
    save_run(tmp_path / "fast", name="a", num_steps=10, train={"learning_rate": 0.5})
    comparison = collect([tmp_path / "slow", tmp_path / "fast"])
    assert choose(comparison, ["fast"]) == choose(comparison, ["a (learning_rate 0.5)"]) == ["a (learning_rate 0.5)"]
    with pytest.raises(ConfigError, match=r"--only fats: no variant has that name; did you mean fast\?"):
        choose(comparison, ["fats"])


def test_runs_that_share_no_data_at_all_are_refused(tmp_path: Path) -> None:
    save_run(tmp_path / "a", name="a", num_steps=10, data="x", validation="y")
    save_run(tmp_path / "b", name="b", num_steps=10, data="z", validation=None)
    with pytest.raises(ConfigError, match="a, b: no two of these share training or held-out data"):
        check_common_data(collect([tmp_path]))
    save_run(tmp_path / "c", name="c", num_steps=10, data="z", validation="y")
    check_common_data(collect([tmp_path]))
    check_common_data(collect([tmp_path / "a"]))
