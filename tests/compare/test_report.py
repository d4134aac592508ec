"""The report's text and its charts: different data and lengths, safe text; the picture, Markdown and JSON."""

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.compare.made_runs import save_experiment, save_run
from tests.reporting.page_tree import read_page
from visgraft.compare.answers import gather
from visgraft.compare.charts import end_rows, live_chart, mean_rows, panels, raw_rows, still_chart
from visgraft.compare.collect import collect
from visgraft.compare.json_and_markdown import as_json, as_markdown
from visgraft.compare.report import write_picture, write_report
from visgraft.compare.variants import Comparison
from visgraft.errors import ConfigError
from visgraft.reporting.charts import LineStyles


def different(folder: Path) -> Comparison:
    """Three on the same data, of them one unfinished and one shorter; one on other data, of another tokenizer."""
    save_run(folder / "a", name="a", num_steps=40, validation="held-out")
    save_run(folder / "b", name="b", num_steps=12, planned_steps=40, train={"vision": "full"})
    save_run(folder / "c", name="c", num_steps=20, data="more", model={"language": "gpt2"})
    save_run(folder / "d", name="d", num_steps=30, train={"head": "full"})
    return collect([folder])


def test_curves_on_different_data_stand_apart_and_different_lengths_are_named(tmp_path: Path) -> None:
    found = panels(different(tmp_path).variants)
    assert [(p.split, [v.name for v in p.variants]) for p in found] == [
        ("training", ["a", "b", "d"]), ("training", ["c"]), ("validation", ["a", "b", "c", "d"]),
    ]  # fmt: skip
    assert found[0].notes == (
        "b is unfinished: it stopped after 768 texts",
        "d is shorter: 1,920 texts where the longest has 2,560",
    )
    assert [(row["variant"], row["steps"]) for row in end_rows(found[0])] == [("b", 12), ("d", 30)]
    assert {panel.title for panel in found} == {
        "Training loss per character of answer", "Validation loss per character of answer",
    }  # fmt: skip
    first = raw_rows(found[0])[0]
    assert first["loss"] == pytest.approx(collect([tmp_path / "a"]).runs[0].training.character[0], rel=1e-4)


def test_what_was_measured_once_is_drawn_as_dots_one_line_a_variant(tmp_path: Path) -> None:
    save_run(tmp_path / "a", name="a", validation="held-out", num_steps=10)
    save_run(tmp_path / "b", name="b", validation="held-out", num_steps=10, train={"vision": "full"})
    for run in ("a", "b"):
        path = tmp_path / run / "metrics.jsonl"
        records = [json.loads(line) for line in path.read_text().splitlines()]
        last = max(record["step"] for record in records if "validation_loss" in record)
        kept = [record for record in records if "validation_loss" not in record or record["step"] == last]
        path.write_text("".join(json.dumps(record) + "\n" for record in kept))
    training, validation = panels(collect([tmp_path]).variants)
    assert not training.is_single
    assert validation.is_single
    for drawn in (
        live_chart(validation, LineStyles(("a", "b")), shown=["a", "b"]),
        still_chart([validation], LineStyles(("a", "b")), shown=["a", "b"])[0].vconcat[0],
    ):
        layers = drawn.to_dict()["layer"]
        assert [layer["mark"]["type"] for layer in layers] == ["tick", "circle"]
        assert {layer["encoding"]["y"]["field"] for layer in layers} == {"variant"}


def test_the_page_says_why_losses_are_per_character_and_why_panels_are_apart(tmp_path: Path) -> None:
    comparison = different(tmp_path / "runs")
    page = read_page(write_report(comparison, [], tmp_path / "new" / "report.html", shown=["a"]))
    curves = page.section("How they learned")
    for words in (
        "These runs have different tokenizers", "Curves on different data stand in panels of their own",
        "✗ b is unfinished: it stopped after 768 texts",
    ):  # fmt: skip
        assert words in curves.text
    chips = {chip["data-name"]: chip for chip in page.all("button", "chip")}
    assert {name: chip["aria-pressed"] for name, chip in chips.items()} == {
        "a": "true", "b": "false", "c": "false", "d": "false",
    }  # fmt: skip
    assert [chips[name].one("small").text for name in "bd"] == [
        "projection + vision · unfinished", "projection + head",
    ]  # fmt: skip
    assert [figure["data-any"] for figure in page.all("figure")] == ["0 1 3", "2", "0 1 2 3"]
    assert [{row["variant"] for row in chart["datasets"]["raw"]} for chart in page.charts] == [
        {"a", "b", "d"}, {"c"}, {"a", "b", "c", "d"},
    ]  # fmt: skip
    assert page.section("What differs").table[0][:2] == ["variant", "model.language.name"]
    assert page.addresses == []
    with pytest.raises(ConfigError, match="is a folder"):
        write_report(comparison, [], tmp_path)


def test_many_curves_that_end_early_are_counted_and_named_behind_a_click(tmp_path: Path) -> None:
    save_run(tmp_path / "runs" / "long", name="long", num_steps=20)
    for seed in range(4):
        save_run(tmp_path / "runs" / f"short-{seed}", name="short", seed=seed, num_steps=10, train={"vision": "full"})
    page = read_page(write_report(collect([tmp_path / "runs"]), [], tmp_path / "report.html"))
    notes = page.one("details", "notes")
    assert notes.one("summary").text == "✗ 4 runs are shorter or not finished"
    assert [note.text for note in notes.all("p")] == [
        f"✗ short, seed {seed} is shorter: 640 texts where the longest has 1,280" for seed in range(4)
    ]


def test_answers_stand_beside_the_truth_and_their_text_is_made_safe(tmp_path: Path) -> None:
    comparison = collect([save_experiment(tmp_path / "modules", num_variants=7, num_steps=20)])
    page = read_page(write_report(comparison, gather(comparison.variants), tmp_path / "report.html"))
    caption, colour, number = page.section("Answers to the same questions").all("article", "question")
    for card in (caption, colour, number):
        now, before = card.all("dl")
        assert [row["data-variant"] for row in now.all("div")] == [str(n) for n in range(7)]
        assert [row.one("dd").text for row in now.all("div")][:6] == ["a dog & <b>"] * 6
        assert before.text.count("… never stopped") == 7  # in the first answers, over training
        assert card.one("img")["src"].startswith("data:image/")
    assert caption.one("header").text == "(a caption) truth: a cat on a sofa / a grey cat lies on a red sofa"
    assert colour.one("img")["alt"] == "What colour is the sofa?"
    last = colour.all("dl")[0].all("dd")[-1]
    assert last.text == "✓ red seed 0 a dog & <b> seed 1"  # its seeds disagree


def test_the_mean_over_seeds_lies_between_them_on_every_axis(tmp_path: Path) -> None:
    [training, _] = panels(collect([save_experiment(tmp_path / "m", num_variants=1, num_steps=50)]).variants)
    rows = mean_rows(training)
    assert {row["axis"] for row in rows} == {"steps", "samples", "minutes"}
    assert all(row["low"] <= row["loss"] <= row["high"] for row in rows)
    assert any(row["low"] < row["high"] for row in rows)


@pytest.mark.slow
def test_the_picture_holds_only_what_is_shown(tmp_path: Path) -> None:
    comparison = different(tmp_path / "runs")
    whole = write_picture(comparison, tmp_path / "new" / "all.png", shown=["a", "b", "c", "d"])
    part = write_picture(comparison, tmp_path / "part.png", shown=["a"])
    with Image.open(whole) as large, Image.open(part) as small:
        assert large.width > 1200
        assert large.getpixel((2, 2))[:3] == (255, 255, 255)
        assert large.height > 1.3 * small.height  # three panels against two
    with pytest.raises(ConfigError, match=r"is a folder: give the name of a \.png file"):
        write_picture(comparison, tmp_path, shown=["a"])


def test_markdown_and_json_say_what_the_page_says(tmp_path: Path) -> None:
    comparison = collect([save_experiment(tmp_path / "modules", num_variants=3, num_steps=20)])
    questions = gather(comparison.variants)
    values = json.loads(json.dumps(as_json(comparison, questions)))
    assert [variant["name"] for variant in values["variants"]] == ["projection", "lora", "language"]
    assert values["differences"] == {
        "train.language": {"projection": "frozen", "lora": "lora", "language": "full"}
    }  # fmt: skip
    assert values["results"]["validation_loss"]["language"]["is_best"]
    assert values["answers"][0]["answers"]["lora"][0]["text"] == "a dog & <b>"
    assert values["habits"]["lora"]["never_stopped"] == 0
    text = as_markdown(comparison, questions, shown=["projection", "lora"])
    assert "| lora | ★ " in text  # the best of those that are shown
    assert "| variant | `train.language` |" in text
    assert "| language |" not in text
    assert "| What colour is the sofa? | red | a dog & <b> | a dog & <b> |" in text


def test_runs_that_are_all_the_same_have_nothing_that_differs(tmp_path: Path) -> None:
    save_run(tmp_path / "a", name="a", num_steps=10)
    comparison = collect([tmp_path / "a"])
    page = read_page(write_report(comparison, [], tmp_path / "report.html"))
    for text in (as_markdown(comparison, [], shown=["a"]), page.section("What differs").text):
        assert "The recipes do not differ, but for seeds." in text
    assert as_json(comparison, [])["differences"] == {}
