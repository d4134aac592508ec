"""Answer piece by piece, as the model writes.

In: a model, its processor, a sample. Out: pieces of text; joined, they are what `answer` returns.

    for piece in stream(model, processor, sample): print(piece, end="")
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from visgraft.data.sample import Sample
from visgraft.inference.decoding import Decoding
from visgraft.inference.engine import Engine
from visgraft.inference.prefix_cache import PrefixCache
from visgraft.inference.requests import prompts_of
from visgraft.model.vlm import VisionLanguageModel
from visgraft.processor import Processor


def stream(
    model: VisionLanguageModel,
    processor: Processor,
    sample: Sample,
    *,
    max_new_tokens: int = 256,
    prefix_cache: PrefixCache | None = None,
    **decoding: Any,
) -> Iterator[str]:
    """Answer the last turn of a sample's one dialog piece by piece; joined, the pieces are what `answer` returns.

    Closing the iterator early stops the model. Between two pieces the model is as the caller left it. Arguments and
    errors are those of `answer`, but beams and what else only `generate` can do are refused (ConfigError).
    """
    asked = Decoding.of(max_new_tokens=max_new_tokens, **decoding)
    [prompt] = prompts_of(processor, sample)
    engine = Engine(model, processor, num_slots=1, prefix_cache=prefix_cache)
    yield from engine.submit(prompt, asked, stream=True)
