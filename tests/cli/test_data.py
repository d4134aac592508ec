import json
from pathlib import Path

import datasets
import pytest
import yaml
from PIL import Image

from tests.cli.conftest import Visgraft
from tests.reporting.page_tree import read_page
from visgraft.config import SourceSettings
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
