"""Keys and values of many rows with unlike histories, in one cache: rows come, grow by a token at a time, and go.

In: what a row has read (`KeptStates`), or a forward that reads more. Out: a cache that `transformers` takes wherever it
takes one. Every row begins at column 0 and has no gaps, so a column is a logical position: sliding windows, chunks,
ALiBi and rotary positions need nothing of their own. Rows that are in use stand at the front; what leaves a hole is
filled by the last one, so a step runs those in use and no other, over as many columns as the longest of them has.

          0 1 2 3 4 5 6 7       i an image's states, a a prompt's, b an answer's
    row 0 i i i a a b . .       each writes its next token behind its own last one
    row 1 i i i a b b b b
    row 2 a a b . . . . .

    cache = SlotCache(num_layers=12, device=model.device)
    cache.reserve(3, num_columns=64)
    cache.place(0, states, length=states.num_positions)                # an image, as it was read elsewhere
    with cache.reading(rows=slice(0, 3), starts=[3, 3, 0], counts=[2, 1, 2]): ...    # and a forward
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from visgraft.model.cache import KeptStates


@dataclass(frozen=True)
class Reading:
    """The rows that a forward runs, and where each writes.

    Attributes:
        rows: of the cache.
        starts: column of each row's first new position, [B].
        counts: new positions of each row, [B].
        device: of the keys and values.
    """

    rows: slice
    starts: Sequence[int]
    counts: Sequence[int]
    device: torch.device
    _places: list[Tensor] = field(default_factory=list, init=False)

    @property
    def num_new(self) -> int:
        """The most new positions of a row, Q."""
        return max(self.counts)

    @property
    def num_columns(self) -> int:
        """Columns that are handed out, K: up to the end of the longest row."""
        return max(start + count for start, count in zip(self.starts, self.counts, strict=True))

    @property
    def places(self) -> tuple[Tensor, Tensor]:
        """Index the first new position of each row: two [B] long tensors, made once for all layers."""
        if not self._places:
            self._places.append(torch.arange(len(self.starts), device=self.device))
            self._places.append(torch.tensor(self.starts, device=self.device))
        return self._places[0], self._places[1]


class SlotLayer(DynamicLayer):
    """One layer's keys and values of all rows; what a forward reads and where it writes, the cache says."""

    def __init__(self, cache: SlotCache) -> None:
        """Take no memory yet: heads, widths and format come with the first states."""
        super().__init__()
        self._cache = weakref.proxy(cache)
        self.buffers: list[Tensor] = []  # keys and values, [rows, heads, columns, width]

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write states [B, heads, Q, width] where each row goes on; hand out K columns of those rows."""
        reading: Reading = self._cache.present
        self.ensure((key_states, value_states), row_axis=True)
        first, second = (
            _write(buffer, states, reading)
            for buffer, states in zip(self.buffers, (key_states, value_states), strict=True)
        )
        return first, second

    def ensure(self, like: Sequence[Tensor], *, row_axis: bool) -> None:
        """Take the room that is reserved, once heads, widths and format are known: like [B?, heads, n, width]."""
        if not self.buffers:
            shape = self._cache.reserved
            # zeros: what no row has written is hidden by the mask, yet 0 x NaN would be NaN
            self.buffers = [
                states.new_zeros(shape[0], states.shape[int(row_axis)], shape[1], states.shape[-1]) for states in like
            ]
            self.is_initialized, self.dtype, self.device = True, like[0].dtype, like[0].device

    def resize(self, num_rows: int, num_columns: int) -> None:
        """Move to a buffer of another size, with all that fits."""
        for index, old in enumerate(self.buffers):
            new = old.new_zeros(num_rows, old.shape[1], num_columns, old.shape[3])
            rows, columns = min(num_rows, old.shape[0]), min(num_columns, old.shape[2])
            new[:rows, :, :columns] = old[:rows, :, :columns]
            self.buffers[index] = new

    def get_seq_length(self) -> int:
        """Say how many columns stand in front of those that are run."""
        reading: Reading = self._cache.present
        return reading.num_columns - reading.num_new

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Say how many keys a forward looks at, and from which column on."""
        return self._cache.present.num_columns, 0


class SlotCache(Cache):
    """A cache whose rows have lengths of their own.

    Attributes:
        reserved: rows and columns that there is room for.
        present: what the forward that runs reads; set by `reading`.
    """

    layers: list[SlotLayer]  # type: ignore[assignment]  # a list of one kind

    def __init__(self, *, num_layers: int, device: torch.device) -> None:
        """Make one without room; take it with `reserve`."""
        self.reserved = (0, 0)
        self.device = device
        self.present = Reading(slice(0, 0), [0], [0], device)
        self._holds: dict[int, weakref.ref[KeptStates]] = {}
        super().__init__(layers=[SlotLayer(self) for _ in range(num_layers)])

    @property
    def size_bytes(self) -> int:
        """Memory that is taken."""
        return sum(buffer.nbytes for layer in self.layers for buffer in layer.buffers)

    def reserve(self, num_rows: int, *, num_columns: int) -> None:
        """Make room for so many rows and columns; what stands there stays. Where memory runs out, all is as before."""
        rows, columns = max(num_rows, self.reserved[0]), max(num_columns, self.reserved[1])
        if (rows, columns) == self.reserved:
            return
        try:
            for layer in self.layers:
                layer.resize(rows, columns)
        except RuntimeError:
            for layer in self.layers:
                with suppress(RuntimeError):  # a layer that stays larger than the others does no harm
                    layer.resize(*self.reserved)
            raise
        self.reserved = (rows, columns)

    def shrink(self, num_rows: int) -> None:
        """Give back the room of all rows but the first ones."""
        for layer in self.layers:
            layer.resize(num_rows, self.reserved[1])
        self.reserved = (num_rows, self.reserved[1])
        self._holds = {row: known for row, known in self._holds.items() if row < num_rows}

    def place(self, row: int, states: KeptStates, *, length: int) -> None:
        """Copy the first positions of what was read elsewhere to a row, unless the row still begins with all of it."""
        holds = self._holds.pop(row, None)
        if holds is None or holds() is not states:
            for layer, pair in zip(self.layers, states.layers, strict=False):
                layer.ensure(pair, row_axis=False)
                for buffer, kept in zip(layer.buffers, pair, strict=True):
                    buffer[row, :, :length] = kept[:, :length]
        if length == states.num_positions:
            self._holds[row] = weakref.ref(states)

    def copy(self, source: int, target: int, *, length: int) -> None:
        """Let a row hold what another one holds in its first columns."""
        for layer in self.layers:
            for buffer in layer.buffers:
                buffer[target, :, :length] = buffer[source, :, :length]
        if source in self._holds:
            self._holds[target] = self._holds[source]
        else:
            self._holds.pop(target, None)

    def clear(self, row: int) -> None:
        """Write zeros over a row: whatever it held, numbers that are none among it, is gone."""
        for layer in self.layers:
            for buffer in layer.buffers:
                buffer[row] = 0
        self._holds.pop(row, None)

    def keep(self, row: int, *, length: int) -> KeptStates:
        """Copy the states of a row's first positions."""
        pairs = [[buffer[row, :, :length].clone() for buffer in layer.buffers] for layer in self.layers]
        states = KeptStates(tuple((pair[0], pair[1]) for pair in pairs if pair))
        self._holds[row] = weakref.ref(states)
        return states

    @contextmanager
    def reading(self, *, rows: slice, starts: Sequence[int], counts: Sequence[int]) -> Iterator[Reading]:
        """Let a forward read so many positions of each of these rows, from its column on, while the context lasts."""
        self.present = Reading(rows, starts, counts, self.device)
        assert self.present.num_columns <= self.reserved[1], "reserve columns before reading"
        for row, start in enumerate(starts, start=rows.start):  # a row that is begun anew holds nothing known any more
            known = self._holds[row]() if row in self._holds else None
            if known is None or start < known.num_positions:
                self._holds.pop(row, None)
        yield self.present


def _write(buffer: Tensor, states: Tensor, reading: Reading) -> Tensor:
    """Write [B, heads, Q, width] into rows of a buffer; return these rows' columns that are in use."""
    rows = buffer[reading.rows]
    if reading.num_new == 1:
        index, columns = reading.places
        rows[index, :, columns] = states[:, :, 0].to(buffer.dtype)
    else:
        for row, start in enumerate(reading.starts):
            end = min(start + reading.num_new, reading.num_columns)  # what is left over behind all rows is not kept
            rows[row, :, start:end] = states[row, :, : end - start]
    return rows[:, :, : reading.num_columns]
