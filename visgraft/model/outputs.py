"""What a forward gives, and the one loss over (source, target) pairs that `labels=` and batches share.

In: logits and labels, or one loss a pair. Out: a `VisionLanguageOutput`.

    output = loss_output(losses)                        # output.loss, output.loss_sum, output.num_supervised
    output = labels_loss(logits, labels)                # shifted inside the text
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.utils.generic import ModelOutput

from visgraft.model.cross_entropy import cross_entropy


@dataclass
class VisionLanguageOutput(ModelOutput):
    """What a forward gives; fields that were not asked for are None.

    Attributes:
        loss: mean over the supervised tokens, fp32 scalar.
        loss_sum: their sum, fp32 scalar.
        num_supervised: how many there are, long scalar.
        target_losses: [M] fp32, detached, one a supervised token.
        logits: [B, P + T, V].
        last_hidden_state: [B, T, D], what the head makes the text's logits of (trl reads it, to make its own).
        past_key_values: the cache, filled.
    """

    loss: Tensor | None = None
    loss_sum: Tensor | None = None
    num_supervised: Tensor | None = None
    target_losses: Tensor | None = None
    logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    past_key_values: Cache | None = None


def labels_loss(logits: Tensor, labels: Tensor) -> VisionLanguageOutput:
    """Compute the loss of labels [B, T], shifted inside the text: CE(logits[:, P:-1], labels[:, 1:])."""
    row, column = (labels[:, 1:] != -100).nonzero(as_tuple=True)
    predicted = logits[:, -labels.shape[1] :][row, column]
    return loss_output(cross_entropy(predicted, labels[row, column + 1]))


def loss_output(losses: Tensor) -> VisionLanguageOutput:
    """Gather one loss a pair [M] into the output of a step."""
    loss_sum, count = losses.sum(), losses.shape[0]
    return VisionLanguageOutput(
        loss=loss_sum / max(1, count),
        loss_sum=loss_sum,
        num_supervised=torch.tensor(count, device=losses.device),
        target_losses=losses.detach(),
    )
