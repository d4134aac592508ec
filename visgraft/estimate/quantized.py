"""Stand-ins for linears of 4 or 8 bits: as large as bitsandbytes keeps them, unpacked whenever they are used.

In: a language model without weights. Out: the same, its frozen linears (all but the head) hollow quantized ones.
Usage: `quantize_hollow(model.language, "4bit")`

4 bits (NF4 with double quantization, Dettmers et al. 2023, arXiv:2305.14314, section 3): half a byte a weight, a byte
of scale for each 64 weights, four bytes for each 256 of those. 8 bits: a byte a weight, four bytes a row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

BLOCK, BLOCKS_OF_SCALES = 64, 256


def quantize_hollow(language: PreTrainedModel, width: str) -> None:
    """Put stand-ins in the place of every linear outside the head, those behind LoRA included."""
    head = language.get_output_embeddings()
    for module in list(language.modules()):
        if isinstance(module, nn.ModuleDict):  # where peft keeps A and B
            continue
        for name, layer in list(module.named_children()):
            if isinstance(layer, nn.Linear) and layer is not head:
                setattr(module, name, HollowQuantizedLinear(layer, width))


class HollowQuantizedLinear(nn.Module):
    """A linear whose weight has the size of a quantized one and no numbers."""

    def __init__(self, linear: nn.Linear, width: str) -> None:
        super().__init__()
        rows, columns = linear.weight.shape
        self.shape, self.in_features, self.out_features = (rows, columns), columns, rows
        number = rows * columns
        scales = -(-number // BLOCK)
        size = number if width == "8bit" else -(-number // 2) + scales + 4 * -(-scales // BLOCKS_OF_SCALES)
        size += 4 * rows if width == "8bit" else 0
        weight = torch.empty(size, dtype=torch.uint8, device="meta")
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = linear.bias

    def forward(self, states: Tensor) -> Tensor:
        """Unpack and multiply: [..., in] -> [..., out]."""
        product: Tensor = _Unpacked.apply(states, self.weight, self.shape)
        return product if self.bias is None else product + self.bias.to(product.dtype)


class _Unpacked(torch.autograd.Function):
    """A product with a weight that is unpacked in the forward and again in the backward, and not kept."""

    @staticmethod
    def forward(context: Any, states: Tensor, weight: Tensor, shape: tuple[int, int]) -> Tensor:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else states.dtype
        context.save_for_backward(weight)
        context.shape, context.dtype, context.gets = shape, dtype, states.dtype
        with torch.autocast("cpu", enabled=False):
            return states.to(dtype) @ weight.new_empty(shape, dtype=dtype).t()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = context.saved_tensors
        unpacked = weight.new_empty(context.shape, dtype=context.dtype)
        return (gradients[0].to(context.dtype) @ unpacked).to(context.gets), None, None
