"""Answer many prompts in batches; prompts of different lengths and samples of different images run together.

In: a model and its processor, samples whose dialogs end in a turn without an answer. Out: the answers as plain text.
An image is read by encoder and language model once, for all that is asked about it; images are opened while the model
answers about those before.

    texts = answer(model, processor, [Sample(images=["cat.jpg"], dialogs=[[Turn("What is it?", "")]])])
    for each in answer_each(model, processor, samples): print(each.text or each.error)
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from visgraft.data.prompt import end_token_id
from visgraft.data.sample import Sample
from visgraft.errors import BadSampleError, ModelError
from visgraft.inference.prefix_cache import Pixels, Prefix, PrefixCache, encode_prefixes, open_pixels, read_prefixes
from visgraft.model.cache import PreallocatedCache
from visgraft.model.parts import input_embedding
from visgraft.model.sequence import append_segment, empty_table
from visgraft.model.vlm import VisionLanguageModel
from visgraft.processor import Processor
from visgraft.segments import IMAGE

# The most probable token, whatever settings for chatting the language model brought along.
GREEDY = {
    "do_sample": False,
    "num_beams": 1,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
}
OTHER_CACHES = ("cache_implementation", "past_key_values")  # of `generate`, which this module makes itself
_BATCHES_AT_ONCE = 4  # prompts are sorted by length among so many batches
_NEW_TOKENS_AT_FIRST = 256  # for which the cache has room; longer answers are rare

T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """What came of one dialog: an answer, or why its images cannot be used.

    Attributes:
        text: the answer; empty where there is an error.
        has_stopped: it came to an end of its own and was not cut at `max_new_tokens`.
        error: an image of the sample cannot be used.
    """

    text: str
    has_stopped: bool = False
    error: BadSampleError | None = None


def answer(
    model: VisionLanguageModel,
    processor: Processor,
    samples: Sequence[Sample],
    *,
    max_new_tokens: int = 32,
    batch_size: int = 16,
    stopped: list[bool] | None = None,
    prefix_cache: PrefixCache | None = None,
    **generate: Any,
) -> list[str]:
    """Answer the last turn of every dialog; what the turn itself has as its answer is ignored.

    Prompts of different lengths share a batch and images are read once; neither changes any answer.

    Args:
        model: on its device; it may be in the middle of training.
        processor: of that model.
        samples: each with one dialog or several.
        max_new_tokens: longest answer; shorter where the language model's positions end.
        batch_size: dialogs, or samples' images, that run at once.
        stopped: a list to fill: whether each answer came to an end of its own, not cut at `max_new_tokens`.
        prefix_cache: keeps what images became for later calls; default one for this call alone.
        generate: what else Hugging Face's `generate` takes; without it the most probable token is taken each time.

    Returns:
        One text for each dialog, in the order of the samples and their dialogs.

    Raises:
        BadSampleError: an image cannot be used.
        ModelError: a prompt leaves no room for an answer, or another cache of keys and values is asked for.
    """
    answers = []
    settings = {"max_new_tokens": max_new_tokens, "batch_size": batch_size, "prefix_cache": prefix_cache, **generate}
    for each in answer_each(model, processor, samples, **settings):
        if each.error is not None:
            raise each.error
        answers.append(each)
    if stopped is not None:
        stopped[:] = [each.has_stopped for each in answers]
    return [each.text for each in answers]


def answer_each(
    model: VisionLanguageModel,
    processor: Processor,
    samples: Iterable[Sample],
    *,
    max_new_tokens: int = 32,
    batch_size: int = 16,
    prefix_cache: PrefixCache | None = None,
    **generate: Any,
) -> Iterator[Answer]:
    """Answer as `answer` does, dialog after dialog as they are ready; a bad image spoils its own sample alone.

    Some batches are read, answered and given out at a time, so any number of samples takes the same memory. Between
    two answers the model is as the caller left it.

    Raises:
        ModelError: a prompt leaves no room for an answer, or another cache of keys and values is asked for.
    """
    for name in OTHER_CACHES:
        if generate.get(name) is not None:
            raise ModelError(
                f"{name}: got {generate[name]!r}, but answers are made with visgraft's own cache, whose room is taken "
                "once and whose image prefixes are kept; leave it out, or call model.generate"
            )
    cache = PrefixCache() if prefix_cache is None else prefix_cache
    stop_ids = stop_token_ids(model, processor)
    settings = {**GREEDY, "eos_token_id": stop_ids, "pad_token_id": processor.tokenizer.pad_token_id, **generate}
    for opened in _prefetch(_open_samples(processor, samples, num_dialogs=batch_size * _BATCHES_AT_ONCE)):
        answers: dict[int, Answer] = {}
        with eval_mode(model):
            cache.belong_to(model)
            prompts = _encode_prompts(
                model, processor, opened, max_new_tokens=max_new_tokens, batch_size=batch_size, cache=cache
            )
            for batch in _in_batches(prompts, batch_size=batch_size):
                read_prefixes(model, [prompt.prefix for prompt in batch], cache=cache)
                for prompt, new in zip(batch, _generate(model, batch, settings), strict=True):
                    text = text_of(processor, new, stop_ids)
                    answers[prompt.index] = Answer(text, has_stopped=not {*stop_ids}.isdisjoint(new))
        for first, sample, key in opened.samples:
            bad = opened.pixels[key]
            for index in range(first, first + len(sample.dialogs)):
                yield Answer("", error=bad) if isinstance(bad, BadSampleError) else answers[index]


# --- From samples to answers


@dataclass(frozen=True)
class EncodedPrompt:
    """One dialog to answer: its place among all, its prompt's ids, the images in front, the longest answer."""

    index: int
    ids: list[int]
    prefix: Prefix
    max_new_tokens: int


@dataclass
class _OpenedSamples:
    """Some samples, read: the pixels of each group of images once, and the place of each sample's first dialog.

    Attributes:
        samples: (place of the first dialog, sample, key of its images).
        pixels: of each group of images; the error of a group that cannot be used.
    """

    samples: list[tuple[int, Sample, Hashable]] = field(default_factory=list)
    pixels: dict[Hashable, Pixels | BadSampleError] = field(default_factory=dict)


def _open_samples(processor: Processor, samples: Iterable[Sample], *, num_dialogs: int) -> Iterator[_OpenedSamples]:
    """Read the images of samples, so that about so many dialogs come together; images that they share are read once."""
    opened, first, place = _OpenedSamples(), 0, 0
    for sample in samples:
        key = _same_images(sample)
        opened.samples.append((place, sample, key))
        place += len(sample.dialogs)
        if key not in opened.pixels:
            try:
                opened.pixels[key] = open_pixels(processor, sample.images)
            except BadSampleError as error:
                opened.pixels[key] = error
        if place - first >= num_dialogs:
            yield opened
            opened, first = _OpenedSamples(), place
    if opened.samples:
        yield opened


def _encode_prompts(
    model: VisionLanguageModel,
    processor: Processor,
    opened: _OpenedSamples,
    *,
    max_new_tokens: int,
    batch_size: int,
    cache: PrefixCache,
) -> list[EncodedPrompt]:
    """Encode the dialogs of what was read, and each group of images once; those about bad images are left out.

    Raises:
        ModelError: a prompt leaves no room for an answer.
    """
    good = {key: pixels for key, pixels in opened.pixels.items() if not isinstance(pixels, BadSampleError)}
    encoded = encode_prefixes(model, list(good.values()), cache=cache, batch_size=batch_size)
    prefixes = dict(zip(good, encoded, strict=True))
    prompts = []
    for first, sample, key in opened.samples:
        for offset, dialog in enumerate(sample.dialogs if key in prefixes else ()):
            ids = processor.prompt(dialog)
            limit = min(max_new_tokens, room_for_answer(model, len(ids), prefixes[key].num_tokens))
            prompts.append(EncodedPrompt(first + offset, ids, prefixes[key], limit))
    return prompts


def _in_batches(prompts: Sequence[EncodedPrompt], *, batch_size: int) -> Iterator[list[EncodedPrompt]]:
    """Cut prompts into batches: those of similar length together, those about the same images next to each other."""
    group: dict[int, tuple[int, int]] = {}  # length of the longest row, place of the first prompt
    for prompt in prompts:
        length, first = group.get(id(prompt.prefix), (0, prompt.index))
        length = max(length, prompt.prefix.num_tokens + len(prompt.ids))
        group[id(prompt.prefix)] = (length, first)
    by_limit: dict[int, list[EncodedPrompt]] = {}
    for prompt in sorted(prompts, key=lambda p: (group[id(p.prefix)], len(p.ids), p.index)):
        by_limit.setdefault(prompt.max_new_tokens, []).append(prompt)
    for alike in by_limit.values():
        for start in range(0, len(alike), batch_size):
            yield alike[start : start + batch_size]


def _same_images(sample: Sample) -> Hashable:
    """Give a key that is equal where the images are the same; each image stays alive while keys are compared."""
    return tuple(str(image) if isinstance(image, (str, Path)) else id(image) for image in sample.images)


def _generate(model: VisionLanguageModel, batch: Sequence[EncodedPrompt], settings: dict[str, Any]) -> list[list[int]]:
    """Generate the answers' ids: rows are [images][pads][prompt], the images already read."""
    limit = batch[0].max_new_tokens
    length = max(len(prompt.ids) for prompt in batch)
    pads = [length - len(prompt.ids) for prompt in batch]
    ids = [[settings["pad_token_id"] or 0] * num + prompt.ids for num, prompt in zip(pads, batch, strict=True)]
    mask = [[0] * num + [1] * (length - num) for num in pads]
    counts = torch.tensor([[prompt.prefix.num_tokens] for prompt in batch], device=model.device)
    num_image = int(counts.max())
    is_image = torch.arange(num_image, device=model.device) >= num_image - counts
    context = append_segment(empty_table(len(batch), device=model.device), is_image, kind=IMAGE)
    cache = PreallocatedCache(capacity=num_image + length + min(limit, _NEW_TOKENS_AT_FIRST))
    copies = max(settings["num_beams"], settings.get("num_return_sequences") or 1)
    if num_image:
        cache.put([prompt.prefix.states for prompt in batch for _ in range(copies)])
    output: Tensor = model.generate(
        input_ids=torch.tensor(ids, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
        context=context,
        past_key_values=cache,
        max_new_tokens=limit,
        **settings,
    )
    new: list[list[int]] = output[:, length:].tolist()
    return new


def _prefetch(items: Iterator[T]) -> Iterator[T]:
    """Make the next item in a thread while the present one is worked on; an error is raised where its item would be."""
    nothing: Any = object()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="images") as pool:
        following: Future[T] = pool.submit(next, items, nothing)
        while (item := following.result()) is not nothing:
            following = pool.submit(next, items, nothing)
            yield item


# --- For every kind of answering


@contextmanager
def eval_mode(model: VisionLanguageModel) -> Iterator[None]:
    """Run without gradients and dropout; without the caller's autocast, in the format that frozen weights have."""
    was_training, kind = model.training, model.device.type
    dtype = input_embedding(model).dtype
    is_mixed = dtype in (torch.bfloat16, torch.float16) and not torch.is_autocast_enabled(kind)
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(kind, dtype=dtype) if is_mixed else nullcontext():
            yield
    finally:
        model.train(was_training)


def text_of(processor: Processor, ids: Sequence[int], stop_ids: Sequence[int]) -> str:
    """Decode an answer up to where it stops, without outer white space."""
    end = next((place for place, token in enumerate(ids) if token in stop_ids), len(ids))
    text = processor.tokenizer.decode(ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text).strip()


def stop_token_ids(model: VisionLanguageModel, processor: Processor) -> list[int]:
    """List where answers end: the token that training put there, and those of the language model itself."""
    own = model.generation_config.eos_token_id
    own = [] if own is None else own if isinstance(own, list) else [own]
    return sorted({end_token_id(processor.tokenizer, processor.prompt_template), *own})


def num_prompt_positions(model: VisionLanguageModel, processor: Processor, sample: Sample) -> int:
    """Count the positions that a sample's one dialog takes in front of its answer; no image is opened.

    Where images bring their own number of tokens, each counts as many as the processor expects at most.
    """
    [dialog] = sample.dialogs
    num_image_tokens = len(sample.images) * processor.most_image_tokens
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
    """Count the positions of image tokens; those of an imported git_llm OPT take none (model/prefix_injection.py)."""
    return num_image_tokens if model.prefix_injection.at == "embeddings" else 0
