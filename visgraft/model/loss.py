"""The loss: logits made only where a token is predicted, and their cross-entropy in float32.

In: (source, target) pairs, a position of the rows and the token that it must predict. Out: a `VisionLanguageOutput`
with their loss. `labels=` only builds such pairs.

    output = loss_output(supervised_losses(language, run, source=source, target=target, logits_bytes=2**28))
    output = labels_loss(logits, labels)                # of logits that are there, shifted inside the text

About 6 % of positions carry a target in captioning, and the head of a large vocabulary is a good part of the work: so
the language model's own forward runs on whole rows, and a hook lets its head see the sources alone. Its own head,
scaling and soft-capping stay in force. Where the logits would still be too large, they are made in chunks of rows.

Axis letters as in vlm.py; M supervised tokens, D the width of what the head takes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import ModelOutput

from visgraft.errors import ModelError, UnsupportedModelError
from visgraft.model.cache import CACHE_NAME

CHUNK_BYTES = {"cpu": 4 * 2**20}  # float32 logits of the cross-entropy at once: what a processor's cache holds
OTHER_CHUNK_BYTES = 64 * 2**20  # and what keeps a GPU busy


@dataclass
class VisionLanguageOutput(ModelOutput):
    """What a forward gives; fields that were not asked for are None.

    The first five stand in the order in which transformers' own models have them, for those who take a tuple.

    Attributes:
        loss: mean over the supervised tokens, fp32 scalar.
        logits: [B, P + T, V].
        past_key_values: the cache, filled; from transformers 5.24 on also, and first, named `cache`.
        hidden_states: whole rows as they were given, [image][text]: [B, P + T, D] in front of every layer, and behind
            the last one and its norm. Behind a cache those of the new positions, [B, Q, D].
        attentions: of every layer that attends, [B, heads, P + T, P + T]: row looks at column, in the same order.
            Behind a cache [B, heads, Q, S]: the new positions look at the whole row. 0 where a layer cannot look.
        last_hidden_state: [B, T, D], what the head makes the text's logits of (trl reads it, to make its own).
        loss_sum: sum of the losses, fp32 scalar.
        num_supervised: how many there are, long scalar.
        target_losses: [M] fp32, detached, one a supervised token.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    if CACHE_NAME == "cache":
        cache: Cache | None = None
    else:
        past_key_values: Cache | None = None
    hidden_states: tuple[Tensor | None, ...] | None = None
    attentions: tuple[Tensor | None, ...] | None = None
    last_hidden_state: Tensor | None = None
    loss_sum: Tensor | None = None
    num_supervised: Tensor | None = None
    target_losses: Tensor | None = None


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
            backward pass, so that no more than this is in memory at once.

    Returns:
        [M] fp32.

    Raises:
        UnsupportedModelError: the LM's logits do not come from its output embeddings alone.
    """
    index = (source[:, 0], source[:, 1])  # each [M]
    head: Any = language.get_output_embeddings()
    vocabulary_size = int(getattr(head, "out_features", 0) or head.weight.shape[0])
    rows_at_once = max(1, logits_bytes // (4 * vocabulary_size))
    if target.shape[0] > rows_at_once:
        hidden = _last_states(language, run)[index]  # [B, S, D] -> [M, D]
        chunks = zip(hidden.split(rows_at_once), target.split(rows_at_once), strict=True)
        losses = [checkpoint(_chunk_losses, language, part, goal, use_reentrant=False) for part, goal in chunks]
        return torch.cat(losses)
    with gathered_head(language, index):
        logits = run().logits  # [1, M, V]
    if logits.shape[:2] != (1, target.shape[0]):
        raise UnsupportedModelError(
            f"{type(language).__name__} gave logits of shape {list(logits.shape)} for {target.shape[0]} supervised "
            "positions: its logits do not come from get_output_embeddings() alone. Choose another language model"
        )
    return cross_entropy(logits[0], target)


def labels_loss(
    logits: Tensor, labels: Tensor, *, num_items_in_batch: Tensor | int | None = None
) -> VisionLanguageOutput:
    """Compute the loss of labels, shifted inside the text: CE(logits[:, P:-1], labels[:, 1:]).

    Args:
        logits: [B, P + T, V].
        labels: [B, T] long, -100 = ignored; the first column is never a target.
        num_items_in_batch: what the sum is divided by; None = the number of targets.

    Raises:
        ModelError: the labels have another shape, or the logits are fewer than the labels.
    """
    if labels.shape[0] != logits.shape[0] or labels.shape[1] > logits.shape[1]:
        raise ModelError(
            f"labels have shape {list(labels.shape)}, logits {list(logits.shape[:2])} positions: need one label for "
            "every token of the text (none for images), and all logits (logits_to_keep=0)"
        )
    row, column = (labels[:, 1:] != -100).nonzero(as_tuple=True)  # each [M]
    predicted = logits[:, -labels.shape[1] :][row, column]  # [B, T, V] -> [M, V]
    output = loss_output(cross_entropy(predicted, labels[row, column + 1]))
    if num_items_in_batch is not None:
        assert output.loss_sum is not None
        output.loss = output.loss_sum / num_items_in_batch
    return output


def loss_output(losses: Tensor) -> VisionLanguageOutput:
    """Sum up one loss a pair, [M] fp32."""
    loss_sum, count = losses.sum(), losses.shape[0]
    return VisionLanguageOutput(
        loss=loss_sum / max(1, count),
        loss_sum=loss_sum,
        num_supervised=torch.tensor(count, device=losses.device),
        target_losses=losses.detach(),
    )


# --- Logits at some positions only


@contextlib.contextmanager
def gathered_head(language: PreTrainedModel, index: slice | tuple[Tensor, Tensor] | None) -> Iterator[list[Tensor]]:
    """Let the head see only some positions while the context lasts.

    Args:
        language: the causal LM.
        index: (rows [M], columns [M]) gives logits [1, M, V]; a slice of n columns gives [B, n, V]; None = all.

    Yields:
        A list that takes in the states [B, S, D] of all positions, as they come to the head.
    """
    seen: list[Tensor] = []

    def gather(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = arguments[0]  # [B, S, D]
        seen.append(hidden)
        if index is None:
            return arguments
        kept = hidden[:, index] if isinstance(index, slice) else hidden[index].unsqueeze(0)  # [B, n, D] or [1, M, D]
        if isinstance(index, slice):  # a strided slice would send the product down a path that copies the whole head
            kept = kept.clone(memory_format=torch.contiguous_format)
        return (kept, *arguments[1:])

    handle = language.get_output_embeddings().register_forward_pre_hook(gather)
    try:
        yield seen
    finally:
        handle.remove()


def _last_states(language: PreTrainedModel, run: Callable[[], Any]) -> Tensor:
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


class _DecoderOutput(BaseModelOutputWithPast):
    """What any family's decoder returns: states, and nothing else under whatever name."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


def _chunk_losses(language: PreTrainedModel, hidden: Tensor, target: Tensor) -> Tensor:
    """Run everything after the decoder on m of its states [m, D], by letting the decoder return them: [m] losses."""
    decoder = language.get_decoder()
    states = _DecoderOutput(last_hidden_state=hidden.unsqueeze(0))  # [1, m, D]
    original = decoder.forward
    decoder.forward = lambda *_, **__: states
    try:
        output = language(inputs_embeds=hidden.unsqueeze(0), use_cache=False)
    finally:
        decoder.forward = original
    return cross_entropy(output.logits[0], target)  # of [m, V]


# --- The cross-entropy of narrow logits. Written with PyTorch's own functions, bf16 logits become several float32
# copies of themselves, forward and backward. Here a few rows are widened at once, which stay in the processor's cache,
# and what is kept for the backward pass is the narrow logits and one number a row: the same values, with a quarter of
# the memory traffic.


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Compute the negative log-likelihood of each target.

    Args:
        logits: [M, V] in any floating format.
        target: [M] long, token ids.

    Returns:
        [M] float32.
    """
    if logits.dtype.itemsize >= torch.float32.itemsize:
        return nn.functional.cross_entropy(logits.float(), target, reduction="none")
    losses: Tensor = NarrowCrossEntropy.apply(logits, target)
    return losses


class NarrowCrossEntropy(torch.autograd.Function):
    """`log(sum(exp(logits))) - logits[target]`, whose gradient is `softmax(logits) - onehot(target)`."""

    @staticmethod
    def forward(context: Any, logits: Tensor, target: Tensor) -> Tensor:
        """Compute the losses [M]; keep the logits as they are, and the normalizer of each row."""
        normalizer = torch.cat([part.float().logsumexp(-1) for part in _chunks(logits, like=logits)])  # [M] fp32
        context.save_for_backward(logits, target, normalizer)
        return normalizer - logits.gather(1, target[:, None]).squeeze(1).float()

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Compute the gradient [M, V] of the logits, in their own format."""
        logits, target, normalizer = context.saved_tensors
        result = torch.empty_like(logits)  # [M, V]
        parts = (_chunks(tensor, like=logits) for tensor in (result, logits, target, normalizer, *gradients))
        for out, part, goal, norm, gradient in zip(*parts, strict=True):
            slope = (part.float() - norm[:, None]).exp_()  # [m, V] fp32: the softmax
            slope.scatter_add_(1, goal[:, None], norm.new_full((len(goal), 1), -1.0))
            out.copy_(slope.mul_(gradient[:, None]))
        return result, None


def _chunks(tensor: Tensor, *, like: Tensor) -> tuple[Tensor, ...]:
    size_bytes = CHUNK_BYTES.get(like.device.type, OTHER_CHUNK_BYTES)
    return tensor.split(max(1, size_bytes // (torch.float32.itemsize * like.shape[1])))
