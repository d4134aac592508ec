"""`visgraft init`: look at a folder of data and write a recipe that trains on it.

In: a folder of images and texts. Out: a short recipe with comments.
Usage: `visgraft init --data ~/photos -o recipe.yaml`
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer
import yaml

from visgraft.atomic import write_whole
from visgraft.cli.terminal import note, print_line
from visgraft.config import SourceSettings, load_recipe
from visgraft.config.plain_values import to_plain
from visgraft.errors import BadSampleError, ConfigError, DataError
from visgraft.wording import counted

if TYPE_CHECKING:
    from visgraft.data.readers.detect import DetectedDataset

STARTER_VISION, STARTER_LANGUAGE = "starter:vision", "starter:language"
MAX_SAMPLES_READ = 200  # of a large source; the rest is estimated from these
CHARACTERS_PER_TOKEN = 4  # of English text, about
GOOD_NUM_STEPS = 300  # fewer teach a new projection too little
FEWEST_TO_DIVIDE, MOST_HELD_OUT = 40, 2000  # images: from how many on some validate, and about how many at most
SMALL_IMAGE = 160  # pixels; drawings and icons need no more image tokens than a side of 128 makes


def init(
    data: Annotated[Path, typer.Option(help="Folder with images and texts.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Recipe to write.")] = Path("recipe.yaml"),
    vision: Annotated[str, typer.Option(help="Vision encoder: Hub name or folder.")] = STARTER_VISION,
    language: Annotated[str, typer.Option(help="Language model: Hub name or folder.")] = STARTER_LANGUAGE,
    force: Annotated[bool, typer.Option("--force", help="Write over a recipe that is there.")] = False,
) -> None:
    """Write a recipe for a folder of images and texts.

    The format is found out: images with a metadata.jsonl or .csv, or with a .txt beside each, COCO captions, LLaVA and
    chat JSON, parquet, WebDataset, folders called like what their images show, and others. The starter pair of models
    needs no account and no GPU; name any other pair.
    """
    from visgraft.data.readers.detect import detect

    if output.exists() and not force:
        raise ConfigError(f"{output}: already there; name another with -o, or say --force")
    found = detect(data)
    note(f"{data}: {found.format}")
    if found.captions is not None:
        found = _write_captions(found, output=output, force=force)
    if "encoding" in found.train.options:
        print_line(f"the texts are not UTF-8 and are read as {found.train.options['encoding']}; look at the accents")
    size = _measure(found.train)
    text = _recipe(
        f"{found.format[0].upper()}{found.format[1:]}: {size}",
        vision=vision,
        language=language,
        train=_train_lines(size),
        image_size=128 if vision == STARTER_VISION and size.image_side <= SMALL_IMAGE else None,
        data={key: _source_line(source) for key, source in _sources(found, size).items()},
        output=output,
    )
    write_whole(output, text)
    load_recipe(output)
    print_line(f"{output}: {found.format}, {size}")
    print_line(f"next: visgraft show {quote(str(output))}, then visgraft train {quote(str(output))}")


def _write_captions(found: "DetectedDataset", *, output: Path, force: bool) -> "DetectedDataset":
    """Write the captions that were made of folders' names beside the recipe, and read them from there."""
    folder = output.with_name(f"{output.stem}-captions").resolve()
    if folder.exists() and not force:
        raise ConfigError(f"{folder}: already there; name another recipe with -o, or say --force")
    for split, rows in (found.captions or {}).items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_whole(folder / f"{split}.jsonl", lines)
        print_line(f"{folder / f'{split}.jsonl'}: {counted(len(rows), 'caption')}, made of the names of folders")
    validation = None if found.validation is None else replace(found.validation, path=str(folder))
    return replace(found, train=replace(found.train, path=str(folder)), validation=validation)


@dataclass(frozen=True)
class _Size:
    """How much data there is: images, texts and about how many tokens; the longer side of a typical image."""

    num_samples: int
    num_dialogs: int
    num_tokens: int
    image_side: int

    def __str__(self) -> str:
        return f"{counted(self.num_samples, 'image')} with {counted(self.num_dialogs, 'text')}"


def _measure(settings: SourceSettings) -> _Size:
    """Read some samples evenly; raises DataError where none of them can be used."""
    from visgraft.data.images.opening import open_image
    from visgraft.data.sources import open_sources

    sources = open_sources([settings])
    step = max(1, len(sources) // MAX_SAMPLES_READ)
    indices = range(0, len(sources), step)
    num_dialogs = num_characters = 0
    sides, reasons = [], []
    for index in indices:
        try:
            sample = sources[index]
            turns = [turn for dialog in sample.dialogs for turn in dialog]
            sides.append(max((side for image in sample.images for side in open_image(image).size), default=0))
        except BadSampleError as error:
            reasons.append(sources.bad_sample(index, str(error)))
            continue
        num_dialogs += len(sample.dialogs)
        num_characters += sum(len(turn.prompt) + len(turn.answer) for turn in turns)
    if not sides:
        raise DataError(f"{settings.path}: none of its samples can be used; {reasons[0].where}: {reasons[0].reason}")
    if reasons:
        first = reasons[0]
        note(f"{len(reasons)} of {len(indices)} samples looked at are bad, such as {first.where}: {first.reason}")
    scale = len(sources) / len(indices)
    tokens = num_characters / CHARACTERS_PER_TOKEN + 2 * num_dialogs
    return _Size(len(sources), round(num_dialogs * scale), round(tokens * scale), sorted(sides)[len(sides) // 2])


def _train_lines(size: _Size) -> list[str]:
    """Choose how long to train, so that a small folder is seen often enough and a large one not for days."""
    tokens_per_step = min(2048, max(256, size.num_tokens // 64))
    epochs = min(20, max(1, -(-GOOD_NUM_STEPS * tokens_per_step // size.num_tokens)))
    return [
        _with_comment("language: lora", "frozen, full or lora; the projection trains in full unless it is named"),
        "lora: {r: 16}",
        f"epochs: {epochs}",
        _with_comment(
            f"text_tokens_per_step: {tokens_per_step}", "the size of a step, in tokens of prompts and answers"
        ),
        "learning_rate: {projection: 2.0e-3, language: 1.0e-3}",
        "warmup_steps: 10",
    ]


def _with_comment(line: str, comment: str) -> str:
    return f"{line:<30}  # {comment}"


def _sources(found: "DetectedDataset", size: _Size) -> dict[str, SourceSettings]:
    """Validate on the data's own split; without one, on a share of the images that training then leaves out."""
    if found.validation is not None:
        return {"train": found.train, "validation": found.validation}
    if size.num_samples < FEWEST_TO_DIVIDE or found.train.split != "train":
        return {"train": found.train}
    percent = max(1, min(5, round(100 * MOST_HELD_OUT / size.num_samples)))
    return {"train": replace(found.train, split={"validation": f"{percent}%"})}


def _source_line(source: SourceSettings) -> str:
    line = yaml.safe_dump(to_plain(source), sort_keys=False, allow_unicode=True, default_flow_style=True, width=10**6)
    return f"- {line.strip()}"


def _recipe(
    title: str,
    *,
    vision: str,
    language: str,
    train: Sequence[str],
    image_size: int | None,
    data: dict[str, str],
    output: Path,
) -> str:
    model = [
        _with_comment(f"vision: {vision}", "any image encoder: a Hub name or a folder"),
        _with_comment(f"language: {language}", "any causal language model"),
        *([] if image_size is None else [_with_comment(f"image_size: {image_size}", "the images are small")]),
    ]
    lines = [
        f"# {title}",
        "# Only what differs from the defaults stands here.",
        f"#   visgraft show {quote(str(output))}",
        f"#   visgraft train {quote(str(output))}",
        "model:",
        *(f"  {line}" for line in model),
        "train:",
        *(f"  {line}" for line in train),
        "data:",
    ]
    for key, line in data.items():
        lines += [f"  {key}:", f"    {line}"]
    return "\n".join(lines) + "\n"
