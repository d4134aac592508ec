"""`visgraft ask`: one question about one image, answered freely or by the likeliest of given choices.

In: a model, an image, a question. Out: the answer, or JSON. Usage: `visgraft ask runs/my-run cat.jpg "What is it?"`
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from visgraft.cli.hub import go_offline_without_network, names_of_model
from visgraft.cli.options import AsJson, Device, MaxNewTokens, Model, Precision, split_choices
from visgraft.cli.terminal import note, print_json, print_line, print_piece, quiet_libraries
from visgraft.errors import BadSampleError

if TYPE_CHECKING:
    from PIL.Image import Image

    from visgraft.data.sample import Sample
    from visgraft.model.vlm import VisionLanguageModel
    from visgraft.processor import Processor


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
    from visgraft.data.messages import asked
    from visgraft.data.sample import Sample

    candidates = None if choices is None else split_choices(choices)
    sample = Sample(images=[open_named(image)], dialogs=[[asked(question, num_images=1)]])
    loaded = load_model(model, device=device, precision=precision)
    if candidates is not None:
        scores = _scores(loaded, sample, candidates)
        best = max(scores, key=lambda score: score["log_likelihood"])["answer"]
        if as_json:
            print_json({"image": str(image), "question": question, "answer": best, "choices": scores})
        else:
            print_line(best)
        return
    from visgraft.inference import stream

    pieces = stream(*loaded, sample, max_new_tokens=max_new_tokens)
    if as_json:
        print_json({"image": str(image), "question": question, "answer": "".join(pieces)})
        return
    for piece in pieces:
        print_piece(piece)
    print_line()


def _scores(
    loaded: "tuple[VisionLanguageModel, Processor]", sample: "Sample", candidates: Sequence[str]
) -> list[dict[str, Any]]:
    """Score the choices: log-likelihoods, and shares that sum to one."""
    from visgraft.inference import score_candidates

    scores = score_candidates(*loaded, sample, candidates)
    weights = [math.exp(score - max(scores)) for score in scores]
    return [
        {"answer": candidate, "log_likelihood": score, "share": weight / sum(weights)}
        for candidate, score, weight in zip(candidates, scores, weights, strict=True)
    ]


def open_named(path: Path) -> "Image":
    """Open an image file.

    Raises:
        BadSampleError: with the file's name in front of the reason.
    """
    from visgraft.data.images.opening import open_image

    try:
        return open_image(path.expanduser())
    except BadSampleError as error:
        raise BadSampleError(f"{path}: {error}") from error


def load_model(name: str, *, device: str | None, precision: Precision) -> "tuple[VisionLanguageModel, Processor]":
    """Load a model and its processor as every command does."""
    go_offline_without_network(names_of_model(name))
    note(f"loading {name}")
    quiet_libraries()
    from visgraft.inference import load

    return load(name, device=device, precision=precision)
