"""Put the sources of a recipe one behind the other, in an order that depends on nothing but seed and epoch.

In:  the entries of a recipe's `data.train` or `data.validation`.
Out: Sources: samples by number, ids unique; the order of an epoch; chunks of a sample's dialogs; the count of bad ones.

    sources = open_sources(recipe.data.train, key="data.train")
    for index in sources.order(seed=0, epoch=0): sample = sources[index]
"""

from __future__ import annotations

import inspect
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from itertools import accumulate
from math import ceil
from pathlib import Path
from random import Random
from typing import Any, get_type_hints

import numpy as np
from numpy.typing import NDArray

from visgraft.config import SourceSettings, Strict, unknown_key
from visgraft.data.sample import Sample, Source
from visgraft.errors import ConfigError, DataError

# The one table of formats; a reader's module is loaded when a recipe asks for it.
READERS = {
    "coco": "visgraft.data.readers.coco",
    "easy_vqa": "visgraft.data.readers.easy_vqa",
    "folder": "visgraft.data.readers.folder",
}
NEVER_FEWER_BAD_SAMPLES = 5  # one bad sample among 20 is no reason to stop


def open_sources(settings: Sequence[SourceSettings], *, key: str = "data.train") -> Sources:
    """Open every source of a list; key is what messages call the list.

    Raises ConfigError for a source or an option that does not exist, and what the readers raise.
    """
    readers = [_reader(entry, key=f"{key}.{number}") for number, entry in enumerate(settings)]
    opened: list[OpenSource] = []
    names: Counter[str] = Counter()
    for entry, read in zip(settings, readers, strict=True):
        path = None if entry.path is None else Path(entry.path).expanduser()
        samples = read(path, split=entry.split)
        names[entry.source] += 1
        name = entry.source if names[entry.source] == 1 else f"{entry.source}-{names[entry.source]}"
        length = len(samples) if entry.limit is None else min(entry.limit, len(samples))
        opened.append(OpenSource(name=name, samples=samples, length=length, weight=entry.weight))
    return Sources(opened)


def _reader(entry: SourceSettings, *, key: str) -> Callable[..., Source]:
    """Return the entry's reader with its options, once every one of them is known to exist and fit."""
    if entry.source not in READERS:
        near = get_close_matches(entry.source, READERS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(READERS))}"
        raise ConfigError(f"{key}.source: no reader is named {entry.source!r}; {hint}")
    read = import_module(READERS[entry.source]).read
    hints = get_type_hints(read, include_extras=True)
    parameters = inspect.signature(read).parameters.values()
    options = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "split"]
    for name in entry.options:
        if name not in options:
            settings = [field.name for field in fields(SourceSettings) if field.name != "options"]
            raise unknown_key(name, allowed=[*options, *settings], path=key)
    strict = Strict(SourceSettings)
    return partial(
        read, **{name: strict.convert(value, hints[name], f"{key}.{name}") for name, value in entry.options.items()}
    )


@dataclass(frozen=True)
class OpenSource:
    """Hold one source among others: the first length samples of it, seen weight times an epoch."""

    name: str
    samples: Source
    length: int
    weight: float = 1.0


class Sources:
    """Hold several sources one behind the other: sources[i] is a sample whose id is `source:id`."""

    def __init__(self, opened: Sequence[OpenSource]) -> None:
        self.opened = tuple(opened)
        self._starts = list(accumulate((entry.length for entry in opened), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Sample:
        """Read a sample; raises BadSampleError where it is bad."""
        entry, inner = self._find(index)
        sample = entry.samples[inner]
        return replace(sample, id=f"{entry.name}:{inner if sample.id is None else sample.id}", source=entry.name)

    def bad_sample(self, index: int, reason: str) -> BadSample:
        """Say of a bad sample what its line in quarantine.jsonl says."""
        entry, inner = self._find(index)
        return BadSample(source=entry.name, index=inner, where=entry.samples.where(inner), reason=reason)

    def order(self, *, seed: int, epoch: int) -> NDArray[np.int64]:
        """Return the numbers of the samples in the order of an epoch, each source weight times.

        A weight of 2.5 brings every sample twice and half of them a third time, other ones each epoch.
        """
        chosen = [
            start + _times(entry.length, entry.weight, seed=seed, epoch=epoch)
            for entry, start in zip(self.opened, self._starts, strict=False)  # one start more: the end
        ]
        everything = np.concatenate([np.zeros(0, np.int64), *chosen])
        return everything[epoch_order(len(everything), seed=seed, epoch=epoch)]

    def _find(self, index: int) -> tuple[OpenSource, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        number = bisect_right(self._starts, index) - 1
        return self.opened[number], index - self._starts[number]


def epoch_order(num_groups: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return a permutation of range(num_groups) that depends on nothing but its arguments, on every platform."""
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(num_groups)


def _times(length: int, weight: float, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Repeat range(length) weight times; the fraction is a window that wanders over one fixed permutation."""
    whole, rest = int(weight), round((weight - int(weight)) * length)
    window = (epoch * rest + np.arange(rest)) % length
    return np.concatenate([np.tile(np.arange(length), whole), epoch_order(length, seed=seed, epoch=0)[window]])


def chunk_dialogs(sample: Sample, *, max_dialogs: int, rng: Random) -> list[Sample]:
    """Deal a sample's dialogs at random into as few samples of at most max_dialogs as will do, evenly filled."""
    num_chunks = ceil(len(sample.dialogs) / max_dialogs)
    if num_chunks <= 1:
        return [sample]
    dialogs = rng.sample(sample.dialogs, len(sample.dialogs))
    return [replace(sample, dialogs=dialogs[first::num_chunks]) for first in range(num_chunks)]


@dataclass(frozen=True)
class BadSample:
    """Say which sample is bad and why: number index of its source, found at where; reasons are counted."""

    source: str
    index: int
    where: str
    reason: str


class Quarantine:
    """Count bad samples, each once however often it comes, and stop past the budget.

    The budget is max_bad_fraction of num_samples, but never fewer than 5. write gets a dict for every new bad sample;
    known are those that an earlier part of the same run wrote.
    """

    def __init__(
        self,
        *,
        num_samples: int,
        max_bad_fraction: float,
        known: Iterable[BadSample] = (),
        write: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.budget = max(NEVER_FEWER_BAD_SAMPLES, int(max_bad_fraction * num_samples))
        self.num_samples = num_samples
        self._bad = {(bad.source, bad.index): bad for bad in known}
        self._write = write

    def __len__(self) -> int:
        return len(self._bad)

    def add(self, bad: BadSample) -> None:
        """Note a bad sample; raises DataError when there are more than the budget allows."""
        if (bad.source, bad.index) in self._bad:
            return
        self._bad[bad.source, bad.index] = bad
        if self._write is not None:
            self._write(asdict(bad))
        if len(self._bad) > self.budget:
            raise DataError(self._verdict())

    def reasons(self, source: str | None = None) -> Counter[str]:
        """Count the reasons, of one source or of all."""
        return Counter(bad.reason for bad in self._bad.values() if source in (None, bad.source))

    def _verdict(self) -> str:
        [(source, count)] = Counter(bad.source for bad in self._bad.values()).most_common(1)
        leading = ", ".join(f"{reason} ({number})" for reason, number in self.reasons(source).most_common(3))
        example = next(bad.where for bad in self._bad.values() if bad.source == source)
        return (
            f"{len(self._bad)} of {self.num_samples} samples are bad and at most {self.budget} are allowed; "
            f"most are of source {source!r} ({count}; the first is {example}): {leading}. "
            "Repair them, or raise data.max_bad_fraction"
        )
