"""Read what is asked: dialogs to token ids, images to prefixes, and how many positions both leave for an answer.

In: samples whose dialogs end in a turn without an answer. Out: one `Question` for each dialog.

    asked = read_samples(processor, samples)                 # touches no model, so it may run ahead
    questions = read_questions(model, processor, asked, ...)
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from visgraft.data.sample import Sample
from visgraft.errors import BadSampleError, ModelError
from visgraft.inference.prefix_cache import Pixels, Prefix, PrefixCache, encode, read_pixels
from visgraft.model.vlm import VisionLanguageModel
from visgraft.processor import Processor


@dataclass(frozen=True)
class Question:
    """One dialog to answer: its place among all, its prompt's ids, the images in front, the longest answer."""

    index: int
    ids: list[int]
    prefix: Prefix
    max_new_tokens: int


@dataclass
class Asked:
    """Some samples, read: the pixels of each group of images once, and the place of each sample's first dialog.

    Attributes:
        samples: (place of the first dialog, sample, key of its images).
        pixels: of each group of images; the error of a group that cannot be used.
    """

    samples: list[tuple[int, Sample, Hashable]] = field(default_factory=list)
    pixels: dict[Hashable, Pixels | BadSampleError] = field(default_factory=dict)

    @property
    def num_dialogs(self) -> int:
        """The dialogs of all the samples."""
        return sum(len(sample.dialogs) for _, sample, _ in self.samples)


def read_samples(processor: Processor, samples: Iterable[Sample], *, num_dialogs: int) -> Iterator[Asked]:
    """Read the images of samples, so that about so many dialogs come together; images that they share are read once."""
    asked, place = Asked(), 0
    for sample in samples:
        key = _same_images(sample)
        asked.samples.append((place, sample, key))
        place += len(sample.dialogs)
        if key not in asked.pixels:
            try:
                asked.pixels[key] = read_pixels(processor, sample.images)
            except BadSampleError as error:
                asked.pixels[key] = error
        if asked.num_dialogs >= num_dialogs:
            yield asked
            asked = Asked()
    if asked.samples:
        yield asked


def read_questions(
    model: VisionLanguageModel,
    processor: Processor,
    asked: Asked,
    *,
    max_new_tokens: int,
    batch_size: int,
    cache: PrefixCache,
) -> list[Question]:
    """Encode the dialogs of what was read, and each group of images once; those about bad images are left out.

    Raises:
        ModelError: a prompt leaves no room for an answer.
    """
    good = {key: pixels for key, pixels in asked.pixels.items() if not isinstance(pixels, BadSampleError)}
    prefixes = dict(zip(good, encode(model, list(good.values()), cache=cache, batch_size=batch_size), strict=True))
    questions = []
    for first, sample, key in asked.samples:
        for offset, dialog in enumerate(sample.dialogs if key in prefixes else ()):
            ids = processor.prompt(dialog)
            limit = min(max_new_tokens, room_for_answer(model, len(ids), prefixes[key].num_tokens))
            questions.append(Question(first + offset, ids, prefixes[key], limit))
    return questions


def in_batches(questions: Sequence[Question], *, batch_size: int) -> Iterator[list[Question]]:
    """Cut questions into batches: those of like length together, and those about the same images next to each other."""
    group: dict[int, tuple[int, int]] = {}  # length of the longest row, place of the first question
    for question in questions:
        length, first = group.get(id(question.prefix), (0, question.index))
        length = max(length, question.prefix.num_tokens + len(question.ids))
        group[id(question.prefix)] = (length, first)
    by_limit: dict[int, list[Question]] = {}
    for question in sorted(questions, key=lambda q: (group[id(q.prefix)], len(q.ids), q.index)):
        by_limit.setdefault(question.max_new_tokens, []).append(question)
    for alike in by_limit.values():
        for start in range(0, len(alike), batch_size):
            yield alike[start : start + batch_size]


def num_prompt_positions(model: VisionLanguageModel, processor: Processor, sample: Sample) -> int:
    """Count the positions that a sample's one dialog takes in front of its answer; no image is opened.

    Where images bring their own number of tokens, each counts as many as the processor expects at most.
    """
    [dialog] = sample.dialogs
    num_image_tokens = len(sample.images) * processor.num_image_tokens
    return len(processor.prompt(dialog)) + positions_taken(model, num_image_tokens)


def room_for_answer(model: VisionLanguageModel, num_text_tokens: int, num_image_tokens: int) -> int:
    """Say how many new tokens the language model's positions leave.

    Raises:
        ModelError: none.
    """
    limit = model.attention_spec.max_positions
    if limit is None:
        return 2**31
    room = limit - num_text_tokens - positions_taken(model, num_image_tokens)
    if room < 1:
        raise ModelError(
            f"the prompt has {num_text_tokens} tokens behind {num_image_tokens} image tokens, and the {limit} "
            f"positions of {model.attention_spec.name} leave no room for an answer; shorten the prompt"
        )
    return room


def positions_taken(model: VisionLanguageModel, num_image_tokens: int) -> int:
    """Count the positions of image tokens; those of an imported ancestor take none (model/prefix_injection.py)."""
    return num_image_tokens if model.prefix_injection.at == "embeddings" else 0


def _same_images(sample: Sample) -> Hashable:
    """Give a key that is equal where the images are the same; each image stays alive while keys are compared."""
    return tuple(str(image) if isinstance(image, (str, Path)) else id(image) for image in sample.images)
