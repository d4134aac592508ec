"""Which weights changed since they were loaded, and whether a frozen part is the one that was trained with.

In: weights by name. Out: the checksums of each, and one checksum of many weights. Those of a weight are sums over all
its bits, once as they are and once after rounding to each half format, so that a cast alone does not count as training.

    before = read_checksums(weights)
    names = changed_names(weights, read_checksums(weights), before=before)
    together = combine(before.values())
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

HALF_FORMATS = (torch.bfloat16, torch.float16)
_PIECE = 2**21  # weights summed at a time, so that no second copy of a large weight is made


@dataclass(frozen=True)
class Checksum:
    """The checksums of one weight.

    Attributes:
        dtype: the weight's own format.
        sums: format -> checksum of the bits after rounding to it; the weight's own and the half formats.
        rounded: the half formats that the weight was rounded to since its checkpoint was published, in order.
    """

    dtype: torch.dtype
    sums: Mapping[torch.dtype, int]
    rounded: tuple[torch.dtype, ...] = ()


def read_checksums(
    weights: Mapping[str, Tensor], *, rounded: Mapping[str, tuple[torch.dtype, ...]] | None = None
) -> dict[str, Checksum]:
    """Checksum every weight; `rounded` says what was done to each before it came to its present format."""
    return {name: checksum_of(tensor, rounded=(rounded or {}).get(name, ())) for name, tensor in weights.items()}


def checksum_of(tensor: Tensor, *, rounded: tuple[torch.dtype, ...] = ()) -> Checksum:
    """Checksum one weight."""
    flat = tensor.detach().contiguous().flatten()
    formats = {tensor.dtype, *HALF_FORMATS} if tensor.is_floating_point() else {tensor.dtype}
    sums = dict.fromkeys(formats, 0)
    for index, piece in enumerate(flat.split(_PIECE)):
        for dtype in formats:
            sums[dtype] += (2 * index + 1) * _sum_bits(piece.to(dtype))
    return Checksum(
        tensor.dtype, {dtype: total % 2**64 for dtype, total in sums.items()}, with_rounding(rounded, tensor.dtype)
    )


def with_rounding(rounded: tuple[torch.dtype, ...], dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    """Add a format to those that a weight was rounded to, unless it takes nothing away."""
    is_rounding = dtype in HALF_FORMATS and rounded[-1:] != (dtype,)
    return (*rounded, dtype) if is_rounding else rounded


def changed_names(
    weights: Mapping[str, Tensor], checksums: Mapping[str, Checksum], *, before: Mapping[str, Checksum]
) -> list[str]:
    """List the weights whose values are not those of `before`; a cast alone is no change.

    Args:
        weights: as they are now.
        checksums: theirs.
        before: checksums of an earlier time; a weight that has none is new, so it counts as changed.
    """
    return [
        name
        for name, tensor in weights.items()
        if name not in before or not _is_same(tensor, checksums[name], before[name])
    ]


def combine(checksums: Iterable[Checksum]) -> str:
    """Make one checksum of those of many weights, the same in float32 as after rounding to bfloat16.

    Names are left out: in memory they change between versions of transformers.
    """
    sums = sorted(one.sums.get(torch.bfloat16, one.sums[one.dtype]) for one in checksums)
    return hashlib.sha256(str(sums).encode()).hexdigest()[:32]


def _is_same(tensor: Tensor, now: Checksum, before: Checksum) -> bool:
    if now.dtype in before.sums:
        return now.sums[now.dtype] == before.sums[now.dtype]
    # Kept in a wider format than it was loaded in: the same only if nothing finer than the old format was added.
    narrow = tensor.detach().to(before.dtype)
    return checksum_of(narrow).sums == before.sums and torch.equal(narrow.to(tensor.dtype), tensor)


def _sum_bits(piece: Tensor) -> int:
    """Sum the bits, taken as 64-bit integers, times fixed odd numbers, modulo 2**64: any one changed bit shows."""
    bits = piece.view(torch.uint8)
    if bits.numel() % 8 or bits.storage_offset() % 8:
        bits = torch.nn.functional.pad(bits, (0, -bits.numel() % 8)).clone()
    words = bits.view(torch.int64)
    factors = _odd_numbers(piece.device)[: words.numel()]
    if piece.device.type == "cpu":
        return int(torch.dot(words, factors))
    return int((words * factors).sum())  # accelerators have no integer dot product


@functools.cache
def _odd_numbers(device: torch.device) -> Tensor:
    digest = hashlib.shake_128(b"visgraft").digest(8 * _PIECE)
    return (torch.frombuffer(bytearray(digest), dtype=torch.int64) | 1).to(device)
