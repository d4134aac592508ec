"""What many rows with unlike histories have read, for language models with states: rows come, grow and go.

In: what a row has read (`KeptRow`), or a forward that reads more. Out: the same calls as `SlotCache` of slots.py has.
Each row has its states for itself; those that take a step together are one `StateCache`, in which they all end at the
same column, and it stays one for as long as the same rows step.

    cache = StateSlots(device=model.device)
    cache.place(0, states, length=states.num_positions)
    with cache.reading(rows=slice(0, 2), starts=[3, 0], counts=[2, 1]): ...     # and a forward
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from visgraft.model.cache import KeptStates
from visgraft.model.sequence import SegmentTable
from visgraft.model.slots import Reading
from visgraft.model.state_cache import KeptRow, StateCache
from visgraft.segments import PAD, TEXT


class StateSlots:
    """Rows of states.

    Attributes:
        reserved: rows and columns that there is room for; memory is taken as rows grow.
        present: what the forward that runs reads; set by `reading`.
    """

    def __init__(self, *, device: torch.device) -> None:
        """Begin with no row."""
        self.reserved = (0, 0)
        self.device = device
        self.present = Reading(slice(0, 0), [0], [0], device)
        self._rows: dict[int, KeptRow] = {}
        self._joint: tuple[slice, list[int], StateCache] | None = None  # rows, their lengths, what they have read

    @property
    def size_bytes(self) -> int:
        """Memory that is taken."""
        joint = 0 if self._joint is None else sum(tensor.nbytes for tensor in self._joint[2].base.values())
        return joint + sum(row.size_bytes for row in self._rows.values())

    def reserve(self, num_rows: int, *, num_columns: int) -> None:
        """Allow so many rows and columns."""
        self.reserved = (max(num_rows, self.reserved[0]), max(num_columns, self.reserved[1]))

    def shrink(self, num_rows: int) -> None:
        """Forget all rows but the first ones."""
        self._part()
        self._rows = {row: kept for row, kept in self._rows.items() if row < num_rows}
        self.reserved = (num_rows, self.reserved[1])

    def place(self, row: int, states: KeptStates, *, length: int) -> None:
        """Let a row begin with what was read elsewhere: all of it, where there is a state."""
        self._part()
        assert isinstance(states, KeptRow)
        self._rows[row] = states.begin(length)

    def copy(self, source: int, target: int, *, length: int) -> None:
        """Let a row hold what another one holds."""
        self._part()
        self._rows[target] = self._rows[source]

    def clear(self, row: int) -> None:
        """Forget what a row holds."""
        self._part()
        self._rows.pop(row, None)

    def keep(self, row: int, *, length: int) -> KeptRow:
        """Give what a row has read."""
        self._part()
        return self._rows[row]

    @contextmanager
    def reading(self, *, rows: slice, starts: Sequence[int], counts: Sequence[int]) -> Iterator[Reading]:
        """Let a forward read so many positions behind each of these rows while the context lasts."""
        self.present = Reading(rows, starts, counts, self.device)
        yield self.present

    def begin(self, *, num_new: int) -> tuple[SegmentTable, StateCache]:
        """Give what the forward reads: rows [pads][what was read][new positions][pads], and their states."""
        reading, device = self.present, self.device
        starts, counts = (torch.tensor(each, device=device)[:, None] for each in (reading.starts, reading.counts))
        cache = self._join(reading)
        before = cache.num_positions
        column = torch.arange(before, device=device)[None] - (before - starts)  # [B, S before]; below 0: pads
        new = torch.arange(num_new, device=device)[None].expand(len(starts), -1)  # [B, Q]
        is_real = torch.cat([column >= 0, new < counts], 1)
        position = torch.cat([column.clamp(min=0), starts + new], 1)
        none = torch.zeros_like(position)
        sees = torch.zeros(len(starts), 1, 1, dtype=torch.bool, device=device)
        table = SegmentTable(torch.where(is_real, TEXT, PAD), none, none, position, sees)
        return table, cache

    def end(self, table: SegmentTable, cache: StateCache) -> None:
        """Take in what the forward has read."""
        reading = self.present
        lengths = [start + count for start, count in zip(reading.starts, reading.counts, strict=True)]
        if len(set(reading.counts)) == 1:
            self._joint = (reading.rows, lengths, cache)
            return
        is_real = table.kind != PAD
        for index, row in enumerate(range(reading.rows.start, reading.rows.stop)):
            self._rows[row] = cache.keep(index, columns=is_real[index].nonzero()[:, 0])

    def _join(self, reading: Reading) -> StateCache:
        """Give the states of the rows of a reading as one cache, in which they all end at the same column."""
        if self._joint is not None and self._joint[:2] == (reading.rows, list(reading.starts)):
            cache, self._joint = self._joint[2], None
            return cache
        self._part()
        cache = StateCache()
        numbers = range(reading.rows.start, reading.rows.stop)
        known = [self._rows.get(row) if start else None for row, start in zip(numbers, reading.starts, strict=True)]
        if any(row is not None for row in known):
            cache.put(known)
        for row in numbers:
            self._rows.pop(row, None)
        return cache

    def _part(self) -> None:
        """Give each row of the joint cache its states for itself."""
        if self._joint is None:
            return
        (rows, lengths, cache), self._joint = self._joint, None
        for index, row in enumerate(range(rows.start, rows.stop)):
            columns = torch.arange(cache.num_positions - lengths[index], cache.num_positions, device=self.device)
            self._rows[row] = cache.keep(index, columns=columns)
