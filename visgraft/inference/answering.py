"""Answer many prompts; prompts and answers of different lengths and samples of different images run together.

In: a model and its processor, samples whose dialogs end in a turn without an answer. Out: the answers as plain text.
An image is read by encoder and language model once, for all that is asked about it; images are opened while the model
answers about those before. The decoding loop of engine.py does the work; here it is fed, and its answers come in order.

    texts = answer(model, processor, [Sample(images=["cat.jpg"], dialogs=[[Turn("What is it?", "")]])])
    for each in answer_each(model, processor, samples): print(each.text or each.error)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from visgraft.data.sample import Sample
from visgraft.errors import BadSampleError, BusyError, ModelError
from visgraft.inference.beams import check_caches, generate_together
from visgraft.inference.decoding import OWN_SETTINGS, Decoding, needs_generate
from visgraft.inference.engine import Engine
from visgraft.inference.eval_mode import eval_mode
from visgraft.inference.limits import stop_token_ids, text_of
from visgraft.inference.prefix_cache import PrefixCache
from visgraft.inference.requests import Answer, ImageSegment, Prompt, Reply, prompts_of
from visgraft.model.vlm import VisionLanguageModel
from visgraft.processor import Processor

ROUNDS_HELD = 4  # slots' worth of dialogs that decode, wait for a slot, or for an earlier one to be given out

T = TypeVar("T")


def answer(
    model: VisionLanguageModel,
    processor: Processor,
    samples: Sequence[Sample],
    *,
    max_new_tokens: int = 32,
    batch_size: int = 16,
    stopped: list[bool] | None = None,
    prefix_cache: PrefixCache | None = None,
    **decoding: Any,
) -> list[str]:
    """Answer the last turn of every dialog; what the turn itself has as its answer is ignored.

    Prompts of different lengths run together and images are read once; neither changes any answer.

    Args:
        model: on its device; it may be in the middle of training.
        processor: of that model.
        samples: each with one dialog or several.
        max_new_tokens: longest answer; shorter where the language model's positions end.
        batch_size: dialogs that run at once.
        stopped: a list to fill: whether each answer came to an end of its own, not cut at `max_new_tokens`.
        prefix_cache: keeps what images became for later calls; default one for this call alone.
        decoding: settings of `Decoding.of` (`seed`, `stop`, `choices`, ... and those of Hugging Face's `generate`);
            without any the most probable token is taken each time. Beams, other searches and settings that only
            `generate` knows run in it, batch by batch.

    Returns:
        One text for each dialog, in the order of the samples and their dialogs.

    Raises:
        BadSampleError: an image cannot be used.
        ConfigError: a setting cannot be followed.
        ModelError: a prompt leaves no room for an answer, or another cache of keys and values is asked for.
    """
    answers = []
    settings = {"max_new_tokens": max_new_tokens, "batch_size": batch_size, "prefix_cache": prefix_cache, **decoding}
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
    each_alone: bool = False,
    seeds: Iterator[int] | None = None,
    **decoding: Any,
) -> Iterator[Answer]:
    """Answer as `answer` does, dialog after dialog as they are ready.

    With `seeds` each dialog has its own, taken once it is read.

    A bad image spoils its own sample alone, a prompt that leaves no room for an answer itself alone: `Answer.error`
    says why there is no text. With `each_alone` so does a dialog that memory does not suffice for. A few dialogs are
    read, answered and given out at a time, so any number of samples takes the same memory. Between two answers the
    model is as the caller left it.

    Raises:
        BusyError: memory does not suffice for a prompt beside the others.
        ConfigError: a setting cannot be followed.
        ModelError: another cache of keys and values is asked for.
    """
    check_caches(decoding)
    cache = PrefixCache() if prefix_cache is None else prefix_cache
    opened = _opened(processor, samples, ahead=batch_size)
    is_for_generate = needs_generate({name: value for name, value in decoding.items() if name not in OWN_SETTINGS})
    if is_for_generate and not any(decoding.get(name) is not None for name in OWN_SETTINGS):
        yield from _by_generate(
            model, processor, opened, cache=cache, batch_size=batch_size, limit=max_new_tokens, settings=decoding
        )
        return
    asked = Decoding.of(max_new_tokens=max_new_tokens, **decoding)
    engine = Engine(model, processor, num_slots=batch_size, max_waiting=ROUNDS_HELD * batch_size, prefix_cache=cache)
    held: deque[Reply | BadSampleError] = deque()

    def ask_more() -> None:
        """Ask what comes next, as far as there is room for it."""
        while len(held) < ROUNDS_HELD * batch_size:
            prompt = next(opened, None)
            if prompt is None:
                return
            own = asked if seeds is None else replace(asked, seed=next(seeds))
            held.append(prompt if isinstance(prompt, BadSampleError) else engine.submit(prompt, own))

    while True:
        ask_more()
        if not held:
            return
        first = held.popleft()
        if isinstance(first, BadSampleError):
            yield Answer("", error=first)
            continue
        if not first.is_done:
            with eval_mode(model):
                while not first.is_done:
                    engine.step()
                    ask_more()
        try:
            answered = first.answer()
        except (ModelError, BusyError) as error:
            if isinstance(error, BusyError) and not each_alone:
                raise
            answered = Answer("", error=error)
        yield answered


def _by_generate(
    model: VisionLanguageModel,
    processor: Processor,
    opened: Iterator[Prompt | BadSampleError],
    *,
    cache: PrefixCache,
    batch_size: int,
    limit: int,
    settings: dict[str, Any],
) -> Iterator[Answer]:
    """Answer batch by batch, with what only `generate` can do."""
    stop_ids = stop_token_ids(model, processor)
    while batch := [*islice(opened, batch_size)]:
        good = [prompt for prompt in batch if isinstance(prompt, Prompt)]
        with eval_mode(model):
            new = iter(generate_together(model, processor, good, cache=cache, max_new_tokens=limit, settings=settings))
        for prompt in batch:
            if isinstance(prompt, BadSampleError):
                yield Answer("", error=prompt)
                continue
            ids = next(new)
            if isinstance(ids, ModelError):
                yield Answer("", error=ids)
                continue
            has_stopped = not {*stop_ids}.isdisjoint(ids)
            finish: Any = "stop" if has_stopped else "length"
            yield Answer(text_of(processor, ids, stop_ids), has_stopped, finish=finish, token_ids=tuple(ids))


# --- From samples to prompts


def _opened(processor: Processor, samples: Iterable[Sample], *, ahead: int) -> Iterator[Prompt | BadSampleError]:
    """Open samples in a thread, some ahead: the prompt of each dialog, or why its images cannot be used."""
    images: WeakValueDictionary[Hashable, ImageSegment] = WeakValueDictionary()

    def open_each() -> Iterator[list[Prompt | BadSampleError]]:
        for sample in samples:
            yield _open(processor, sample, images)

    for prompts in _prefetch(open_each(), ahead=ahead):
        yield from prompts


def _open(
    processor: Processor, sample: Sample, images: WeakValueDictionary[Hashable, ImageSegment]
) -> list[Prompt | BadSampleError]:
    """Make the prompts of a sample's dialogs; images that a prompt still in use has opened are not opened again."""
    key = tuple(str(image) if isinstance(image, (str, Path)) else id(image) for image in sample.images)
    try:
        prompts = prompts_of(processor, sample, images=images.get(key))
    except BadSampleError as error:
        return [error for _ in sample.dialogs]
    for segment in prompts[0].segments[:-1] if prompts else ():
        assert isinstance(segment, ImageSegment)
        images[key] = segment
    return [*prompts]


def _prefetch(items: Iterator[T], *, ahead: int) -> Iterator[T]:
    """Make the next items in a thread while the present one is worked on; an error is raised in its item's place."""
    nothing: Any = object()
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="images")
    try:
        following: deque[Future[T]] = deque(pool.submit(next, items, nothing) for _ in range(max(1, ahead)))
        while (item := following.popleft().result()) is not nothing:
            following.append(pool.submit(next, items, nothing))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)
