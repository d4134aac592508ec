"""Draw a contact sheet of samples: the image as the model will see it, each text with what carries loss in colour.

In:  sources and a processor. Out: one offline HTML page.

    write_contact_sheet(Path("sheet.html"), sources, processor, number=24, title="recipe.yaml")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from visgraft.data.batch import EncodedSample
from visgraft.data.images.opening import open_image
from visgraft.data.images.pixels import seen_image
from visgraft.data.prompt import EncodedDialog
from visgraft.data.quarantine import BadSample
from visgraft.data.sample import Sample
from visgraft.data.sources import Sources
from visgraft.errors import BadSampleError
from visgraft.reporting.page import Page, escape, image_tag, numbers, table

MAX_FRAMES, MAX_DIALOGS = 8, 12  # drawn of one sample
_STYLE = """<style>
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); gap: 16px; }
.sample { border: 1px solid var(--line); border-radius: 10px; overflow: hidden; background: var(--back); }
.frames { display: grid; grid-template-columns: repeat(auto-fit, minmax(84px, 1fr)); background: var(--line);
  gap: 1px; }
.frames img { display: block; width: 100%; max-height: 240px; object-fit: contain; background: #8883; }
.texts { padding: 10px 12px 12px; font-size: .92rem; }
.name { overflow-wrap: anywhere; font-weight: 600; margin: 0; } .texts .soft { font-size: .82rem; margin: 0 0 8px; }
.dialog { border-top: 1px solid var(--line); padding: 7px 0 5px; white-space: pre-wrap; overflow-wrap: anywhere; }
.dialog small { float: right; color: var(--soft); font-size: .76rem; padding: 2px 0 0 10px; white-space: nowrap; }
.learn { background: color-mix(in srgb, var(--good) 20%, transparent); color: var(--text);
  box-shadow: inset 0 -2px var(--good); border-radius: 2px; }
.end { background: var(--good); color: var(--card); border-radius: 4px; padding: 0 5px; margin-left: 2px;
  font: .76rem ui-monospace, monospace; white-space: nowrap; }
.start { color: var(--soft); border: 1px solid var(--line); border-radius: 4px; padding: 0 5px; margin-right: 3px;
  font: .76rem ui-monospace, monospace; white-space: nowrap; }
.cut { color: var(--bad); font-weight: 600; }
</style>"""


class ContactSheetProcessor(Protocol):
    """What is needed of a processor."""

    tokenizer: Any
    image_processor: Any

    def encode(self, sample: Sample) -> EncodedSample:
        """Encode a sample, or raise BadSampleError."""


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
    cards: list[str] = []
    bad: list[BadSample] = []
    encoded: list[EncodedSample] = []
    for index in sources.order(seed=0, epoch=0).tolist():
        if len(cards) == number:
            break
        try:
            sample = sources[index]
            made = processor.encode(sample)
        except BadSampleError as error:
            bad.append(sources.bad_sample(index, str(error)))
            continue
        encoded.append(made)
        cards.append(_card(sample, made, processor, where=sources.where(index)))
        if progress is not None:
            progress(1)
    page = Page(title, subtitle=f"{len(cards)} of {len(sources):,} samples, in the order in which training meets them")
    page.add("", _STYLE, _legend(), numbers(_totals(encoded)))
    page.add("Samples", f'<div class="sheet">{"".join(cards)}</div>')
    if bad:
        rows = [[entry.source, entry.where, entry.reason] for entry in bad[:100]]
        page.add(f"Bad samples among them: {len(bad)}", table(["source", "where", "reason"], rows))
    return page.write(path)


def _legend() -> str:
    return (
        '<p>Plain text is the prompt. <span class="learn">Coloured text</span><span class="end">end</span> is what the '
        "model learns to say, with the token that ends it. Images are what the encoder gets: resized, cropped, their "
        "numbers turned back into colours.</p>"
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


def _card(sample: Sample, encoded: EncodedSample, processor: ContactSheetProcessor, *, where: str) -> str:
    images = _seen_images(sample, encoded, processor)
    frames = "".join(image_tag(image, alt=f"image {place + 1} of {sample.id}") for place, image in enumerate(images))
    shown = [_dialog(dialog, processor.tokenizer) for dialog in encoded.dialogs[:MAX_DIALOGS]]
    more = len(encoded.dialogs) - len(shown)
    rest = f'<div class="dialog"><small>and {more} more texts</small></div>' if more else ""
    prefix = f"{len(encoded.num_image_tokens)} image{'s' * (len(encoded.num_image_tokens) != 1)}"
    counts = f"{prefix}, {encoded.num_prefix_tokens} image tokens, {encoded.num_text_tokens} text tokens"
    return (
        f'<article class="sample"><div class="frames">{frames}</div><div class="texts"><p class="name">'
        f'{escape(sample.id)}</p><p class="soft">{escape(where)}<br>{counts}</p>{"".join(shown)}{rest}</div></article>'
    )


def _dialog(dialog: EncodedDialog, tokenizer: Any) -> str:
    """Draw a dialog's tokens: runs of prompt and of answer, end-of-text as a chip of its own."""
    specials = set(tokenizer.all_special_ids)
    pieces = []
    tokens = zip(dialog.input_ids, dialog.supervised, strict=True)
    for (is_supervised, special), run in groupby(tokens, key=lambda t: (t[1], t[0] if t[0] in specials else None)):
        ids = [token for token, _ in run]
        text = escape(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        style = "end" if is_supervised and special is not None else "start" if special is not None else "learn"
        pieces.append(f'<span class="{style}">{text}</span>' if is_supervised or special is not None else text)
    cut = ' <span class="cut">cut off</span>' if dialog.truncated else ""
    counts = f"{len(dialog.input_ids)} tokens, {sum(dialog.supervised)} learned{cut}"
    return f'<div class="dialog"><small>{counts}</small>{"".join(pieces)}</div>'


def _seen_images(sample: Sample, encoded: EncodedSample, processor: ContactSheetProcessor) -> list[Image.Image]:
    """Turn pixels back into images; where they are no images (patches), open the originals."""
    pixels = encoded.vision_inputs.get("pixel_values")
    if pixels is None or pixels.ndim != 4:
        return [open_image(image) for image in sample.images[:MAX_FRAMES]]
    return [seen_image(pixel, processor.image_processor) for pixel in pixels[:MAX_FRAMES]]
