"""The cross-entropy of narrow logits, computed in float32 a few rows at a time.

In: logits [M, V], as the language model's head makes them, and token ids [M]. Out: one float32 loss a row.

    losses = cross_entropy(logits, target)

Written with PyTorch's own functions, bf16 logits become several float32 copies of themselves, forward and backward.
Here a few rows are widened at once, which stay in the processor's cache, and what is kept for the backward pass is the
narrow logits and one number a row: the same values, with a quarter of the memory traffic.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CHUNK_BYTES = {"cpu": 4 * 2**20}  # of float32 rows: what a cache holds
OTHER_CHUNK_BYTES = 64 * 2**20  # and what keeps a GPU busy


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
        normalizer = torch.cat([part.float().logsumexp(-1) for part in _chunks(logits, like=logits)])
        context.save_for_backward(logits, target, normalizer)
        return normalizer - logits.gather(1, target[:, None]).squeeze(1).float()

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Compute the gradient [M, V] of the logits, in their own format."""
        logits, target, normalizer = context.saved_tensors
        result = torch.empty_like(logits)
        parts = (_chunks(tensor, like=logits) for tensor in (result, logits, target, normalizer, *gradients))
        for out, part, goal, norm, gradient in zip(*parts, strict=True):
            slope = (part.float() - norm[:, None]).exp_()
            slope.scatter_add_(1, goal[:, None], norm.new_full((len(goal), 1), -1.0))
            out.copy_(slope.mul_(gradient[:, None]))
        return result, None


def _chunks(tensor: Tensor, *, like: Tensor) -> tuple[Tensor, ...]:
    size_bytes = CHUNK_BYTES.get(like.device.type, OTHER_CHUNK_BYTES)
    return tensor.split(max(1, size_bytes // (torch.float32.itemsize * like.shape[1])))
