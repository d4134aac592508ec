"""Answer many questions in batches; prompts of unlike length and samples of unlike images run together.

In: a model and its processor, samples whose dialogs end in a turn without an answer. Out: the answers as plain text.
An image is read by encoder and language model once, for all that is asked about it; images are opened while the model
answers about those before.

    texts = answer(model, processor, [Sample(images=["cat.jpg"], dialogs=[[Turn("What is it?", "")]])])
    for answered in answer_each(model, processor, samples): print(answered.text or answered.error)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from visgraft.data.prompt import PromptTemplate, end_token_id
from visgraft.data.sample import Sample
from visgraft.errors import BadSampleError, ModelError
from visgraft.inference.prefix_cache import PrefixCache, read_prefixes
from visgraft.inference.questions import Question, in_batches, read_questions, read_samples
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
_BATCHES_AHEAD = 4  # prompts are sorted by length among so many batches at a time
_POSITIONS_AT_ONCE = 256  # new tokens for which room is taken at first; longer answers are rare

T = TypeVar("T")


@dataclass(frozen=True)
class Answered:
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

    Prompts of unlike length share a batch and images are read once; neither changes any answer.

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
    for answered in answer_each(model, processor, samples, **settings):
        if answered.error is not None:
            raise answered.error
        answers.append(answered)
    if stopped is not None:
        stopped[:] = [answered.has_stopped for answered in answers]
    return [answered.text for answered in answers]


def answer_each(
    model: VisionLanguageModel,
    processor: Processor,
    samples: Iterable[Sample],
    *,
    max_new_tokens: int = 32,
    batch_size: int = 16,
    prefix_cache: PrefixCache | None = None,
    **generate: Any,
) -> Iterator[Answered]:
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
    for asked in _ahead(read_samples(processor, samples, num_dialogs=batch_size * _BATCHES_AHEAD)):
        answers: dict[int, Answered] = {}
        with answering(model):
            cache.belong_to(model)
            questions = read_questions(
                model, processor, asked, max_new_tokens=max_new_tokens, batch_size=batch_size, cache=cache
            )
            for batch in in_batches(questions, batch_size=batch_size):
                read_prefixes(model, [question.prefix for question in batch], cache=cache)
                for question, new in zip(batch, _generate(model, batch, settings), strict=True):
                    text = text_of(processor, new, stop_ids)
                    answers[question.index] = Answered(text, has_stopped=not {*stop_ids}.isdisjoint(new))
        for first, sample, key in asked.samples:
            bad = asked.pixels[key]
            for index in range(first, first + len(sample.dialogs)):
                yield Answered("", error=bad) if isinstance(bad, BadSampleError) else answers[index]


def _generate(model: VisionLanguageModel, batch: Sequence[Question], settings: dict[str, Any]) -> list[list[int]]:
    """Generate the answers' ids: rows are [images][pads][prompt], the images already read."""
    limit = batch[0].max_new_tokens
    length = max(len(question.ids) for question in batch)
    pads = [length - len(question.ids) for question in batch]
    ids = [[settings["pad_token_id"] or 0] * num + question.ids for num, question in zip(pads, batch, strict=True)]
    mask = [[0] * num + [1] * (length - num) for num in pads]
    counts = torch.tensor([[question.prefix.num_tokens] for question in batch], device=model.device)
    num_image = int(counts.max())
    is_image = torch.arange(num_image, device=model.device) >= num_image - counts
    context = append_segment(empty_table(len(batch), device=model.device), is_image, kind=IMAGE)
    cache = PreallocatedCache(capacity=num_image + length + min(limit, _POSITIONS_AT_ONCE))
    copies = max(settings["num_beams"], settings.get("num_return_sequences") or 1)
    if num_image:
        cache.put([question.prefix.states for question in batch for _ in range(copies)])
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


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """Make the next item in a thread while the present one is worked on; an error is raised where its item would be."""
    nothing: Any = object()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="images") as pool:
        following: Future[T] = pool.submit(next, items, nothing)
        while (item := following.result()) is not nothing:
            following = pool.submit(next, items, nothing)
            yield item


@contextmanager
def answering(model: VisionLanguageModel) -> Iterator[None]:
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
    return sorted({end_token_id(processor.tokenizer, PromptTemplate.from_spec(processor.template)), *own})
