"""`visgraft ask` and `visgraft caption`: one question about one image; captions of many images.

In: a model, images. Out: the answers, one a line, or JSON. Usage: `visgraft ask runs/my-run cat.jpg "What is it?"`
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from visgraft.cli.hub import go_offline_without_network, names_of_model
from visgraft.cli.options import AsJson, Device, MaxNewTokens, Model, Precision
from visgraft.cli.terminal import note, print_error, print_json, print_line, quiet_libraries
from visgraft.errors import BadSampleError, ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image

    from visgraft.data.sample import Sample
    from visgraft.model.vlm import VisionLanguageModel
    from visgraft.processor import Processor

IMAGES_AT_ONCE = 64  # held in memory while they wait for their caption


def ask(
    model: Model,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="Image file.", show_default=False)],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="Question about the image.", show_default=False)],
    choices: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...", help="Choose the likeliest of these answers instead of writing one.", show_default=False
        ),
    ] = None,
    max_new_tokens: MaxNewTokens = 64,
    device: Device = None,
    precision: Precision = "auto",
    as_json: AsJson = False,
) -> None:
    """Ask a question about an image.

    visgraft ask runs/my-run cat.jpg "Which colour is it?" --choices "red,blue,green"

    With --choices and --json every choice comes with its log-likelihood (of the whole answer and its end, in nats) and
    its share among the choices.
    """
    from visgraft.data.sample import Sample, Turn

    candidates = None if choices is None else _split_choices(choices)
    sample = Sample(images=[open_named(image)], dialogs=[[Turn(question, "")]])
    loaded = load_model(model, device=device, precision=precision)
    if candidates is not None:
        scores = _scores(loaded, sample, candidates)
        best = max(scores, key=lambda score: score["log_likelihood"])["answer"]
        if as_json:
            print_json({"image": str(image), "question": question, "answer": best, "choices": scores})
        else:
            print_line(best)
        return
    from visgraft.infer import answer

    [text] = answer(*loaded, [sample], max_new_tokens=max_new_tokens)
    if as_json:
        print_json({"image": str(image), "question": question, "answer": text})
    else:
        print_line(text)


def _split_choices(choices: str) -> list[str]:
    """Take the choices apart; each one counts once."""
    candidates = list(dict.fromkeys(choice.strip() for choice in choices.split(",") if choice.strip()))
    if len(candidates) < 2:
        raise ConfigError(f"--choices: got {choices!r}, need two answers or more, such as red,blue")
    return candidates


def _scores(
    loaded: "tuple[VisionLanguageModel, Processor]", sample: "Sample", candidates: Sequence[str]
) -> list[dict[str, Any]]:
    """Score the choices: log-likelihoods, and shares that sum to one."""
    from visgraft.infer import score_candidates

    scores = score_candidates(*loaded, sample, candidates)
    weights = [math.exp(score - max(scores)) for score in scores]
    return [
        {"answer": candidate, "log_likelihood": score, "share": weight / sum(weights)}
        for candidate, score, weight in zip(candidates, scores, weights, strict=True)
    ]


def caption(
    model: Model,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.", show_default=False)],
    prompt: Annotated[str, typer.Option(help="What the model was trained to caption for, where that is a text.")] = "",
    max_new_tokens: MaxNewTokens = 64,
    batch_size: Annotated[int, typer.Option(min=1, help="Images that run at once.")] = 16,
    device: Device = None,
    precision: Precision = "auto",
    as_json: AsJson = False,
) -> None:
    """Caption images.

    A file that is no image is reported and left out; the exit status is then 2.
    """
    if not any(_is_image(path) for path in images):
        open_named(images[0])  # a wrong path should not wait for the model
    loaded = load_model(model, device=device, precision=precision)
    records: list[dict[str, Any]] = []
    has_failed = False
    for record in _captions(loaded, images, prompt, max_new_tokens=max_new_tokens, batch_size=batch_size):
        records.append(record)
        if "error" in record:
            has_failed = True
            print_error(record["error"])
        elif not as_json:
            print_line(record["caption"] if len(images) == 1 else f"{record['image']}: {record['caption']}")
        if as_json and len(images) > IMAGES_AT_ONCE and len(records) % IMAGES_AT_ONCE == 0:
            note(f"{len(records)} of {len(images)} images")
    if as_json:
        print_json(records)
    if has_failed:
        raise typer.Exit(2)


def _captions(
    loaded: "tuple[VisionLanguageModel, Processor]",
    paths: Sequence[Path],
    prompt: str,
    *,
    max_new_tokens: int,
    batch_size: int,
) -> Iterator[dict[str, Any]]:
    """Caption images some at a time, in their order; a file that is no image gives an `error`."""
    from visgraft.data.sample import Sample, Turn
    from visgraft.infer import answer

    for start in range(0, len(paths), IMAGES_AT_ONCE):
        records: list[dict[str, Any]] = []
        samples = []
        for path in paths[start : start + IMAGES_AT_ONCE]:
            try:
                samples.append(Sample(images=[open_named(path)], dialogs=[[Turn(prompt, "")]]))
                records.append({"image": str(path)})
            except BadSampleError as error:
                records.append({"image": str(path), "error": str(error)})
        texts = iter(answer(*loaded, samples, max_new_tokens=max_new_tokens, batch_size=batch_size))
        yield from (record if "error" in record else {**record, "caption": next(texts)} for record in records)


def open_named(path: Path) -> "Image":
    """Open an image file.

    Raises:
        BadSampleError: with the file's name in front of the reason.
    """
    from visgraft.data.images import open_image

    try:
        return open_image(path.expanduser())
    except BadSampleError as error:
        raise BadSampleError(f"{path}: {error}") from error


def _is_image(path: Path) -> bool:
    try:
        open_named(path)
    except BadSampleError:
        return False
    return True


def load_model(name: str, *, device: str | None, precision: Precision) -> "tuple[VisionLanguageModel, Processor]":
    """Load a model and its processor as every command does."""
    go_offline_without_network(names_of_model(name))
    note(f"loading {name}")
    quiet_libraries()
    from visgraft.infer import load

    return load(name, device=device, precision=precision)
