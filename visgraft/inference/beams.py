"""Answers that the decoding loop does not make: beams and other searches, by Hugging Face's own `generate`.

In: prompts of `prompts_of`, and settings of `generate`. Out: the ids of their answers. An image is read once, as
everywhere; a batch waits for its longest answer.

    ids = generate_together(model, processor, prompts, cache=cache, max_new_tokens=32, settings={"num_beams": 4})
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from visgraft.errors import ModelError
from visgraft.inference.decoding import GREEDY
from visgraft.inference.limits import room_for_answer, stop_token_ids
from visgraft.inference.prefix_cache import PrefixCache
from visgraft.inference.reading import Front, read_front
from visgraft.inference.requests import Prompt
from visgraft.model.cache import NAMES, as_argument
from visgraft.model.sequence import append_segment, empty_table
from visgraft.model.vlm import VisionLanguageModel
from visgraft.processor import Processor
from visgraft.segments import IMAGE

OTHER_CACHES = ("cache_implementation", *NAMES)  # of `generate`, which visgraft makes itself
_NEW_TOKENS_AT_FIRST = 256  # for which the cache has room; longer answers are rare


def check_caches(settings: dict[str, Any]) -> None:
    """Refuse another cache than visgraft's own.

    Raises:
        ModelError: one is asked for.
    """
    for name in OTHER_CACHES:
        if settings.get(name) is not None:
            raise ModelError(
                f"{name}: got {settings[name]!r}, but answers are made with visgraft's own cache, whose room is taken "
                "once and whose image prefixes are kept; leave it out, or call model.generate"
            )


def generate_together(
    model: VisionLanguageModel,
    processor: Processor,
    prompts: Sequence[Prompt],
    *,
    cache: PrefixCache,
    max_new_tokens: int,
    settings: dict[str, Any],
) -> list[list[int] | ModelError]:
    """Generate the ids of some prompts' answers, in `eval_mode`; prompts of equal room for an answer run together.

    A prompt that leaves no room for an answer costs itself alone: its error stands in the place of its ids.
    """
    read = read_front(model, prompts, cache=cache)
    answers: list[list[int] | ModelError] = []
    fronts: dict[int, Front] = {}
    for index, prompt in enumerate(prompts):
        front = read[id(prompt)]
        answers.append(front if isinstance(front, ModelError) else [])
        if not isinstance(front, ModelError):
            fronts[index] = front
    rooms = {
        index: min(max_new_tokens, room_for_answer(model, len(front.unread), front.num_read))
        for index, front in fronts.items()
    }
    own = {"eos_token_id": stop_token_ids(model, processor), "pad_token_id": processor.tokenizer.pad_token_id}
    for limit in sorted(set(rooms.values())):
        alike = [index for index, room in rooms.items() if room == limit]
        given = {**GREEDY, **own, **settings, "max_new_tokens": limit}
        for index, ids in zip(alike, _generate(model, [fronts[index] for index in alike], given), strict=True):
            answers[index] = ids
    return answers


def _generate(model: VisionLanguageModel, batch: Sequence[Front], settings: dict[str, Any]) -> list[list[int]]:
    """Generate the answers' ids: rows are [images][pads][prompt], the images already read."""
    length = max(len(front.unread) for front in batch)
    pads = [length - len(front.unread) for front in batch]
    ids = [[settings["pad_token_id"] or 0] * num + front.unread for num, front in zip(pads, batch, strict=True)]
    mask = [[0] * num + [1] * (length - num) for num in pads]
    counts = torch.tensor([[front.num_read] for front in batch], device=model.device)
    num_image = int(counts.max())
    is_image = torch.arange(num_image, device=model.device) >= num_image - counts
    context = append_segment(empty_table(len(batch), device=model.device), is_image, kind=IMAGE)
    new_at_first = min(settings["max_new_tokens"], _NEW_TOKENS_AT_FIRST)
    cache = model.make_reading_cache(capacity=num_image + length + new_at_first)
    copies = max(settings["num_beams"], settings.get("num_return_sequences") or 1)
    if num_image:
        cache.put([front.states for front in batch for _ in range(copies)])
    output: Tensor = model.generate(
        input_ids=torch.tensor(ids, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
        context=context,
        **as_argument(cache),
        **settings,
    )
    new: list[list[int]] = output[:, length:].tolist()
    return new
