"""Logits only where they are needed: the language model's own head, run on the supervised positions alone.

In: a call of the language model and [row, column] pairs. Out: one loss a pair. About 6 % of positions carry a target
in captioning; the head of a large vocabulary is a good part of the work. The LM's own head, scaling and soft-capping
stay in force, because the LM's own forward is what runs.

    losses = supervised_losses(language, run, source=source, target=target, logits_bytes=2**28)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from visgraft.errors import UnsupportedModelError
from visgraft.model.cross_entropy import cross_entropy


@contextlib.contextmanager
def gathered_head(language: PreTrainedModel, index: slice | tuple[Tensor, Tensor] | None) -> Iterator[list[Tensor]]:
    """Let the head see only some positions while the context lasts.

    Args:
        language: the causal LM.
        index: (rows [M], columns [M]) gives logits [1, M, V]; a slice of columns gives [B, n, V]; None = all.

    Yields:
        A list that takes in the states [B, S, D] of all positions, as they come to the head.
    """
    seen: list[Tensor] = []

    def gather(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = arguments[0]
        seen.append(hidden)
        if index is None:
            return arguments
        kept = hidden[:, index] if isinstance(index, slice) else hidden[index].unsqueeze(0)
        if isinstance(index, slice):  # a strided slice would send the product down a path that copies the whole head
            kept = kept.clone(memory_format=torch.contiguous_format)
        return (kept, *arguments[1:])

    handle = language.get_output_embeddings().register_forward_pre_hook(gather)
    try:
        yield seen
    finally:
        handle.remove()


def supervised_losses(
    language: PreTrainedModel, run: Callable[[], Any], *, source: Tensor, target: Tensor, logits_bytes: int
) -> Tensor:
    """Compute the cross-entropy of each (source, target) pair.

    Args:
        language: the causal LM.
        run: calls it on the whole rows.
        source: [M, 2] long, (row, column) of the position whose logits predict the target.
        target: [M] long token ids.
        logits_bytes: where fp32 logits [M, V] would take more, they are made in chunks of rows and made again in the
            backward pass, so that no more than this lives at once.

    Returns:
        [M] fp32.
    """
    index = (source[:, 0], source[:, 1])
    num_rows = max(1, logits_bytes // (4 * _vocabulary(language)))
    if target.shape[0] <= num_rows:
        with gathered_head(language, index):
            logits = run().logits
        _check_gathered(language, logits, target.shape[0])
        return cross_entropy(logits[0], target)
    hidden = _decode(language, run)[index]
    chunks = zip(hidden.split(num_rows), target.split(num_rows), strict=True)
    losses = [checkpoint(_chunk_losses, language, part, goal, use_reentrant=False) for part, goal in chunks]
    return torch.cat(losses)


def _vocabulary(language: PreTrainedModel) -> int:
    head: Any = language.get_output_embeddings()
    return int(getattr(head, "out_features", 0) or head.weight.shape[0])


def _check_gathered(language: PreTrainedModel, logits: Tensor, count: int) -> None:
    if logits.shape[:2] != (1, count):
        raise UnsupportedModelError(
            f"{type(language).__name__} gave logits of shape {list(logits.shape)} for {count} supervised positions: "
            "its logits do not come from get_output_embeddings() alone"
        )


def _decode(language: PreTrainedModel, run: Callable[[], Any]) -> Tensor:
    """Run the LM up to its head and give the decoder's last hidden state [B, S, D]."""
    caught: list[Tensor] = []

    def catch(_: nn.Module, __: Any, output: Any) -> None:
        caught.append(output[0])

    handle = language.get_decoder().register_forward_hook(catch)
    try:
        with gathered_head(language, slice(-1, None)):  # its logits are thrown away: make as few as possible
            run()
    finally:
        handle.remove()
    return caught[-1]


def _chunk_losses(language: PreTrainedModel, hidden: Tensor, target: Tensor) -> Tensor:
    """Run everything after the decoder on hidden states [m, D] by letting the decoder return them."""
    decoder = language.get_decoder()
    states = BaseModelOutputWithPast(last_hidden_state=hidden.unsqueeze(0))
    original = decoder.forward
    decoder.forward = lambda *_, **__: states
    try:
        output = language(inputs_embeds=hidden.unsqueeze(0), use_cache=False)
    finally:
        decoder.forward = original
    return cross_entropy(output.logits[0], target)
