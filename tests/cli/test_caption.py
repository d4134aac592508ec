"""Captions of files, folders and patterns; what cannot be opened is said and left out."""

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Visgraft
from visgraft.cli.caption import find_images
from visgraft.data.sample import Sample, Turn
from visgraft.errors import BadSampleError
from visgraft.inference import answer, load
from visgraft.reporting.progress import visible

SHORT = ("--max-new-tokens", 4, "--device", "cpu", "--precision", "fp32")


@pytest.fixture
def album(folder: Path, tmp_path: Path) -> Path:
    """Two photos, one in a folder below, a broken one and a text."""
    album = tmp_path / "album"
    (album / "old").mkdir(parents=True)
    shutil.copy(folder / "photos" / "0.png", album / "b.PNG")
    shutil.copy(folder / "photos" / "1.png", album / "old" / "a.png")
    (album / "c.jpg").write_bytes(b"not an image")
    (album / "notes.txt").write_text("nothing to see")
    return album


def test_a_folder_is_captioned_to_its_end_and_what_is_broken_is_said(
    visgraft: Visgraft, folder: Path, album: Path
) -> None:
    good = [album / "b.PNG", album / "old" / "a.png"]
    samples = [Sample(images=[path], dialogs=[[Turn("", "")]]) for path in good]
    texts = answer(*load(str(folder / "run"), device="cpu", precision="fp32"), samples, max_new_tokens=4)
    outcome = visgraft("caption", folder / "run", album, "--batch-size", 1, *SHORT)
    assert outcome.out == "".join(f"{path}: {visible(text)}\n" for path, text in zip(good, texts, strict=True))
    assert (outcome.status, outcome.err) == (2, f"error: {album / 'c.jpg'}: not an image\n")
    (album / "c.jpg").unlink()
    outcome = visgraft("caption", folder / "run", album, "--json", *SHORT)
    assert (outcome.status, outcome.err) == (0, "")
    assert json.loads(outcome.out) == [
        {"image": str(path), "caption": text} for path, text in zip(good, texts, strict=True)
    ]


def test_files_folders_and_patterns_are_listed_once_each(album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = [album / "b.PNG", album / "c.jpg", album / "old" / "a.png"]
    assert find_images([str(album)]) == inside
    assert find_images([str(album / "**" / "*.png"), str(album)]) == [inside[2], *inside[:2]]
    monkeypatch.chdir(album)
    assert find_images(["*.jpg", "nowhere.png", "c.jpg"]) == [Path("c.jpg"), Path("nowhere.png")]
    (album / "odd[1].png").write_bytes(b"")
    assert find_images(["odd[1].png"]) == [Path("odd[1].png")]  # a file may be called what would be a pattern


def test_where_there_is_nothing_to_caption_it_is_said(visgraft: Visgraft, folder: Path, tmp_path: Path) -> None:
    outcome = visgraft("caption", folder / "run", tmp_path, *SHORT)
    assert outcome.status == 2
    assert f"{tmp_path}: the folder holds no image (.jpg, .jpeg, .png" in outcome.err
    with pytest.raises(BadSampleError, match=r"\*\.jpg: no file fits this pattern"):
        find_images([str(tmp_path / "*.jpg")])
