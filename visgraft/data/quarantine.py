"""Set bad samples aside, count them, and stop a run that meets too many.

In:  what is bad, where, and why. Out: counts by reason; lines of quarantine.jsonl; past the budget TooManyBadError.

    quarantine = Quarantine(num_samples=len(sources), max_bad_fraction=0.01, write=write_line)
    quarantine.add(sources.bad_sample(index, "image is truncated"))
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from visgraft.errors import TooManyBadError

Part = Literal["train", "validation", "test"]  # the list of a recipe that a source stands in

NEVER_FEWER_BAD_SAMPLES = 5  # one bad sample among 20 is no reason to stop


@dataclass(frozen=True)
class BadSample:
    """Say which sample is bad and why: number index of its source, found at where; reasons are counted.

    part is the list that its source stands in.
    """

    source: str
    index: int
    where: str
    reason: str
    part: Part = "train"


def budget_of(num_samples: int, *, max_bad_fraction: float) -> int:
    """Return how many of some samples may be bad."""
    return max(NEVER_FEWER_BAD_SAMPLES, int(max_bad_fraction * num_samples))


class Quarantine:
    """Count bad samples, each once however often it comes, and stop past the budget.

    The budget is max_bad_fraction of num_samples, but never fewer than 5. write gets a dict for every new bad sample;
    known are those that an earlier part of the same run wrote. They count too; but of a stream, which is read from an
    earlier place again, more may be known than may be bad up to there: so what is met again is counted by itself.
    """

    def __init__(
        self,
        *,
        num_samples: int,
        max_bad_fraction: float,
        known: Iterable[BadSample] = (),
        write: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.num_samples = num_samples
        self._max_bad_fraction = max_bad_fraction
        self._bad = {_name(bad): bad for bad in known}
        self._met: set[tuple[str, str, int]] = set()
        self._write = write

    def __len__(self) -> int:
        return len(self._bad)

    @property
    def budget(self) -> int:
        """How many may be bad."""
        return budget_of(self.num_samples, max_bad_fraction=self._max_bad_fraction)

    def expect(self, num_samples: int) -> None:
        """Note that there are at least so many samples, as a stream shows while it is read."""
        self.num_samples = max(self.num_samples, num_samples)

    def add(self, bad: BadSample) -> None:
        """Note a bad sample; raises TooManyBadError when there are more than the budget allows."""
        is_new = _name(bad) not in self._bad
        self._met.add(_name(bad))
        if is_new:
            self._bad[_name(bad)] = bad
            if self._write is not None:
                self._write(asdict(bad))
        if len(self._bad if is_new else self._met) > self.budget:
            raise TooManyBadError(self._verdict())

    def check(self) -> None:
        """Raise TooManyBadError when more are known than the budget allows."""
        if len(self._bad) > self.budget:
            raise TooManyBadError(self._verdict())

    def reasons(self, source: str | None = None) -> Counter[str]:
        """Count the reasons, of one source or of all."""
        return Counter(bad.reason for bad in self._bad.values() if source in (None, bad.source))

    def _verdict(self) -> str:
        [((part, source), count)] = Counter((bad.part, bad.source) for bad in self._bad.values()).most_common(1)
        leading = ", ".join(f"{reason} ({number})" for reason, number in self.reasons(source).most_common(3))
        example = next(bad.where for bad in self._bad.values() if bad.source == source)
        return (
            f"data.{part}: {len(self._bad)} of {self.num_samples} samples are bad and at most {self.budget} are "
            f"allowed; most are of source {source!r} ({count}; the first is {example}): {leading}. "
            "Repair them, or raise data.max_bad_fraction"
        )


def _name(bad: BadSample) -> tuple[str, str, int]:
    return bad.part, bad.source, bad.index
