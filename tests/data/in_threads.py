"""Stand for several processes: threads that gather what each has.

In: how many, and the work of each. Out: what each returns.
Usage: `found = in_threads(3, lambda processes: open_sources(entries, processes=processes))`
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from visgraft.data.processes import Processes


@dataclass
class Meeting:
    """Where the threads of a group meet."""

    number: int
    values: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.number)
        self.values = [[] for _ in range(self.number)]


@dataclass(frozen=True)
class Threads(Processes):
    """One of several threads."""

    meeting: Meeting = field(default_factory=lambda: Meeting(1))

    def gather(self, values: list[Any]) -> list[Any]:
        self.meeting.values[self.index] = values
        self.meeting.barrier.wait(timeout=60)
        together = [value for own in self.meeting.values for value in own]
        self.meeting.barrier.wait(timeout=60)
        return together

    def first(self, value: Any) -> Any:
        return self.gather([value])[0]


def in_threads(number: int, work: Callable[[Threads], Any]) -> list[Any]:
    """Run a piece of work in so many threads, each as one of the processes."""
    meeting = Meeting(number)
    found: list[Any] = [None] * number

    def run(index: int) -> None:
        try:
            found[index] = work(Threads(index, number, meeting))
        except BaseException:
            meeting.barrier.abort()
            raise

    threads = [threading.Thread(target=run, args=(index,)) for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found
