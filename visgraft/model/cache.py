"""Keys and values of what was read, for any family of language models: kept, reused and written on.

In: keys and values as the layers make them. Out: a cache that `transformers` takes wherever it takes one. Room for
the whole row is taken once; what is handed out ends where the written part ends, so no empty place is attended to.
Nothing is ever dropped: what a sliding window hides, the mask hides, so rows need not be packed.

    cache = PreallocatedCache(capacity=num_image_tokens + num_text_tokens + num_new_tokens)
    cache.put([states_of_one_image, states_of_another])      # a row each, as `kept_states` gave them
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from inspect import signature
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer
from transformers.modeling_outputs import BaseModelOutputWithPast

NAMES = (
    "cache",
    "past_key_values",
    "cache_params",
)  # of a cache, in arguments and outputs
# The one that transformers uses: `cache` from 5.24 on.
CACHE_NAME = next(name for name in NAMES if name in {field.name for field in fields(BaseModelOutputWithPast)})


def as_argument(cache: Cache | None) -> dict[str, Any]:
    """Give a cache by the name that transformers has for it."""
    return {CACHE_NAME: cache}


def cache_argument(forward: Callable[..., Any]) -> str | None:
    """Give the name of the argument by which a forward takes a cache; None: it takes none."""
    return next((name for name in NAMES if name in signature(forward).parameters), None)


@dataclass(frozen=True)
class KeptStates:
    """Keys and values of some positions of one row: one pair for each layer, each [heads, positions, width]."""

    layers: tuple[tuple[Tensor, Tensor], ...]

    can_be_cut = True  # what stands in front of any position can be used without what follows

    @property
    def num_positions(self) -> int:
        """How many positions are kept."""
        return self.layers[0][0].shape[1]

    @property
    def size_bytes(self) -> int:
        """Memory that they take."""
        return sum(states.nbytes for pair in self.layers for states in pair)


class PreallocatedLayer(DynamicLayer):
    """One layer's keys and values, written into a buffer that has room for more; a row that outgrows it gets another.

    Every method of `DynamicLayer` holds: one that puts other tensors into `keys` and `values` (a reordering by beams)
    has them copied back at the next writing.
    """

    def __init__(self, capacity: int) -> None:
        """Take no memory yet: batch, heads and format come with the first states."""
        super().__init__()
        self.capacity = capacity
        self._buffers: list[Tensor | None] = [None, None]

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write states [B, heads, Q, width] behind those before, and hand all of them out."""
        self.is_initialized, self.dtype, self.device = True, key_states.dtype, key_states.device
        self.keys = self._write(0, self.keys, key_states)
        self.values = self._write(1, self.values, value_states)
        return self.keys, self.values

    def _write(self, index: int, before: Tensor | None, states: Tensor) -> Tensor:
        start = 0 if before is None else before.shape[2]
        end = start + states.shape[2]
        buffer = self._buffers[index]
        is_ours = buffer is not None and before is not None and before.data_ptr() == buffer.data_ptr()
        if buffer is None or end > buffer.shape[2] or (start and not is_ours):
            capacity = max(self.capacity, end if buffer is None else 2 * end)
            buffer = states.new_empty(*states.shape[:2], capacity, states.shape[3])
            if before is not None:
                buffer[:, :, :start] = before
            self._buffers[index] = buffer
        buffer[:, :, start:end] = states
        return buffer[:, :, :end]


class PreallocatedCache(Cache):
    """A cache of `PreallocatedLayer`s, which appear as the language model writes to them."""

    def __init__(self, capacity: int) -> None:
        """Say how many positions a row will have."""
        self.capacity = capacity
        super().__init__(layer_class_to_replicate=functools.partial(PreallocatedLayer, capacity))  # type: ignore[arg-type]

    def put(self, rows: Sequence[KeptStates | None]) -> None:
        """Fill an empty cache with what was kept, a row each, so that all rows end together.

        Args:
            rows: at least one of them not None; in front of a shorter one stand zeros, which a mask must hide.
        """
        present = [row for row in rows if row is not None]
        length = max(row.num_positions for row in present)
        for index, pair in enumerate(present[0].layers):
            states = []
            for place, like in enumerate(pair):
                whole = like.new_zeros(len(rows), like.shape[0], length, like.shape[2])
                for row, kept in enumerate(rows):
                    if kept is not None:
                        whole[row, :, length - kept.num_positions :] = kept.layers[index][place]
                states.append(whole)
            self.update(states[0], states[1], index)

    def keep(self, row: int, *, length: int) -> KeptStates:
        """Copy the states of a row's first positions."""
        return KeptStates(
            tuple((layer.keys[row, :, :length].clone(), layer.values[row, :, :length].clone()) for layer in self._full)
        )

    def cut(self, length: int) -> None:
        """Forget all positions from `length` on."""
        for layer in self._full:
            layer.keys, layer.values = layer.keys[:, :, :length], layer.values[:, :, :length]

    @property
    def _full(self) -> list[Any]:
        return [layer for layer in self.layers if getattr(layer, "keys", None) is not None]


def rows_of(cache: Any, lengths: Sequence[int]) -> list[KeptStates]:
    """Keep every row of a cache, the first positions of each."""
    return [cache.keep(row, length=length) for row, length in enumerate(lengths)]
