"""Some of a source: samples of it by number, or every dialog of it as a sample of its own.

In: a Source. Out: another one over the same files.

    Subset(source, np.array([0, 2, 4]))
    Ungrouped(source, known_counts(source))
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from visgraft.data.sample import Sample, Source


def known_counts(source: Source) -> NDArray[np.int64] | None:
    """Return the dialogs of each sample where the source knows them (0: a bad sample); None: it must be read."""
    counts: NDArray[np.int64] | None = getattr(source, "num_dialogs", None)
    return counts


class Ungrouped:
    """Give every dialog of a source that comes gathered by image a sample of its own; see Source."""

    def __init__(self, source: Source, counts: NDArray[np.int64]) -> None:
        self.source = source
        times = np.maximum(counts, 1)  # a bad sample stays one
        self._samples = np.repeat(np.arange(len(counts)), times)
        self._dialogs = np.arange(len(self._samples)) - np.repeat(np.cumsum(times) - times, times)
        self.num_dialogs = np.minimum(counts, 1)[self._samples]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        sample, number = self.source[int(self._samples[index])], int(self._dialogs[index])
        name = sample.id if sample.id is None or len(sample.dialogs) < 2 else f"{sample.id}#{number}"
        return replace(sample, dialogs=sample.dialogs[number : number + 1], id=name)

    def where(self, index: int) -> str:
        """Say what the source says of all the rows about the image."""
        return self.source.where(int(self._samples[index]))


class Subset:
    """Hold some samples of a source; see Source."""

    def __init__(self, source: Source, indices: NDArray[np.int64]) -> None:
        self.source = source
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.source[int(self.indices[index])]

    def where(self, index: int) -> str:
        """Say what the source says."""
        return self.source.where(int(self.indices[index]))

    @property
    def num_dialogs(self) -> NDArray[np.int64] | None:
        """The dialogs of each sample; None where they are not known without reading."""
        counts = known_counts(self.source)
        return None if counts is None else counts[self.indices]
