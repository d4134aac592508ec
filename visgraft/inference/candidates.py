"""Choose among given answers by their likelihood: multiple choice, class names.

In: a question about images, candidate answers. Out: the log-likelihood of each, as an answer that ends there. All
candidates stand behind one image and one prompt, which are read once, and none sees another:

          i i q q a a b
        a 1 1 1 1 1 . .      a candidate sees the image, the question and itself
        a 1 1 1 1 1 1 .
        b 1 1 1 1 . . 1      the next one restarts behind the question

What several candidates begin with in common is read once, too (branches.py).

    scores = score_candidates(model, processor, sample, ["red", "blue"])
    best = max(zip(scores, ["red", "blue"]))[1]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from visgraft.data.prompt import encode_dialog
from visgraft.data.sample import Sample, Turn
from visgraft.errors import ConfigError, ModelError
from visgraft.inference.eval_mode import eval_mode
from visgraft.inference.limits import room_for_answer
from visgraft.inference.prefix_cache import PrefixCache
from visgraft.inference.reading import encode_images, read_front, table_in_front
from visgraft.inference.requests import ImageSegment, Prompt, prompts_of
from visgraft.model.cache import PreallocatedCache
from visgraft.model.sequence import SegmentTable, append_segment
from visgraft.model.state_cache import StateCache
from visgraft.model.vlm import VisionLanguageModel
from visgraft.processor import Processor
from visgraft.segments import TEXT

Normalise = Literal["sum", "token", "character"]
_TOKENS_AT_ONCE = 512  # candidates' tokens in one forward, so that logits of a large vocabulary fit


def score_candidates(
    model: VisionLanguageModel,
    processor: Processor,
    sample: Sample,
    candidates: Sequence[str],
    *,
    normalise: Normalise = "sum",
    prefix_cache: PrefixCache | None = None,
) -> list[float]:
    """Score answers to the last turn of a sample's one dialog.

    Args:
        model: on its device.
        processor: of that model.
        sample: images and one dialog; what its last turn has as its answer is ignored.
        candidates: the answers to choose among, at least one.
        normalise: `sum` = log P(answer and its end-of-text | images, prompt); `token` = that divided by its tokens,
            end-of-text included; `character` = divided by its characters. Quotients favour long answers less harshly,
            but are no probabilities.
        prefix_cache: keeps what the images became for later calls.

    Returns:
        One number for each candidate, in nats; larger is likelier.

    Raises:
        BadSampleError: an image cannot be used, or a candidate is empty.
        ConfigError: no candidate, or an unknown way to normalise.
        ModelError: a candidate does not fit behind the prompt.
    """
    _check(candidates, normalise)
    [_] = sample.dialogs
    [prompt] = prompts_of(processor, sample)
    return score_prompt(model, processor, prompt, candidates, normalise=normalise, prefix_cache=prefix_cache)


def score_prompt(
    model: VisionLanguageModel,
    processor: Processor,
    prompt: Prompt,
    candidates: Sequence[str],
    *,
    normalise: Normalise = "sum",
    prefix_cache: PrefixCache | None = None,
) -> list[float]:
    """Score answers to a prompt with its dialog, whose images may stand anywhere and parts of which may be read.

    Arguments, results and errors are those of `score_candidates`.
    """
    _check(candidates, normalise)
    cache = PrefixCache() if prefix_cache is None else prefix_cache
    num_text = len(processor.prompt(prompt.dialog))
    answers = [_answer_ids(processor, prompt.dialog, candidate, num_text) for candidate in candidates]
    longest = max(map(len, answers))
    with eval_mode(model):
        images = [segment for segment in prompt.segments if isinstance(segment, ImageSegment)]
        encode_images(model, images, cache=cache)
        room_for_answer(model, len(prompt.text_ids) + longest - 1, sum(image.num_tokens for image in images))
        front = read_front(model, [prompt], cache=cache)[id(prompt)]
        if isinstance(front, ModelError):
            raise front
        num_new = len(front.unread) + min(sum(map(len, answers)), _TOKENS_AT_ONCE + longest)
        read = model.make_reading_cache(capacity=front.num_read + num_new)
        context = table_in_front(model, prompt, front)
        if front.states is not None:
            read.put([front.states])
            read.cut(front.num_read)
        row = torch.tensor([front.unread], device=model.device)
        first = model.read_text(row, context=context, cache=read, logits_to_keep=1).logits
        assert first is not None
        context = append_segment(context, torch.ones_like(row, dtype=torch.bool), kind=TEXT)
        sums: list[float] = []
        for group in _in_groups(answers):
            sums += _sum_up(model, group, first[0, -1], context=context, cache=read)
    if normalise == "sum":
        return sums
    sizes = [*map(len, answers)] if normalise == "token" else [len(candidate.strip()) for candidate in candidates]
    return [total / size for total, size in zip(sums, sizes, strict=True)]


def _check(candidates: Sequence[str], normalise: str) -> None:
    if normalise not in get_args(Normalise):
        raise ConfigError(f"normalise: got {normalise!r}, allowed are {', '.join(get_args(Normalise))}")
    if not candidates:
        raise ConfigError("candidates: got none, need at least one")


def _answer_ids(processor: Processor, dialog: Sequence[Turn], candidate: str, num_prompt: int) -> list[int]:
    """Encode a candidate and its end-of-text, as training would behind the same prompt."""
    turns = [*dialog[:-1], replace(dialog[-1], answer=candidate)]
    return list(encode_dialog(processor.tokenizer, processor.prompt_template, turns).input_ids[num_prompt:])


def _in_groups(answers: Sequence[list[int]]) -> Iterator[list[list[int]]]:
    """Cut candidates into groups of about so many tokens."""
    group: list[list[int]] = []
    for answer in answers:
        group.append(answer)
        if sum(map(len, group)) >= _TOKENS_AT_ONCE:
            yield group
            group = []
    if group:
        yield group


def _sum_up(
    model: VisionLanguageModel,
    answers: Sequence[list[int]],
    first: Tensor,
    *,
    context: SegmentTable,
    cache: PreallocatedCache | StateCache,
) -> list[float]:
    """Sum log P of each answer's tokens; the cache is afterwards as it was.

    Args:
        model: of which `cache` holds what `context` says.
        answers: ids, end-of-text last.
        first: [V] logits of the first token of every answer.
        context: images and prompt.
        cache: what they became.
    """
    targets = torch.tensor([token for answer in answers for token in answer[1:]], device=first.device)
    starts = torch.tensor([answer[0] for answer in answers], device=first.device)
    logits = model.read_branches([answer[:-1] for answer in answers], context=context, cache=cache)
    cache.cut(context.length)
    behind = logits.float().log_softmax(-1).gather(1, targets[:, None])[:, 0]
    totals = first.float().log_softmax(-1)[starts]
    owner = torch.tensor([index for index, answer in enumerate(answers) for _ in answer[1:]], device=first.device)
    summed: list[float] = totals.double().index_add(0, owner, behind.double()).tolist()
    return summed
