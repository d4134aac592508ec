"""Emoji become pictures with captions; no picture, and no thing of the held-out ones, is in two splits."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from visgraft.data.readers import folder as folder_reader
from visgraft.errors import ConfigError, MissingAssetError
from visgraft.starter import resolve
from visgraft.starter.emoji import Emoji, write_emoji

TONES = ("1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF")
NAMES = {
    "en": ["light skin tone", "medium-light skin tone", "medium skin tone", "medium-dark skin tone", "dark skin tone"],
    "ja": ["薄い肌色", "やや薄い肌色", "中間の肌色", "やや濃い肌色", "濃い肌色"],
}
THINGS = {  # of some kinds one each
    "1F44B": {"en": "waving hand", "ja": "手を振る"},
    "1F468-200D-1F9B0": {"en": "man: red hair", "ja": "男性: 赤毛"},
    "1F3C3-200D-2640-FE0F": {"en": "woman running", "ja": "走る女"},
    **{f"1F4{number:02X}": {"en": f"thing {number}", "ja": f"物{number}"} for number in range(60)},
}


def characters(points: str) -> str:
    return "".join(chr(int(point, 16)) for point in points.split("-"))


def packages(root: Path) -> tuple[Path, Path]:
    """Write the two packages as npm unpacks them, with few emoji in them."""
    images, names = root / "images", root / "names"
    drawings = images / "package/img/google/64"
    drawings.mkdir(parents=True)
    listed: list[dict[str, Any]] = []
    shade = 0

    def draw(name: str) -> str:
        nonlocal shade
        shade += 1
        Image.new("RGBA", (4, 4), (shade, shade // 255, 9, 255)).save(drawings / name)
        return name

    for points in (*THINGS, "1F1EF-1F1F5"):
        toned = points in ("1F44B", "1F468-200D-1F9B0", "1F3C3-200D-2640-FE0F")
        variations = {
            tone: {"image": draw(f"{points}-{tone}.png".lower()), "has_img_google": True} for tone in TONES if toned
        }
        listed.append(
            {
                "unified": points,
                "name": "Japan Flag" if points == "1F1EF-1F1F5" else None,
                "short_name": points,
                "category": "People & Body",
                "image": draw(f"{points}.png".lower()),
                "has_img_google": True,
                "sort_order": len(listed),
                **({"skin_variations": variations} if toned else {}),
            }
        )
    (drawings / "twin.png").write_bytes((drawings / "1f44b.png").read_bytes())
    listed.append({**listed[0], "image": "twin.png", "sort_order": 999, "skin_variations": {}})
    (images / "package/emoji.json").write_text(json.dumps(listed))
    (images / "package/LICENSE").write_text("images")
    (names / "package").mkdir(parents=True)
    (names / "package/LICENSE").write_text("names")
    for language in ("en", "ja"):
        told = {characters(points): {"tts": [name[language]]} for points, name in THINGS.items()}
        told |= {characters(tone): {"tts": [name]} for tone, name in zip(TONES, NAMES[language], strict=True)}
        file = names / f"package/annotations/{language}/annotations.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({"annotations": {"annotations": told}}))
    return images, names


@pytest.fixture
def written(tmp_path: Path) -> Path:
    (tmp_path / "made").mkdir()
    write_emoji(*packages(tmp_path), tmp_path / "made")
    return tmp_path / "made"


def rows_of(folder: Path) -> dict[str, list[dict[str, str]]]:
    return {
        file.parent.name: [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        for file in sorted(folder.glob("*/metadata.jsonl"))
    }


def test_captions_are_put_together_as_their_makers_do(written: Path) -> None:
    captions = {
        language: {
            row["file_name"].removeprefix("../../images/"): row["answer"]
            for rows in rows_of(written / language).values()
            for row in rows
        }
        for language in ("en", "ja")
    }
    assert captions["en"]["1f44b-1f3ff.png"] == "waving hand: dark skin tone"
    assert captions["ja"]["1f44b-1f3ff.png"] == "手を振る: 濃い肌色"
    assert captions["en"]["1f468-200d-1f9b0-1f3fd.png"] == "man: medium skin tone, red hair"
    assert captions["ja"]["1f468-200d-1f9b0-1f3fd.png"] == "男性: 中間の肌色、赤毛"
    assert captions["en"]["1f1ef-1f1f5.png"] == "flag: Japan"
    assert "1f1ef-1f1f5.png" not in captions["ja"]
    assert "twin.png" not in captions["en"]


def test_a_tone_is_held_out_of_a_thing_and_things_as_a_whole(written: Path) -> None:
    rows = rows_of(written / "en")
    pictures = [row["file_name"] for split in rows.values() for row in split]
    assert len(pictures) == len(set(pictures))
    assert set(rows) == {"train", "validation", "tones", "concepts"}
    thing_of = {split: {row["answer"].split(":")[0] for row in found} for split, found in rows.items()}
    assert thing_of["tones"] <= thing_of["train"]
    assert not thing_of["concepts"] & (thing_of["train"] | thing_of["tones"] | thing_of["validation"])


def test_who_does_it_and_which_way_makes_no_other_concept() -> None:
    def concept(points: str) -> tuple[str, ...]:
        return Emoji("", tuple(points.split("-")), (), "", "").concept

    running = {"1F3C3", "1F3C3-200D-2640-FE0F", "1F3C3-200D-2642-FE0F-200D-27A1-FE0F"}
    assert {concept(points) for points in running} == {("1F3C3",)}
    assert concept("1F468-200D-1F373") == concept("1F469-200D-1F373") == ("1F373",)
    assert concept("1F468") == ("1F468",) != concept("1F469")


def test_the_reader_takes_both_languages(written: Path) -> None:
    for language in ("en", "ja"):
        source = folder_reader.read(written / language, split="tones")
        sample = source[0]
        [[turn]] = sample.dialogs
        assert Path(str(sample.images[0])).is_file() and turn.kind == "People & Body" and ":" in turn.answer


@pytest.mark.long
@pytest.mark.starter
def test_the_real_ones_are_as_many_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        folder = Path(resolve("starter:emoji"))
    except MissingAssetError as error:
        if "could not be downloaded" not in str(error):
            raise
        pytest.skip(f"NOT CHECKED, no emoji: {error}")
    counts = {split: len(rows) for split, rows in rows_of(folder / "en").items()}
    assert counts == {"train": 2783, "validation": 258, "tones": 310, "concepts": 416}
    assert sum(len(rows) for rows in rows_of(folder / "ja").values()) == 3150
    with pytest.raises(ConfigError, match=r"got 'starter:emoji/fr', need one of starter:emoji/en, starter"):
        resolve("starter:emoji/fr")
