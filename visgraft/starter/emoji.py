"""Noto emoji as pictures with captions: small drawings whose names compose (a person, what they do, a skin tone).

In: the unpacked npm packages `emoji-datasource-google` (drawings, names, categories) and `cldr-annotations-full` (names
in English and Japanese). Out: a folder with `images/`, and `en/` and `ja/`, which the reader `folder` takes, in splits:

    train        what is learned from
    validation   both kinds of test below, other pictures: for tuning
    tones        a thing that was seen in other skin tones only
    concepts     things that were never seen: nothing about them can be known, but words that their names share

Pictures that are equal pixel by pixel are one. Which split a picture is in is decided by its name alone.
Usage: `write_emoji(unpacked_images, unpacked_names, folder)`
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from visgraft.parsing import parse_json

PROMPTS = {"en": "What is in the picture?", "ja": "この絵は何ですか。"}
_COMMA = {"en": ", ", "ja": "、"}
_TONES = ("1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF")
_SIGNS = ("200D", "FE0F", "2640", "2642", "27A1")  # joiner, variant, female, male, facing right
_PEOPLE = ("1F468", "1F469", "1F9D1")


@dataclass(frozen=True)
class Emoji:
    """One drawing: its code points without tones, its tones, and how it is called."""

    image: str
    base: tuple[str, ...]
    tones: tuple[str, ...]
    name: str
    category: str

    @property
    def concept(self) -> tuple[str, ...]:
        """What it is of, whoever does it: `woman running` and `person running facing right` are one concept."""
        things = tuple(point for point in self.base if point not in _SIGNS)
        return tuple(point for point in things if point not in _PEOPLE) or things


def write_emoji(images: Path, names: Path, folder: Path) -> None:
    """Write the drawings and their captions."""
    (folder / "images").mkdir()
    told = {language: _short_names(names, language) for language in PROMPTS}
    rows: dict[tuple[str, str], list[str]] = {}
    for emoji in _different(images / "package"):
        shutil.copy(images / "package/img/google/64" / emoji.image, folder / "images")
        for language, prompt in PROMPTS.items():
            caption = _caption(emoji, told[language], language=language)
            if caption is not None:
                row = {"file_name": f"../../images/{emoji.image}", "prompt": prompt, "answer": caption}
                line = json.dumps({**row, "kind": emoji.category}, ensure_ascii=False)
                rows.setdefault((language, _split(emoji)), []).append(line + "\n")
    for (language, split), lines in rows.items():
        (folder / language / split).mkdir(parents=True)
        (folder / language / split / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    for package, licence in ((images, "LICENSE-emoji-data"), (names, "LICENSE-cldr")):
        shutil.copy(package / "package/LICENSE", folder / licence)


def _different(package: Path) -> Iterator[Emoji]:
    """Go through the drawings in their usual order, the first of those that are equal."""
    from PIL import Image

    seen: set[bytes] = set()
    listed = parse_json((package / "emoji.json").read_bytes())
    for entry in sorted(listed, key=lambda entry: entry["sort_order"]):
        for emoji in _variations(entry):
            with Image.open(package / "img/google/64" / emoji.image) as picture:
                pixels = sha256(picture.convert("RGBA").tobytes()).digest()
            if pixels not in seen:
                seen.add(pixels)
                yield emoji


def _variations(entry: Mapping[str, Any]) -> Iterator[Emoji]:
    base, known = tuple(entry["unified"].split("-")), (entry["name"] or entry["short_name"], entry["category"])
    if entry["has_img_google"]:
        yield Emoji(entry["image"], base, (), *known)
    for tones, variation in entry.get("skin_variations", {}).items():
        if variation["has_img_google"]:
            yield Emoji(variation["image"], base, tuple(tones.split("-")), *known)


def _short_names(names: Path, language: str) -> dict[str, str]:
    read = parse_json((names / f"package/annotations/{language}/annotations.json").read_bytes())
    annotations = read["annotations"]["annotations"]
    return {emoji: about["tts"][0] for emoji, about in annotations.items() if "tts" in about}


def _caption(emoji: Emoji, names: Mapping[str, str], *, language: str) -> str | None:
    """Return the name as CLDR puts it together: `man: dark skin tone, red hair`; None: it has none in this language."""
    spelled = (emoji.base, tuple(point for point in emoji.base if point != "FE0F"))
    name = next((names[text] for text in map(_text, spelled) if text in names), None)
    if name is None and language == "en":
        name = emoji.name.lower() if emoji.name.isupper() else emoji.name
        name = f"flag: {name.removesuffix(' Flag')}" if name.endswith(" Flag") else name
    if name is None:
        return None
    thing, *more = name.split(": ", 1)
    details = [*dict.fromkeys(names[_text((tone,))] for tone in emoji.tones), *more]
    return f"{thing}: {_COMMA[language].join(details)}" if details else name


def _text(points: tuple[str, ...]) -> str:
    return "".join(chr(int(point, 16)) for point in points)


def _split(emoji: Emoji) -> str:
    number = _number(emoji.concept)
    if number % 20 < 3:
        return "validation" if number % 20 == 2 else "concepts"
    if emoji.tones:
        shift = (sum(map(_TONES.index, emoji.tones)) + _number(emoji.base)) % 5
        if shift == 0:
            return "tones"
        if shift == 1 and number % 20 < 6:
            return "validation"
    return "train"


def _number(points: tuple[str, ...]) -> int:
    return int.from_bytes(sha256("-".join(points).encode()).digest()[:4], "big")
