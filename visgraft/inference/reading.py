"""What is read in front of a prompt's last text: images, known ones from the cache, and earlier turns.

In: prompts. Out: for each what its row begins with, and the ids that are left to read. Images in front are read
together; what a conversation has read is taken as it is, up to the first position that differs.

    fronts = read_front(model, prompts, cache=prefix_cache)
    fronts[id(prompt)].states, fronts[id(prompt)].unread
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from visgraft.errors import ModelError
from visgraft.inference.limits import room_for_answer
from visgraft.inference.prefix_cache import PrefixCache, encode_prefixes, read_prefixes
from visgraft.inference.requests import ImageSegment, Prompt, Segment, position_keys
from visgraft.model.cache import KeptStates, PreallocatedCache, rows_of
from visgraft.model.sequence import SegmentTable, append_segment, empty_table
from visgraft.model.state_cache import StateCache
from visgraft.model.vlm import VisionLanguageModel
from visgraft.segments import IMAGE, TEXT

_ENCODED_AT_ONCE = 8  # groups of images in one forward of the encoder; more are no faster, and take more memory


@dataclass(frozen=True)
class Front:
    """What a row begins with.

    Attributes:
        states: keys and values of at least the first `num_read` positions; None = of none.
        num_read: positions that are read.
        unread: ids behind these, at least one.
    """

    states: KeptStates | None
    num_read: int
    unread: list[int]


def read_front(
    model: VisionLanguageModel,
    prompts: Sequence[Prompt],
    *,
    cache: PrefixCache,
    ahead: Sequence[Prompt] = (),
    most_pictures: int = 0,
) -> dict[int, Front | ModelError]:
    """Read all of some prompts but the last text of each; what is known is not read again.

    A prompt that leaves no room for an answer is not read: its error stands in its place, and the others are read.

    Args:
        model: in `eval_mode`.
        prompts: to be read now.
        cache: what is known of images.
        ahead: prompts that come next; where images are read now, those in front of them are read along, as some cost
            little more than one.
        most_pictures: that are read in one go because of `ahead`.
    """
    images = {id(segment): segment for prompt in prompts for segment in _images(prompt)}
    next_ones = _next_images(images, ahead, most_pictures=most_pictures)
    encode_images(model, [*images.values(), *next_ones], cache=cache)
    refused = {id(prompt): error for prompt in prompts if (error := _refusal(model, prompt)) is not None}
    different = {id(prompt): prompt for prompt in prompts if id(prompt) not in refused}
    known = {key: _num_common(prompt) for key, prompt in different.items()}
    for key, prompt in different.items():
        prompt.num_known = max(known[key], _num_in_front(prompt))
    begins = [(known[key], prompt.segments[0]) for key, prompt in different.items()]
    unread = [first.prefix for num, first in begins if isinstance(first, ImageSegment) and num < first.num_tokens]
    unread += [image.prefix for image in next_ones if _refusal(model, Prompt([image, [0]])) is None]
    read_prefixes(model, [prefix for prefix in unread if prefix is not None], cache=cache)
    return {**refused, **{key: _front(model, prompt, num_read=known[key]) for key, prompt in different.items()}}


def _refusal(model: VisionLanguageModel, prompt: Prompt) -> ModelError | None:
    """Say why a prompt whose images are encoded cannot be answered; None: it can."""
    try:
        room_for_answer(model, len(prompt.text_ids), sum(image.num_tokens for image in _images(prompt)))
    except ModelError as error:
        return error
    return None


def _next_images(
    images: Mapping[int, ImageSegment], ahead: Sequence[Prompt], *, most_pictures: int
) -> list[ImageSegment]:
    """Choose the images that are read along with these, where some of these are to be read."""
    room = most_pictures - sum(image.num_pictures for image in images.values() if image.prefix is None)
    chosen: dict[int, ImageSegment] = {}
    if all(image.prefix is not None for image in images.values()):
        return []
    for prompt in ahead:
        first = prompt.segments[0]
        if not isinstance(first, ImageSegment) or first.prefix is not None or prompt.read is not None:
            continue
        if id(first) in images or id(first) in chosen:
            continue
        room -= first.num_pictures
        if room < 0:
            break
        chosen[id(first)] = first
    return [*chosen.values()]


def table_in_front(model: VisionLanguageModel, prompt: Prompt, front: Front) -> SegmentTable:
    """Say what stands at the positions of a prompt that are read: all of its segments but the unread end."""
    table = empty_table(1, device=model.device)
    *before, last = prompt.segments
    for segment in before:
        table = _append(model, table, segment)
    num_known = _length(last) - len(front.unread)
    return table if isinstance(last, ImageSegment) or not num_known else _append(model, table, last[:num_known])


def encode_images(model: VisionLanguageModel, images: Sequence[ImageSegment], *, cache: PrefixCache) -> None:
    """Make the prefixes of images that have none yet, those that are equal once."""
    waiting = [image for image in images if image.prefix is None]
    if images:
        cache.belong_to(model)
    if waiting:
        prefixes = encode_prefixes(
            model,
            [image.pixels for image in waiting],
            cache=cache,
            batch_size=_ENCODED_AT_ONCE,
            owners=[image.owner for image in waiting],
            begins=[image.begins for image in waiting],
        )
        for image, prefix in zip(waiting, prefixes, strict=True):
            image.prefix = prefix


def _num_in_front(prompt: Prompt) -> int:
    """Count the image tokens in front that the language model has read already."""
    first = prompt.segments[0]
    is_known = isinstance(first, ImageSegment) and first.prefix is not None and first.prefix.states is not None
    return _length(first) if is_known else 0


def _images(prompt: Prompt) -> list[ImageSegment]:
    return [segment for segment in prompt.segments if isinstance(segment, ImageSegment)]


def _front(model: VisionLanguageModel, prompt: Prompt, *, num_read: int) -> Front:
    """Say what a row begins with; segments between what is known and the last text are read here."""
    *before, last = prompt.segments
    assert not isinstance(last, ImageSegment) and last, "a prompt ends in ids"
    known = None if prompt.read is None else prompt.read.states
    if before and isinstance(before[0], ImageSegment) and num_read < before[0].num_tokens:
        assert before[0].prefix is not None
        known, num_read = before[0].prefix.states, before[0].num_tokens
    num_before = sum(_length(segment) for segment in before)
    if num_read < num_before:
        known, num_read = _read_on(model, before, known, num_read), num_before
    return Front(known, num_read, last[num_read - num_before :])


def _length(segment: Segment) -> int:
    return segment.num_tokens if isinstance(segment, ImageSegment) else len(segment)


def _num_common(prompt: Prompt) -> int:
    """Count the positions that were read before and are wanted again; the last one is always read anew."""
    if prompt.read is None:
        return 0
    old, wanted = prompt.read.keys, position_keys(prompt.segments)
    different = (place for place, (one, other) in enumerate(zip(old, wanted, strict=False)) if one != other)
    common = min(next(different, len(old)), len(wanted) - 1)
    return common if common == len(old) or prompt.read.states.can_be_cut else 0


def _read_on(
    model: VisionLanguageModel, segments: Sequence[Segment], known: KeptStates | None, num_read: int
) -> KeptStates:
    """Read segments behind what is known of them, one after the other, and give all of it."""
    cache = model.make_reading_cache(capacity=sum(_length(segment) for segment in segments))
    table = empty_table(1, device=model.device)
    if known is not None and num_read:
        cache.put([known])
        cache.cut(num_read)
    place = 0
    for segment in segments:
        start, place = place, place + _length(segment)
        if place > num_read:
            _read_segment(model, segment, max(0, num_read - start), table, cache)
        table = _append(model, table, segment)
    return rows_of(cache, [place])[0]


def _read_segment(
    model: VisionLanguageModel,
    segment: Segment,
    num_known: int,
    table: SegmentTable,
    cache: PreallocatedCache | StateCache,
) -> None:
    """Read one segment; of a text, what is not yet known. `table` is what stands in front of the segment."""
    if not isinstance(segment, ImageSegment):
        context = _append(model, table, segment[:num_known]) if num_known else table
        row = torch.tensor([segment[num_known:]], device=model.device)
        model.read_text(row, context=context, cache=cache, logits_to_keep=1)
        return
    assert segment.prefix is not None
    tokens = segment.prefix.tokens
    if tokens is None:  # it was read before, in front of a row
        [prefix] = encode_prefixes(
            model, [segment.pixels], cache=PrefixCache(max_bytes=0), batch_size=1, begins=[segment.begins]
        )
        tokens = prefix.tokens
    assert tokens is not None
    mask = torch.ones(1, len(tokens), dtype=torch.bool, device=model.device)
    model.read_image(tokens[None], image_token_mask=mask, context=table, cache=cache)


def _append(model: VisionLanguageModel, table: SegmentTable, segment: Segment) -> SegmentTable:
    mask = torch.ones(1, _length(segment), dtype=torch.bool, device=table.kind.device)
    if not isinstance(segment, ImageSegment):
        return append_segment(table, mask, kind=TEXT)
    return append_segment(table, mask, kind=IMAGE, image_sees_before=model.image_sees_before)
