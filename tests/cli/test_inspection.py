"""`visgraft inspect`: a page, a picture or numbers, and what is wrong in one line."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Visgraft
from tests.reporting.page_tree import read_page


def test_a_page_is_written_and_named(visgraft: Visgraft, folder: Path, tmp_path: Path) -> None:
    outcome = visgraft("inspect", folder / "run", folder / "photos" / "0.png", "-o", tmp_path / "inside.html")
    assert (outcome.status, outcome.out, outcome.err) == (0, f"{tmp_path / 'inside.html'}\n", "")
    page = read_page(tmp_path / "inside.html")
    assert page.one("h1").text == "What run sees"
    assert "Where the answer looks" not in page.headings


def test_numbers_are_printed_alone_and_no_file_is_written(
    visgraft: Visgraft, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    photo = folder / "photos" / "0.png"
    outcome = visgraft("inspect", folder / "run", photo, "--prompt", "", "--top", 2, "--layers", "0", "--json")
    assert outcome.status == 0
    values = json.loads(outcome.out)
    assert values["image"] == str(photo)
    assert values["attention"]["layers"] == [0]
    assert [len(token["by_dot"]) for token in values["image_tokens"]] == [2] * 5
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "words.pdf"], "--output: got words.pdf, need a name that ends in .html or .png"),
        (["--layers", "0"], "--layers: there is no attention to show without --prompt"),
        (["--layers", "7", "--prompt", "x"], "--layers: got '7', need numbers of layers from 0 to 1, such as"),
        (["--top", "0"], "Invalid value for '--top'"),
    ],
)
def test_what_is_wrong_is_one_line_and_status_2(
    visgraft: Visgraft, folder: Path, arguments: list[str], message: str
) -> None:
    outcome = visgraft("inspect", folder / "run", folder / "photos" / "0.png", *arguments)
    assert outcome.status == 2
    assert outcome.err.startswith(f"error: {message}")
    assert outcome.err.count("\n") == 1


def test_a_missing_or_broken_image_is_said_before_the_model_loads(
    visgraft: Visgraft, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    for name in ("bad.png", "none.png"):
        outcome = visgraft("inspect", "nobody/nothing", tmp_path / name)
        assert outcome.status == 2
        assert outcome.err.startswith(f"error: {tmp_path / name}: ")
        assert outcome.err.count("\n") == 1
