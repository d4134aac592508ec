"""Sources that are read from their beginning to their end: what a reader returns of them, and a stretch kept in memory.

In:  rows one behind the other, each with the place behind it. Out: their samples.

    for row in stream.rows.read(seed=0, epoch=0, place=None): sample = stream.sample(row)

A place is plain values (numbers, texts, lists, dicts), for a checkpoint to hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

from visgraft.data.fingerprint import Fingerprint
from visgraft.data.grouping import ReadRow
from visgraft.data.images.opening import image_refs
from visgraft.data.readers.rows import Row
from visgraft.data.sample import Sample
from visgraft.errors import BadSampleError

StreamPlace: TypeAlias = Any


class StreamedRow(NamedTuple):
    """A row as it comes.

    Attributes:
        row: what it holds; the reason where it cannot be read.
        number: names it in the stream, the same in every epoch.
        where: where a user finds it.
        after: the place behind it.
    """

    row: Row | str
    number: int
    where: str
    after: StreamPlace


class RowStream(Protocol):
    """Rows in an order that depends on nothing but seed and epoch."""

    @property
    def fingerprint(self) -> Fingerprint:
        """Return what differs wherever the files differ, as far as the stream knows them."""

    def read(self, *, seed: int | None, epoch: int, place: StreamPlace) -> Iterator[StreamedRow]:
        """Read on from a place that an earlier reading of the same seed and epoch gave; None: from the beginning.

        Without a seed the order is the stream's own.
        """


@dataclass(frozen=True)
class SampleStream:
    """What a reader returns of a stream: its rows, how a row is read, and what the reader has to say."""

    rows: RowStream
    read_row: ReadRow
    folder: Path | None = None
    notes: Sequence[str] = ()

    def sample(self, row: StreamedRow) -> Sample | str:
        """Make a sample of a row; the reason where it is bad."""
        if isinstance(row.row, str):
            return row.row
        try:
            content = self.read_row(row.row)
            name = str(row.number) if content.id is None else content.id
            return Sample(image_refs(list(content.images), folder=self.folder), content.dialogs, id=name)
        except BadSampleError as error:
            return str(error)


class BufferedSamples:
    """Keep some samples of a stream in memory; see Source."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self._samples: list[Sample | str] = []
        self._where: list[str] = []

    def append(self, sample: Sample | str, *, row: StreamedRow) -> None:
        """Add a row's sample, or the reason why it is bad."""
        self.numbers.append(row.number)
        self._samples.append(sample)
        self._where.append(row.where)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        sample = self._samples[index]
        if isinstance(sample, str):
            raise BadSampleError(sample)
        return sample

    def where(self, index: int) -> str:
        """Say where the row stands."""
        return self._where[index]
