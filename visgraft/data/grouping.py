"""Make samples of rows, and gather what is said about the same image behind one prefix.

In:  Rows and how a row of theirs is read; any Source.
Out: RowSource, a sample a row; Grouped, a sample an image, with the dialogs of all rows about it in their order.

    source = Grouped(RowSource(rows, folder=path), by_content=False)

Rows are gathered by the paths of their images, inlined images (bytes, base64) by what they hold. One scan keeps 16
bytes a row; what took long is kept in the cache, as long as no file changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visgraft.data.fingerprint import Fingerprint, ImagePaths, unpack
from visgraft.data.images.opening import KEY_BYTES, image_key, image_refs
from visgraft.data.processes import ALONE, Processes
from visgraft.data.readers.row_formats import Content, content_of_row
from visgraft.data.readers.rows import Row, Rows
from visgraft.data.sample import Sample, Source
from visgraft.disk_cache import Arrays
from visgraft.errors import BadSampleError

ReadRow = Callable[[Row], Content]
_NAMED_ROWS = 8  # of a group that is called by its rows


class RowSource:
    """Make a sample of every row; see Source."""

    def __init__(self, rows: Rows, *, folder: Path | None = None, read_row: ReadRow = content_of_row) -> None:
        self.rows = rows
        self._folder = folder
        self._read_row = read_row
        self.notes: Sequence[str] = ()  # what the reader has to say

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        content = self._read_row(self.rows[index])
        return Sample(image_refs(list(content.images), folder=self._folder), content.dialogs, id=content.id)

    def where(self, index: int) -> str:
        """Say where the row stands."""
        return self.rows.where(index)

    def without_texts(self) -> RowSource:
        """Give the same rows as samples of their images alone: no dialogs, and no row is bad for want of them."""
        return RowSource(self.rows, folder=self._folder, read_row=partial(self._read_row, texts=False))  # type: ignore[call-arg]  # readers'

    @property
    def fingerprint(self) -> Fingerprint:
        """Return what differs wherever the files of the rows differ."""
        return self.rows.fingerprint

    @property
    def reading(self) -> str:
        """Name what is read and how; another text wherever a file or an option changed."""
        options = getattr(self._read_row, "keywords", {})
        return repr((type(self).__name__, str(self._folder), options, self.fingerprint))


class Grouped:
    """Gather the samples of a source that have the same images; see Source.

    by_content: files are compared by what they hold, not by their path. alone: nothing is gathered, a sample is a row.
    processes: share the scan out among them.
    """

    def __init__(self, source: Source, *, by_content: bool, alone: bool = False, processes: Processes = ALONE) -> None:
        self.source = source
        fingerprint = None
        if isinstance(source, RowSource) and not by_content:
            fingerprint = f"rows and their images, 2 {source.reading}"
        scan = processes.make_arrays(
            partial(_scan, source, by_content=by_content), length=len(source), join=_join, fingerprint=fingerprint
        )
        keys, num_dialogs, self._images = scan["keys"], scan["num_dialogs"], scan["images"]
        self.keys: NDArray[np.bytes_] | None = None
        if alone:
            self._members = np.arange(len(keys), dtype=np.int32)
            self._starts = np.arange(len(keys) + 1, dtype=np.int32)
            self.num_dialogs: NDArray[Any] = num_dialogs
            return
        # The label of a row is the first row with the same images; bad rows and those without an image stand alone.
        labels = np.arange(len(keys))
        shared = np.flatnonzero(keys != b"")
        _, first, inverse = np.unique(keys[shared], return_index=True, return_inverse=True)
        labels[shared] = shared[first[inverse.reshape(-1)]]
        self._members = np.argsort(labels, kind="stable").astype(np.int32)
        ordered = labels[self._members]
        self._starts = np.flatnonzero(np.diff(ordered, prepend=-1, append=len(keys))).astype(np.int32)
        self.keys = keys[self._members[self._starts[:-1]]]  # empty of what stands alone
        self.num_dialogs = np.add.reduceat(num_dialogs[self._members], self._starts[:-1])

    def __len__(self) -> int:
        return len(self._starts) - 1

    def members(self, index: int) -> NDArray[np.int32]:
        """Return the numbers of the rows that a sample is made of."""
        return self._members[self._starts[index] : self._starts[index + 1]]

    def __getitem__(self, index: int) -> Sample:
        samples = [self.source[int(row)] for row in self.members(index)]
        dialogs = [dialog for sample in samples for dialog in sample.dialogs]
        return Sample(samples[0].images, dialogs, id=samples[0].id, source=samples[0].source)

    def where(self, index: int) -> str:
        """Say where its rows stand."""
        rows = self.members(index)
        more = f" and {len(rows) - _NAMED_ROWS} more" if len(rows) > _NAMED_ROWS else ""
        return ", ".join(self.source.where(int(row)) for row in rows[:_NAMED_ROWS]) + more

    @property
    def image_files(self) -> list[str]:
        """The paths of the images that are files of their own, of very many a part."""
        return unpack(self._images)


def _scan(source: Source, rows: range, *, by_content: bool) -> Arrays:
    """Read rows once: their keys (empty where one stands alone), dialogs (0: it is bad) and image files."""
    images = ImagePaths()
    keys = np.zeros(len(rows), dtype=f"S{KEY_BYTES + 1}")
    num_dialogs = np.zeros(len(rows), dtype=np.int32)
    for place, index in enumerate(rows):
        try:
            sample = source[index]
            num_dialogs[place] = len(sample.dialogs)
            images.add(*(image for image in sample.images if isinstance(image, Path)), row=index)
            key = sample_key(sample, by_content=by_content)
        except BadSampleError:
            continue  # asking for it, or opening its image, gives the reason
        if key is not None:
            keys[place] = key + b"."  # numpy cuts zeros off the end of bytes
    return {"keys": keys, "num_dialogs": num_dialogs, **images.part()}


def _join(parts: Sequence[Arrays]) -> Arrays:
    """Put what was found in stretches of rows together."""
    joined = {name: np.concatenate([part[name] for part in parts]) for name in ("keys", "num_dialogs")}
    return {**joined, "images": ImagePaths.joined(parts).packed()}


def sample_key(sample: Sample, *, by_content: bool) -> bytes | None:
    """Return the key of a sample's images together; None for a sample without an image."""
    keys = [image_key(image, by_content=by_content) for image in sample.images]
    if len(keys) < 2:
        return keys[0] if keys else None
    return image_key(b"".join(keys), by_content=True)
