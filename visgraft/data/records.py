"""What one sample turned out to be: the few small facts about it that a check of all data needs, and nothing else.

In:  a sample, a processor. Out: a SampleRecord: numbers of 8 bytes in the place of texts and images, what marks them.

    looker = Looker(processor, settings=sources.settings, with_images=True)
    record = looker.look(samples[17], number=17)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol

from PIL import Image

from visgraft.config import DataSettings
from visgraft.data.balance import text_key, text_keys
from visgraft.data.batch import EncodedSample
from visgraft.data.images.opening import image_key, open_image
from visgraft.data.prompt import NAMED_TEMPLATES, EncodedDialog, PromptTemplate
from visgraft.data.sample import ImageRef, Sample, Turn
from visgraft.errors import BadSampleError

# What a text may be marked with; a control token or an added one is named behind the mark.
Mark = Literal["answer given", "answer in prompt", "replaced", "misread", "control", "added"]

SHORTEST_GIVEN = 20  # characters of an answer that no prompt offers as one choice among others
LONG_TEXT = 40  # characters of an answer that nobody writes twice by chance
TINY_SIDE = 32  # pixels: fewer on one side show little of anything
BLANK_RANGE = 8  # levels of 255 between the darkest and the brightest value of every colour
SHOWN = 48  # characters of a text that are shown

# UTF-8 read as cp1252 or Latin-1: "Ã©" for "é", "â€™" for an apostrophe.
_MISREAD = re.compile(
    "[\u00c2\u00c3][\u0080-\u00bf\u20ac\u2122\u0192\u2030\u0160]|\u00e2\u20ac[\u0080-\u00ff\u2010-\u2122]"
)
_FIELD = re.compile(r"\{[a-z]+\}")
_TEMPLATE_MARK = re.compile(r"\S*[#<\[|]\S*")  # of a template's own words those that nobody writes by chance
_CHOICES = re.compile(r"(?:\bor|,|/|\)|\n-|\d\.)\s*$")  # in front of the last of several
_ENDS = 2048  # bytes of an image that tell it from others of the same size
_EDGES = " \t\n\"'.!,;:"


class Encoder(Protocol):
    """What is needed of a processor."""

    tokenizer: Any

    @property
    def prompt_template(self) -> PromptTemplate:
        """What frames a prompt."""

    def encode_each(self, sample: Sample) -> tuple[EncodedDialog | str, ...]:
        """Encode each dialog of a sample by itself, or say in words why it cannot be used."""

    def encode_images(
        self, sample: Sample, dialogs: tuple[EncodedDialog, ...], *, max_pixels: int, exact_pixels: bool
    ) -> EncodedSample:
        """Add the pixels of a sample's images to its encoded dialogs, or raise BadSampleError."""


class ImageRecord(NamedTuple):
    """An image: a number that equal pixels share, and its size; without opening it, one that equal paths share."""

    key: int
    width: int = 0
    height: int = 0
    is_blank: bool = False


class TextRecord(NamedTuple):
    """A dialog: numbers that stand for its prompts and its answers, the first characters of them, its marks."""

    prompt: int
    answer: int
    shown_prompt: str
    shown_answer: str
    num_answer_characters: int
    marks: tuple[tuple[Mark, str], ...]

    @property
    def key(self) -> int:
        """A number that equal dialogs share."""
        return mix(self.prompt, self.answer)


class SampleRecord(NamedTuple):
    """What one sample turned out to be: why it is bad, None of a good one; of what is left of it, the rest."""

    number: int
    reason: str | None = None
    name: int | None = None  # stands for its id, if its row has one
    images: tuple[ImageRecord, ...] = ()
    texts: tuple[TextRecord, ...] = ()
    num_tokens: tuple[int, ...] = ()
    num_supervised: int = 0
    num_truncated: int = 0

    @property
    def image_key(self) -> int:
        """A number that samples about the same images share; 0 without an image."""
        return mix(*(image.key for image in self.images)) if self.images else 0


def mix(*keys: int) -> int:
    """Make one number of 8 bytes of several, in their order."""
    mixed = 0
    for key in keys:
        mixed = ((mixed ^ key) * 0x9E3779B97F4A7C15 + 0x7F4A7C15) & 0xFFFFFFFFFFFFFFFF
        mixed ^= mixed >> 29
    return mixed


class Looker:
    """Look at samples as training would; `with_images`: open their images too."""

    def __init__(self, processor: Encoder, *, settings: DataSettings, with_images: bool = True) -> None:
        self._processor = processor
        self._settings = settings
        self._with_images = with_images

    def look(self, sample: Sample, *, number: int) -> SampleRecord:
        """Encode a sample and note what it is; its id is what its row calls it."""
        outcomes = self._processor.encode_each(sample)
        reasons = [outcome for outcome in outcomes if isinstance(outcome, str)]
        encoded = tuple(outcome for outcome in outcomes if not isinstance(outcome, str))
        if not encoded:
            return SampleRecord(number, reasons[0] if reasons else "no dialog")
        try:
            images = self._look_at_images(sample, encoded)
        except BadSampleError as error:
            return SampleRecord(number, str(error))
        pairs = zip(sample.dialogs, outcomes, strict=True)
        return SampleRecord(
            number=number,
            reason=reasons[0] if reasons else None,
            name=None if sample.id is None else text_key(sample.id),
            images=images,
            texts=tuple(self.look_at_text(dialog) for dialog, outcome in pairs if not isinstance(outcome, str)),
            num_tokens=tuple(len(dialog.input_ids) for dialog in encoded),
            num_supervised=sum(sum(dialog.supervised) for dialog in encoded),
            num_truncated=sum(dialog.truncated for dialog in encoded),
        )

    def _look_at_images(self, sample: Sample, dialogs: tuple[EncodedDialog, ...]) -> tuple[ImageRecord, ...]:
        settings = self._settings
        if not self._with_images:
            return tuple(ImageRecord(_path_key(ref)) for ref in sample.images)
        watched = [_Watched(ref, settings.max_pixels) for ref in sample.images]
        encoded = self._processor.encode_images(
            replace(sample, images=watched), dialogs, max_pixels=settings.max_pixels, exact_pixels=settings.exact_pixels
        )
        return _images(watched, encoded)

    def look_at_text(self, dialog: Sequence[Turn]) -> TextRecord:
        """Note what a dialog is; it need not be one that can be encoded."""
        prompt, answer = text_keys(dialog)
        return TextRecord(
            prompt=prompt,
            answer=answer,
            shown_prompt=_shown(" / ".join(turn.request for turn in dialog)),
            shown_answer=_shown(" / ".join(turn.answer.strip() for turn in dialog)),
            num_answer_characters=max((len(turn.answer.strip()) for turn in dialog), default=0),
            marks=tuple(dict.fromkeys(mark for turn in dialog for mark in self._marks(turn))),
        )

    def _marks(self, turn: Turn) -> Iterator[tuple[Mark, str]]:
        request, answer = turn.request, turn.answer.strip()
        given = _how_given(request, answer)
        if given is not None:
            yield given, ""
        for text in (request, answer):
            if "\ufffd" in text:
                yield "replaced", ""
            if _MISREAD.search(text):
                yield "misread", ""
            yield from (("control", found) for found in self._control.findall(text))
            yield from (("added", found) for found in self._added.findall(text))

    @cached_property
    def _control(self) -> re.Pattern[str]:
        """Find special tokens of the tokenizer, and the template's own marks, in texts."""
        added = self._processor.tokenizer.added_tokens_decoder.values()
        special = {token.content for token in added if token.special}
        special.update(self._processor.tokenizer.all_special_tokens)
        spec = self._processor.prompt_template.spec
        words = _FIELD.sub(" ", NAMED_TEMPLATES.get(spec, spec))
        return _any_of(special | set(_TEMPLATE_MARK.findall(words)))

    @cached_property
    def _added(self) -> re.Pattern[str]:
        """Find added tokens that are not special."""
        added = self._processor.tokenizer.added_tokens_decoder.values()
        return _any_of({token.content for token in added if not token.special})

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_control", "_added")}


class _Watched:
    """An image that is opened as always, and remembers its size and whether it shows anything; see WrappedImage."""

    def __init__(self, ref: ImageRef, max_pixels: int) -> None:
        self.image = ref
        self._max_pixels = max_pixels
        self.size = (0, 0)
        self.is_blank = False

    def read(self) -> Image.Image:
        """Return the image."""
        image = open_image(self.image, max_pixels=self._max_pixels)
        self.size = image.size
        self.is_blank = all(high - low <= BLANK_RANGE for low, high in image.getextrema())  # type: ignore[misc]
        return image


def _images(watched: Sequence[_Watched], encoded: EncodedSample) -> tuple[ImageRecord, ...]:
    """Name images by the pixels that the encoder gets: the same for copies, whatever the file around them."""
    tensors = [tensor for _, tensor in sorted(encoded.vision_inputs.items())]
    records = []
    for number, image in enumerate(watched):
        parts = [tensor[number] for tensor in tensors if len(tensor) == len(watched)]
        whole = [] if parts else [number, *map(_digest, tensors)]  # images of several tiles: all those of the sample
        pixels = [text_key(repr(part.shape)) ^ _digest(part) for part in parts]
        records.append(ImageRecord(mix(*pixels, *whole), *image.size, is_blank=image.is_blank))
    return tuple(records)


def _digest(tensor: Any) -> int:
    return int.from_bytes(image_key(tensor.contiguous().numpy().tobytes(), by_content=True)[:8])


def quick_key(ref: ImageRef) -> int:
    """Return a number that equal images share, as far as a path tells, or size, beginning and end of what it holds."""
    held = ref
    if isinstance(ref, Mapping):
        held = next((ref[key] for key in ("bytes", "base64", "path") if ref.get(key) is not None), "")
    if isinstance(held, str | bytes) and len(held) > 2 * _ENDS:
        held = repr((len(held), held[:_ENDS], held[-_ENDS:]))
    return text_key(repr(held))


def _path_key(ref: ImageRef) -> int:
    return int.from_bytes(image_key(ref, by_content=False)[:8])


def _how_given(request: str, answer: str) -> Mark | None:
    """Say whether an answer stands in its prompt: handed over, or somewhere in it, as one of several choices may."""
    prompt, wanted = request.casefold().strip(_EDGES), answer.casefold().strip(_EDGES)
    if len(wanted) < 2 or wanted not in prompt:
        return None
    if not re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", prompt):
        return None
    is_last = prompt.endswith(wanted) and not _CHOICES.search(prompt[: -len(wanted)])
    return "answer given" if len(wanted) >= SHORTEST_GIVEN or is_last else "answer in prompt"


def _any_of(tokens: set[str]) -> re.Pattern[str]:
    """Find any of some tokens, the longest at a place; one of a single character is written by anybody."""
    longest_first = sorted((token for token in tokens if len(token.strip()) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _shown(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
