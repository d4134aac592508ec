"""Names of variants: runs of one recipe name are told apart by what differs, wherever a name stands."""

from pathlib import Path

import pytest

from tests.compare.made_runs import save_experiment, save_run
from tests.reporting.page_tree import read_page
from visgraft.compare.charts import panels
from visgraft.compare.collect import collect
from visgraft.compare.json_and_markdown import as_json, as_markdown
from visgraft.compare.report import write_report


def names(*paths: Path) -> list[str]:
    return [variant.name for variant in collect(paths).variants]


def test_one_or_two_settings_that_differ_tell_runs_of_one_name_apart(tmp_path: Path) -> None:
    save_run(tmp_path / "1", name="coco", num_steps=5)
    save_run(tmp_path / "2", name="coco", num_steps=5, train={"language": "lora"})
    save_run(tmp_path / "3", name="other", num_steps=5, train={"vision": "full"})
    assert names(tmp_path) == ["coco (language frozen)", "coco (language lora)", "other"]
    save_run(tmp_path / "4", name="coco", num_steps=5, model={"language": "gpt2"})
    assert names(tmp_path) == [
        "coco (language.name facebook/opt-350m, language frozen)",
        "coco (language.name facebook/opt-350m, language lora)", "other",
        "coco (language.name gpt2, language frozen)",
    ]  # fmt: skip


def test_settings_whose_last_words_are_the_same_are_named_in_full(tmp_path: Path) -> None:
    save_run(tmp_path / "1", name="a", num_steps=5, data="x", validation="y")
    save_run(tmp_path / "2", name="a", num_steps=5, data="x2", validation="y2")
    assert names(tmp_path) == ["a (train.0.path x, validation.0.path y)", "a (train.0.path x2, validation.0.path y2)"]


@pytest.mark.parametrize("modes", [{"language": "lora", "vision": "full", "head": "full"}, {"learning_rate": "long"}])
def test_where_much_differs_or_a_value_is_long_the_folders_tell(tmp_path: Path, modes: dict[str, str]) -> None:
    changes = {"train": modes} if "vision" in modes else {"data": "a/folder/whose/name/is/very/long"}
    save_run(tmp_path / "20260102-030405-coco", name="coco", num_steps=5)
    save_run(tmp_path / "second-seed0", name="coco", num_steps=5, **changes)  # type: ignore[arg-type]
    save_run(tmp_path / "second-seed1", name="coco", seed=1, num_steps=5, **changes)  # type: ignore[arg-type]
    assert names(tmp_path) == ["coco (20260102-030405)", "coco (second)"]


def test_folders_of_one_name_are_told_apart_by_those_around_them(tmp_path: Path) -> None:
    for outer, modes in (("monday", {}), ("tuesday", {"language": "lora", "vision": "full", "head": "full"})):
        save_run(tmp_path / outer / "run", name="coco", num_steps=5, train=modes)
    assert names(tmp_path / "monday" / "run", tmp_path / "tuesday" / "run") == [
        "coco (monday/run)", "coco (tuesday/run)",
    ]  # fmt: skip


def test_variants_of_two_experiments_are_told_apart_too(tmp_path: Path) -> None:
    first = save_experiment(tmp_path / "first", num_variants=2, num_steps=5)
    second = save_experiment(tmp_path / "second", num_variants=1, seeds=1, num_steps=10)
    found = names(first, second)
    assert found[1] == "lora"
    assert len(set(found)) == 3
    assert "second" in found[2] or "max_steps 10" in found[2]


def test_a_recipe_that_is_called_as_what_tells_others_apart_gets_a_number(tmp_path: Path) -> None:
    save_run(tmp_path / "1", name="a", num_steps=5)
    save_run(tmp_path / "2", name="a", num_steps=5, train={"learning_rate": 0.5})
    save_run(tmp_path / "3", name="a (learning_rate 0.5)", num_steps=5, train={"head": "full"})
    assert names(tmp_path) == ["a (learning_rate 0.0001)", "a (learning_rate 0.5)", "a (learning_rate 0.5) (2)"]


def test_legend_tables_curves_and_programs_use_these_names(tmp_path: Path) -> None:
    save_run(tmp_path / "runs" / "1", name="a", num_steps=10)
    save_run(tmp_path / "runs" / "2", name="a", num_steps=10, train={"learning_rate": 0.5})
    comparison = collect([tmp_path / "runs"])
    expected = ["a (learning_rate 0.0001)", "a (learning_rate 0.5)"]
    page = read_page(write_report(comparison, [], tmp_path / "report.html", shown=expected[:1]))
    assert [(chip["data-name"], chip.one("b").text) for chip in page.all("button", "chip")] == [
        (name, name) for name in expected
    ]
    for heading in ("What differs", "Results"):
        assert [row[0] for row in page.section(heading).table[1:]] == expected
    for name in expected:
        assert f"| {name} |" in as_markdown(comparison, [], shown=expected)
    assert [variant["name"] for variant in as_json(comparison, [])["variants"]] == expected
    assert [variant.name for panel in panels(comparison.variants) for variant in panel.variants] == expected * 2
