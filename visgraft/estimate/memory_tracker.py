"""Keep the books of a step that runs without numbers: what is alive when, and how much arithmetic is done.

In: operations on fake tensors, seen below autograd and autocast, so that what they keep and cast is seen too. Out: the
largest sum of what was alive at once, by kind, and floating-point operations.

    with FakeTensorMode(), MemoryTracker(vocabulary=32_000) as memory_tracker:
        model.loss(batch).loss.backward()
    memory_tracker.peak().sizes        # {"activations": 812_646_400, "logits": 53_608_448, ...} in bytes
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

# Products of queries' by keys' by head sizes: two in the forward, five in the backward, which computes scores again.
FUSED_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: 2,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: 5,
}

Kind = Literal["weights", "gradients", "activations", "logits", "batch"]


@dataclass(frozen=True)
class Peak:
    """The instant at which most was alive, in bytes by kind."""

    sizes: Mapping[Kind, int]

    @property
    def size_bytes(self) -> int:
        """Everything together."""
        return sum(self.sizes.values())


class MemoryTracker(TorchDispatchMode):
    """Write down every storage that operations make, and when it goes.

    Args:
        vocabulary: the last axis of logits.
        attended: length of a row -> the part of its pairs that attention computes; others compute all.

    Attributes:
        num_flops: floating-point operations of matrix products, convolutions and attention; a product is two.
    """

    def __init__(self, *, vocabulary: int, attended: Mapping[int, float] | None = None) -> None:
        super().__init__()
        self._attended = attended or {}
        self.num_flops = 0
        self._vocabulary = vocabulary
        self._alive: dict[int, int] = {}  # id of a storage -> its number
        self._sizes: list[int] = []  # by number, in bytes
        self._kinds: list[Kind] = []  # by number
        self._events: list[tuple[int, bool]] = []  # (number, whether it comes or goes)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation and write down what it makes."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.enter(tensor, self._kind_of(tensor))
        if func.overloadpacket in flop_registry:
            self.num_flops += flop_registry[func.overloadpacket](*args, **kwargs, out_val=out)
        elif func.overloadpacket in FUSED_ATTENTION:
            query, key = args[:2] if FUSED_ATTENTION[func.overloadpacket] == 2 else args[1:3]
            pairs = query.shape[2] * key.shape[2] * self._attended.get(query.shape[2], 1.0)
            product = 2 * query.shape[0] * query.shape[1] * query.shape[3] * pairs
            self.num_flops += round(FUSED_ATTENTION[func.overloadpacket] * product)
        return out

    def enter(self, tensor: Tensor, kind: Kind) -> None:
        """Write down a tensor's storage, unless it is known."""
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._alive:
            return
        number = len(self._sizes)
        self._alive[key] = number
        self._sizes.append(storage.nbytes())
        self._kinds.append(kind)
        self._events.append((number, True))
        weakref.finalize(storage, self._leave, key, number)

    def rename(self, tensors: Iterable[Tensor], kind: Kind) -> None:
        """Say of storages that are alive what they were all along (gradients are known as such only at the end)."""
        for tensor in tensors:
            number = self._alive.get(id(tensor.untyped_storage()))
            if number is not None:
                self._kinds[number] = kind

    def peak(self) -> Peak:
        """Find the instant at which most was alive."""
        total, largest = 0, 0
        alive: Counter[Kind] = Counter()
        at_peak: dict[Kind, int] = {}
        for number, comes in self._events:
            size = self._sizes[number] if comes else -self._sizes[number]
            total += size
            alive[self._kinds[number]] += size
            if total > largest:
                largest, at_peak = total, dict(alive)
        return Peak(at_peak)

    def _kind_of(self, tensor: Tensor) -> Kind:
        is_of_vocabulary = tensor.ndim > 1 and tensor.shape[-1] == self._vocabulary
        return "logits" if is_of_vocabulary and tensor.is_floating_point() else "activations"

    def _leave(self, key: int, number: int) -> None:
        del self._alive[key]
        self._events.append((number, False))
