"""`visgraft caption`: captions of images, folders and patterns, some at a time, opened while the model writes.

In: a model, images. Out: the captions, one a line, or JSON. Usage: `visgraft caption runs/my-run photos/`
"""

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from visgraft.cli.ask import load_model, open_named
from visgraft.cli.options import AsJson, Device, MaxNewTokens, Model, Precision
from visgraft.cli.terminal import note, print_error, print_json, print_line
from visgraft.errors import BadSampleError
from visgraft.reporting.progress import working

if TYPE_CHECKING:
    from visgraft.data.sample import Sample
    from visgraft.model.vlm import VisionLanguageModel
    from visgraft.processor import Processor

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")  # what is an image in a folder


def caption(
    model: Model,
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE...", help="Image files, folders or patterns.", show_default=False)
    ],
    prompt: Annotated[str, typer.Option(help="What the model was trained to caption for, where that is a text.")] = "",
    max_new_tokens: MaxNewTokens = 64,
    batch_size: Annotated[int, typer.Option(min=1, help="Images that run at once.")] = 32,
    device: Device = None,
    precision: Precision = "auto",
    as_json: AsJson = False,
) -> None:
    """Caption images: files, all the images of a folder and of those in it, or a pattern in quotes.

    visgraft caption runs/my-run photos/ "more/*.png" --json > captions.json

    A file that is no image is reported and left out; the exit status is then 2.
    """
    paths = find_images(images)
    if not any(_is_image(path) for path in paths):
        open_named(paths[0])  # a wrong path should not wait for the model
    loaded = load_model(model, device=device, precision=precision)
    records: list[dict[str, Any]] = []
    start = time.perf_counter()
    is_alone = as_json or not sys.stdout.isatty()  # else the captions in the same terminal show how far it is
    with working("captioning", total=len(paths), unit="images", is_shown=is_alone) as advance:
        for record in _captions(loaded, paths, prompt, max_new_tokens=max_new_tokens, batch_size=batch_size):
            records.append(record)
            advance(1)
            if "error" in record:
                print_error(record["error"])
            elif not as_json:
                print_line(record["caption"] if len(paths) == 1 else f"{record['image']}: {record['caption']}")
    if as_json:
        print_json(records)
    if len(paths) > 1:
        note(f"{len(paths) / (time.perf_counter() - start):.1f} images a second")
    if any("error" in record for record in records):
        raise typer.Exit(2)


def find_images(names: Sequence[str]) -> list[Path]:
    """List the files that are meant, each once: files as they are named, folders and patterns in the order of names.

    Raises:
        BadSampleError: a folder holds no image, or nothing fits a pattern.
    """
    found: dict[Path, None] = {}
    for name in names:
        path = Path(name).expanduser()
        inside: list[Path] = [path]
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
            if not inside:
                raise BadSampleError(f"{name}: the folder holds no image ({', '.join(SUFFIXES)})")
        elif not path.exists() and set(name) & set("*?["):
            fitting = Path(path.anchor).glob(str(path.relative_to(path.anchor)))
            inside = sorted(file for file in fitting if file.is_file())
            if not inside:
                raise BadSampleError(f"{name}: no file fits this pattern")
        found.update(dict.fromkeys(inside))
    return list(found)


def _captions(
    loaded: "tuple[VisionLanguageModel, Processor]",
    paths: Sequence[Path],
    prompt: str,
    *,
    max_new_tokens: int,
    batch_size: int,
) -> Iterator[dict[str, Any]]:
    """Caption images as they are ready, in their order; a file that is no image gives an `error`."""
    from visgraft.data.messages import asked
    from visgraft.data.sample import Sample
    from visgraft.inference import answer_each

    def samples() -> "Iterator[Sample]":
        for path in paths:
            yield Sample(images=[path], dialogs=[[asked(prompt, num_images=1)]])

    answers = answer_each(*loaded, samples(), max_new_tokens=max_new_tokens, batch_size=batch_size)
    for path, answered in zip(paths, answers, strict=True):
        if answered.error is not None:
            yield {"image": str(path), "error": f"{path}: {answered.error}"}
        else:
            yield {"image": str(path), "caption": answered.text}


def _is_image(path: Path) -> bool:
    try:
        open_named(path)
    except BadSampleError:
        return False
    return True
