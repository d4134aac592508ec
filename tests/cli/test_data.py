import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import yaml
from PIL import Image

from tests.cli.conftest import Visgraft
from tests.reporting.page_tree import read_page
from visgraft.builder.build import build_processor
from visgraft.cli.check_page import print_check
from visgraft.config import SourceSettings, load_recipe
from visgraft.data.check import check_sources
from visgraft.data.findings import find
from visgraft.data.source_report import SourceReport
from visgraft.data.sources import open_sources


@pytest.fixture
def recipe(tmp_path: Path, folder: Path) -> Path:
    """Nine rows about four images, one row bad, one image broken."""
    data = tmp_path / "data"
    data.mkdir()
    for number in range(4):
        Image.new("RGB", (40 + number, 30), (60 * number, 80, 90)).save(data / f"{number}.png")
    (data / "3.png").write_bytes(b"no image")
    rows = [{"file_name": f"{i % 4}.png", "question": f"What is {i}?", "answer": f"It is {i}."} for i in range(8)]
    lines = [*(json.dumps(row) for row in rows), "", "{oops"]
    (data / "metadata.jsonl").write_text("\n".join(lines))
    values = {
        "model": {"vision": str(folder / "tiny-clip"), "language": str(folder / "tiny-llama")},
        "data": {"train": [{"source": "folder", "path": str(data)}]},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "recipe.yaml"


def test_check_counts_what_is_there_and_what_is_bad(visgraft: Visgraft, recipe: Path) -> None:
    outcome = visgraft("data", "check", recipe, "--json", "--workers", "0")
    assert outcome.status == 0 and outcome.err == ""
    [source] = json.loads(outcome.out)["sources"]
    assert (source["source"], source["part"]) == ("folder", "train")
    counts = {key: source[key] for key in ("samples", "images", "texts", "texts_per_image", "bad", "bad_allowed")}
    assert counts == {"samples": 5, "images": 3, "texts": 6, "texts_per_image": 2.0, "bad": 2, "bad_allowed": 5}
    assert source["reasons"] == {"not an image": 1, "line is not JSON": 1}
    assert source["examples"]["line is not JSON"] == ["metadata.jsonl line 10"]
    assert 0 < source["tokens"]["median"] <= source["tokens"]["p95"] <= source["tokens"]["max"]


def test_check_prints_a_table_and_says_no_past_the_budget(visgraft: Visgraft, recipe: Path) -> None:
    outcome = visgraft("data", "check", recipe, "--workers", "1")
    assert outcome.status == 0 and "train: 2 bad, 5 allowed: within the budget" in outcome.out
    assert "train folder: 1 bad: line is not JSON (metadata.jsonl line 10)." in outcome.out
    metadata = recipe.parent / "data" / "metadata.jsonl"
    metadata.write_text(metadata.read_text() + "\n{oops" * 4)
    outcome = visgraft("data", "check", recipe, "--workers", "0")
    assert outcome.status == 1 and "train: 6 bad, 5 allowed: OVER the budget" in outcome.out
    assert "training would stop" in outcome.out


def write_pair(folder: Path, recipe: Path, *, num_shared: int, num_validation: int = 10) -> None:
    """Give a recipe ten training images and a validation set, some of whose images are copies of those."""
    values = yaml.safe_load(recipe.read_text())
    for part, first in (("train", 0), ("validation", 100)):
        data = folder / part
        data.mkdir()
        lines = []
        for number in range(10 if part == "train" else num_validation):
            shown = number if part == "validation" and number < num_shared else first + number
            pixels = np.random.default_rng(shown).integers(0, 256, (48, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(data / f"{number}.{'png' if part == 'train' else 'bmp'}")
            name = f"{number}.{'png' if part == 'train' else 'bmp'}"
            lines.append(
                json.dumps({"file_name": name, "question": f"What is {first + number}?", "answer": "A thing."})
            )
        (data / "metadata.jsonl").write_text("\n".join(lines))
        values["data"][part] = [{"source": "folder", "path": str(data)}]
    recipe.write_text(yaml.safe_dump(values))


def test_check_says_no_where_validation_images_stand_in_training(
    visgraft: Visgraft, recipe: Path, tmp_path: Path
) -> None:
    write_pair(tmp_path / "data", recipe, num_shared=2)
    outcome = visgraft("data", "check", recipe, "--json", "--workers", "0")
    found = json.loads(outcome.out)
    assert outcome.status == 1 and not found["ok"] and found["within_budget"]
    [finding] = [each for each in found["findings"] if each["level"] == "error"]
    assert (finding["name"], finding["count"], finding["of"], finding["share"]) == ("overlapping_images", 2, 10, 0.2)
    assert found["images_opened"] == 20 and found["seconds"] > 0
    allowed = visgraft("data", "check", recipe, "--workers", "0", "--set", "data.max_overlap_fraction=0.2")
    assert allowed.status == 0 and "2 of 10 validation images (20.0%) stand in training too." in allowed.out


def test_check_without_images_opens_none_and_says_what_is_not_known(visgraft: Visgraft, recipe: Path) -> None:
    outcome = visgraft("data", "check", recipe, "--no-images", "--json", "--workers", "0")
    [source] = json.loads(outcome.out)["sources"]
    assert (source["bad"], source["images"], json.loads(outcome.out)["images_opened"]) == (1, 4, None)
    outcome = visgraft("data", "check", recipe, "--no-images", "--workers", "0")
    assert "no image was opened: what only pixels tell (broken, blank, tiny, copied images) is not known" in outcome.out
    outcome = visgraft("data", "check", recipe, "--workers", "0")
    assert "opened 3 images in " in outcome.out and "; --no-images looks at texts and paths alone" in outcome.out


@pytest.mark.parametrize("width", [80, 100])
def test_the_page_of_a_check_fits_its_columns(
    recipe: Path, tmp_path: Path, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("visgraft.cli.terminal.PLAIN_WIDTH", width)
    write_pair(tmp_path / "data", recipe, num_shared=1)
    settings = load_recipe(recipe)
    reports: list[SourceReport] = []
    for part, entries in (("train", settings.data.train), ("validation", settings.data.validation)):
        sources = open_sources(entries, key=f"data.{part}", settings=settings.data)
        reports += check_sources(sources, build_processor(settings))
    reports[0].source, reports[0].samples, reports[0].texts = "prompt_completion-12", 1_361_650, 1_361_650
    reports[0].reasons.update({f"reason {number} that takes some words to tell": 9 for number in range(30)})
    reports[0].examples.update({reason: ["x.jsonl line 1"] for reason in reports[0].reasons})
    findings = find(reports, settings=settings.data)
    print_check(reports, findings, num_images=20, seconds=125.0)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width and len(lines) < 40
    text = " ".join(" ".join(lines).split())
    assert "1,361,650" in text and "and 27 more, which --json lists" in text
    assert "opened 20 images in 2 min 5 s" in text and "training would stop" in text


def test_show_draws_a_page_that_needs_no_network(visgraft: Visgraft, recipe: Path) -> None:
    page = recipe.parent / "sheet.html"
    outcome = visgraft("data", "show", recipe, "-n", "2", "-o", page)
    assert outcome.status == 0 and outcome.out.strip() == str(page)
    sheet = read_page(page)
    assert sheet.addresses == []
    cards = sheet.all("article", "sample")
    assert len(cards) == 2
    for dialog in (dialog for card in cards for dialog in card.all("div", "dialog")):
        assert "Question: What is" in dialog.text
        assert "It is" in dialog.one("span", "learned").text
        assert dialog.one("span", "end").text == "</s>"


def test_prepare_writes_what_datasets_and_a_recipe_read(visgraft: Visgraft, recipe: Path, tmp_path: Path) -> None:
    prepared = tmp_path / "prepared"
    outcome = visgraft("data", "prepare", recipe, prepared)
    assert outcome.status == 0 and outcome.out.split() == [str(prepared / "data" / "train-00000.parquet")]
    sources = open_sources([SourceSettings("parquet", path=str(prepared))])
    assert len(sources) == 3 and sources.num_dialogs.tolist() == [2, 2, 2]
    reasons = [json.loads(line)["reason"] for line in (prepared / "quarantine.jsonl").read_text().splitlines()]
    assert len(reasons) == 2 and "line is not JSON" in reasons
    table = datasets.Dataset.from_parquet(str(prepared / "data" / "*.parquet"), cache_dir=str(tmp_path / "cache"))
    assert table[0]["images"][0].size == (40, 30) and table[0]["source"] == "folder"
    assert visgraft("data", "prepare", recipe, prepared).status == 0
    other = visgraft("data", "prepare", recipe, prepared, "--set", "data.max_pixels=1000000")
    assert other.status == 2 and "was begun with other data" in other.err
