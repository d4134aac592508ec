"""Answer piece by piece, as the model writes.

In: a model, its processor, a sample. Out: pieces of text; joined, they are what `answer` returns.

    for piece in stream(model, processor, sample): print(piece, end="")
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from queue import Queue
from threading import Event, Thread
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from visgraft.data.sample import Sample
from visgraft.inference.answering import answer
from visgraft.model.vlm import VisionLanguageModel
from visgraft.processor import Processor


def stream(
    model: VisionLanguageModel, processor: Processor, sample: Sample, *, max_new_tokens: int = 256, **generate: Any
) -> Iterator[str]:
    """Answer the last turn of a sample's one dialog piece by piece; joined, the pieces are what `answer` returns.

    Closing the iterator early stops the model. Arguments and errors are those of `answer`.
    """

    def run(hooks: dict[str, Any]) -> None:
        answer(model, processor, [sample], max_new_tokens=max_new_tokens, **{**hooks, **generate})

    yield from stream_pieces(processor.tokenizer, run)


def stream_pieces(
    tokenizer: PreTrainedTokenizerBase, generate: Callable[[dict[str, Any]], None]
) -> Generator[str, None, None]:
    """Give the text that a call of Hugging Face's `generate` makes, piece by piece, without outer white space.

    Args:
        tokenizer: decodes it.
        generate: calls it, with the settings it is given; it runs in a thread of its own, and closing the iterator
            early stops it. What it raises is raised here.
    """
    streamer = TextIteratorStreamer(
        tokenizer, skip_prompt=True, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    failures: Queue[BaseException] = Queue()
    is_closed = Event()

    def run() -> None:
        try:
            generate({"streamer": streamer, "stopping_criteria": StoppingCriteriaList([_StopWhen(is_closed)])})
        except Exception as error:  # it belongs to whoever reads the stream
            failures.put(error)
            streamer.end()

    thread = Thread(target=run, daemon=True)
    thread.start()
    try:
        yield from _without_outer_space(streamer)
    finally:
        is_closed.set()
        thread.join()
    if not failures.empty():
        raise failures.get()


class _StopWhen(StoppingCriteria):
    """Stop when an event is set."""

    def __init__(self, event: Event) -> None:
        self.event = event

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        return torch.full((input_ids.shape[0],), self.event.is_set(), device=input_ids.device)


def _without_outer_space(pieces: Iterable[str]) -> Iterator[str]:
    """Pass pieces on without the white space in front of the first and behind the last."""
    held, is_begun = "", False
    for piece in pieces:
        text = held + piece
        text = text if is_begun else text.lstrip()
        kept = text.rstrip()
        held = text[len(kept) :]
        if kept:
            is_begun = True
            yield kept
