"""The processes of a run among which reading is shared out, and what they tell one another meanwhile.

In: which of how many processes this is. Out: values of all of them, the same in each.

    processes = Processes(accelerator.process_index, accelerator.num_processes)
    parts = processes.gather([own])          # one of each process; all must call it at the same moment

Every process must come to the same calls in the same order, so what is asked must not depend on what one alone knows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

from accelerate.utils import broadcast_object_list, gather_object

from visgraft.disk_cache import Arrays, is_worth_keeping, read_arrays, write_arrays


@dataclass(frozen=True)
class Processes:
    """Which of the processes of a run this is; all of them plan the same, at the same moments."""

    index: int = 0
    number: int = 1

    def gather(self, values: list[Any]) -> list[Any]:
        """Return the values of all, one process behind the other."""
        return list(gather_object(values)) if self.number > 1 else values

    def first(self, value: Any) -> Any:
        """Return the value of the first one."""
        values = [value]
        if self.number > 1:
            broadcast_object_list(values)
        return values[0]

    def share(self, length: int) -> range:
        """Return this process's part of range(length): a stretch, in the order of the processes."""
        return range(length * self.index // self.number, length * (self.index + 1) // self.number)

    def make_arrays(
        self,
        make: Callable[[range], Arrays],
        *,
        length: int,
        join: Callable[[Sequence[Arrays]], Arrays],
        fingerprint: str | None,
    ) -> Arrays:
        """Return what `make` makes of range(length), each process a stretch of it; from the cache where it is there.

        Args:
            make: of a stretch.
            length: of the whole.
            join: puts what was made of the stretches together, in their order.
            fingerprint: of all that they depend on; None: they are made each time. Only the first process's cache
                counts, so that all do the same.
        """
        kept = None
        if fingerprint is not None:
            kept = self.first(read_arrays(fingerprint) if self.index == 0 else None)
        if kept is not None:
            return kept
        started = monotonic()
        arrays = join(self.gather([make(self.share(length))]))
        if fingerprint is not None and self.index == 0 and is_worth_keeping(monotonic() - started):
            write_arrays(arrays, fingerprint=fingerprint)
        return arrays


ALONE = Processes()
