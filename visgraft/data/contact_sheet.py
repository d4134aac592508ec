"""Draw a contact sheet of samples: the image as the model will see it, each text with what carries loss in colour.

In:  sources and a processor. Out: one offline HTML page.

    write_contact_sheet(Path("sheet.html"), sources, processor, number=24, title="recipe.yaml")

Here is what the page shows, as values; its words are in `reporting/templates/contact_sheet.html`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, Protocol

from PIL import Image

from visgraft.data.batch import EncodedSample
from visgraft.data.images.opening import open_image
from visgraft.data.images.pixels import seen_image
from visgraft.data.prompt import EncodedDialog
from visgraft.data.quarantine import BadSample
from visgraft.data.sample import Sample
from visgraft.data.sources import Sources
from visgraft.errors import BadSampleError
from visgraft.reporting.page import embed_image, make_table, write_page

MAX_FRAMES, MAX_DIALOGS = 8, 12  # drawn of one sample
MAX_BAD_LISTED = 100


@dataclass(frozen=True)
class Piece:
    """A stretch of a text: `prompt`, `learned`, a special token that is learned (`end`), or another one (`special`)."""

    text: str
    kind: Literal["prompt", "learned", "end", "special"]


class ContactSheetProcessor(Protocol):
    """What is needed of a processor."""

    tokenizer: Any
    image_processor: Any

    def encode(self, sample: Sample, *, bad: list[str]) -> EncodedSample:
        """Encode a sample, or raise BadSampleError; `bad` gets the reasons of dialogs that are left out."""


def write_contact_sheet(
    path: Path,
    sources: Sources,
    processor: ContactSheetProcessor,
    *,
    number: int,
    title: str,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Write the page of the first samples of the first epoch, up to number good ones; the bad ones met are listed."""
    cards: list[dict[str, Any]] = []
    bad: list[BadSample] = []
    encoded: list[EncodedSample] = []
    for index in sources.order(seed=0, epoch=0).tolist():
        if len(cards) == number:
            break
        reasons: list[str] = []
        try:
            sample = sources[index]
            made = processor.encode(sample, bad=reasons)
        except BadSampleError as error:
            bad.append(sources.bad_sample(index, str(error)))
            continue
        bad += [sources.bad_sample(index, reason) for reason in reasons[:1]]
        encoded.append(made)
        cards.append(_card(sample, made, processor, where=sources.where(index)))
        if progress is not None:
            progress(1)
    rows = [[entry.source, entry.where, entry.reason] for entry in bad[:MAX_BAD_LISTED]]
    return write_page(
        path,
        "contact_sheet.html",
        title=title,
        subtitle=f"{len(cards)} of {len(sources):,} samples, in the order in which training meets them",
        totals=_totals(encoded),
        cards=cards,
        num_bad=len(bad),
        bad=make_table(["source", "where", "reason"], rows) if bad else None,
    )


def _totals(encoded: Sequence[EncodedSample]) -> dict[str, str]:
    dialogs = [dialog for sample in encoded for dialog in sample.dialogs]
    tokens = sum(len(dialog.input_ids) for dialog in dialogs)
    supervised = sum(sum(dialog.supervised) for dialog in dialogs)
    return {
        "samples": f"{len(encoded):,}",
        "texts": f"{len(dialogs):,}",
        "text tokens": f"{tokens:,}",
        "of them learned": f"{supervised / tokens:.0%}" if tokens else "0%",
        "texts cut off": f"{sum(dialog.truncated for dialog in dialogs):,}",
    }


def _card(sample: Sample, encoded: EncodedSample, processor: ContactSheetProcessor, *, where: str) -> dict[str, Any]:
    images = _seen_images(sample, encoded, processor)
    return {
        "name": sample.id,
        "where": where,
        "images": [embed_image(image, alt=f"image {n} of {sample.id}") for n, image in enumerate(images, start=1)],
        "num_images": len(sample.images),
        "num_image_tokens": encoded.num_prefix_tokens,
        "num_text_tokens": encoded.num_text_tokens,
        "dialogs": [_dialog(dialog, processor.tokenizer) for dialog in encoded.dialogs[:MAX_DIALOGS]],
        "num_more_dialogs": max(0, len(encoded.dialogs) - MAX_DIALOGS),
    }


def _dialog(dialog: EncodedDialog, tokenizer: Any) -> dict[str, Any]:
    return {
        "num_tokens": len(dialog.input_ids),
        "num_learned": sum(dialog.supervised),
        "is_cut": dialog.truncated,
        "pieces": pieces_of(dialog, tokenizer),
    }


def pieces_of(dialog: EncodedDialog, tokenizer: Any) -> list[Piece]:
    """Cut a dialog's tokens into stretches of prompt and of answer, each special token by itself."""
    specials = set(tokenizer.all_special_ids)
    pieces = []
    tokens = zip(dialog.input_ids, dialog.supervised, strict=True)
    for (is_supervised, special), run in groupby(tokens, key=lambda t: (t[1], t[0] if t[0] in specials else None)):
        ids = [token for token, _ in run]
        text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if is_supervised:
            pieces.append(Piece(text, "learned" if special is None else "end"))
        else:
            pieces.append(Piece(text, "prompt" if special is None else "special"))
    return pieces


def _seen_images(sample: Sample, encoded: EncodedSample, processor: ContactSheetProcessor) -> list[Image.Image]:
    """Turn pixels back into images; where they are no images (patches), open the originals."""
    pixels = encoded.vision_inputs.get("pixel_values")
    if pixels is None or pixels.ndim != 4:
        return [open_image(image) for image in sample.images[:MAX_FRAMES]]
    return [seen_image(pixel, processor.image_processor) for pixel in pixels[:MAX_FRAMES]]
