"""Which weights changed, and whether a frozen part is the one that was trained with.

In: a part. Out: one mark a weight (two checksums of its bits), and one fingerprint of many marks. Checksums are exact
integer sums over all bits weighted by place, so one changed bit anywhere changes them.

    marks = read_marks(module)
    names = changed_names(state, marks)
    fingerprint = combine(marks)
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Mark:
    """Checksums of a weight: of its own bits, and of its bits after rounding to bfloat16 (which survives a cast)."""

    exact: int
    rounded: int
    dtype: str


def read_marks(module: nn.Module) -> dict[str, Mark]:
    """Mark every weight of a part by its name without LoRA (`base_layer` left out); adapters carry no mark."""
    marks = {}
    for name, tensor in module.state_dict().items():
        if ".lora_" not in name and tensor.device.type != "meta":
            marks[name.replace(".base_layer.", ".")] = mark_of(tensor)
    return marks


def mark_of(tensor: Tensor) -> Mark:
    """Mark one tensor."""
    tensor = tensor.detach()
    rounded = tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
    return Mark(_checksum(tensor), _checksum(rounded), str(tensor.dtype))


def changed_names(state: Mapping[str, Tensor], marks: Mapping[str, Mark]) -> list[str]:
    """List the weights that are not what their mark says; a cast to another format alone is no change."""
    changed = []
    for name, tensor in state.items():
        before = marks.get(name)
        now = mark_of(tensor)
        is_same = before is not None and (
            now.exact == before.exact if now.dtype == before.dtype else now.rounded == before.rounded
        )
        if not is_same:
            changed.append(name)
    return changed


def combine(marks: Mapping[str, Mark]) -> str:
    """Make one fingerprint of many marks, the same in float32 as after rounding to bfloat16."""
    digest = hashlib.sha256()
    for name in sorted(marks):
        digest.update(f"{name} {marks[name].rounded};".encode())
    return digest.hexdigest()[:32]


def round_parameters(module: nn.Module, dtype: str) -> None:
    """Round weights to the format they were frozen in, in place; their own format stays.

    BatchNorm weights are left alone: they are never frozen in a lower format.
    """
    format_ = getattr(torch, dtype)
    kept = {
        id(parameter)
        for layer in module.modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm)
        for parameter in layer.parameters()
    }
    for parameter in module.parameters():
        if id(parameter) not in kept and parameter.is_floating_point() and parameter.dtype != format_:
            parameter.data = parameter.data.to(format_).to(parameter.dtype)


def _checksum(tensor: Tensor) -> int:
    bits = tensor.contiguous().view(_BITS[tensor.element_size()]).flatten()
    total = 0
    for index, part in enumerate(bits.split(2**22)):  # in pieces, so that no int64 copy of a large weight is made
        place = torch.arange(1, part.numel() + 1, device=part.device) % 65_521
        total += (index + 1) * int((part.to(torch.int64) * place).sum())
    return total
