"""Read rows out of parquet files and Hugging Face datasets, a row at a time.

In:  parquet files, or a `datasets.Dataset`. Out: Rows (see rows.py); images come as they are stored, never decoded.

    rows = ParquetRows([Path("train-00000-of-00002.parquet"), ...])
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from visgraft.atomic import whole_file
from visgraft.data.fingerprint import Fingerprint, stamp
from visgraft.data.images.opening import short_digest
from visgraft.data.readers.rows import Row
from visgraft.data.row_streams import StreamedRow
from visgraft.errors import BadSampleError, DataError

ROWS_PER_GROUP = 32  # of files that are written here
_OPEN_FILES = 64
# What the values of damaged files raise: a text that is no UTF-8, a time beyond all years, a length below zero.
_DAMAGED_VALUES = (pa.ArrowException, ValueError, OverflowError, SystemError)
_KEPT_ROW_GROUPS = 4  # in memory, of every set of columns; a neighbour is often the next to be read


class ParquetRows:
    """Hold where the row groups of parquet files begin; one row group is read at a time. See Rows.

    Reading by number in random order is as quick as the row groups are small: `visgraft data prepare` writes such.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = list(paths)
        self._groups: list[tuple[int, int]] = []  # file, row group
        self._starts = [0]
        self.columns: list[str] = []
        for number, path in enumerate(self._paths):
            metadata, columns = _metadata(path)
            self.columns = self.columns or columns
            for group in range(metadata.num_row_groups):
                self._groups.append((number, group))
                self._starts.append(self._starts[-1] + metadata.row_group(group).num_rows)
        self._kept: OrderedDict[int, pa.Table] = OrderedDict()
        self._open: dict[int, pq.ParquetFile] = {}

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Row:
        number = bisect_right(self._starts, index) - 1
        try:
            row: Row = self._read(number).slice(index - self._starts[number], 1).to_pylist()[0]
        except _DAMAGED_VALUES:
            raise BadSampleError("parquet row cannot be read") from None
        return row

    def column(self, name: str) -> list[Any]:
        """Return the values of one column alone; None where a row group cannot be read."""
        values: list[Any] = []
        for number, (file, group) in enumerate(self._groups):
            try:
                values += pq.ParquetFile(self._paths[file]).read_row_group(group, columns=[name])[name].to_pylist()
            except (OSError, KeyError, ValueError, pa.ArrowException):
                values += [None] * (self._starts[number + 1] - self._starts[number])
        return values

    def where(self, index: int) -> str:
        """Say which row of which file it is."""
        number = bisect_right(self._starts, index) - 1
        file = self._groups[number][0]
        first = next(start for start, (other, _) in zip(self._starts, self._groups, strict=False) if other == file)
        return f"{self._paths[file].name} row {index - first}"

    @property
    def fingerprint(self) -> Fingerprint:
        """Return path, size and time of the files."""
        return stamp(self._paths)

    def _read(self, number: int) -> pa.Table:
        if number not in self._kept:
            file, group = self._groups[number]
            try:
                if file not in self._open:
                    self._open[file] = pq.ParquetFile(self._paths[file])
                self._kept[number] = self._open[file].read_row_group(group, use_threads=False)
            except (OSError, pa.ArrowException):
                raise BadSampleError("parquet row group cannot be read") from None
            while len(self._open) > _OPEN_FILES:
                self._open.pop(next(iter(self._open))).close()
            while len(self._kept) > _KEPT_ROW_GROUPS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(number)
        return self._kept[number]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": OrderedDict(), "_open": {}}  # workers read their own


def _metadata(path: Path) -> tuple[pq.FileMetaData, list[str]]:
    """Return what a file says of its row groups, and its columns."""
    try:
        metadata = pq.read_metadata(path)
        columns: list[str] = metadata.schema.to_arrow_schema().names
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{path}: is no parquet file that can be read ({error})") from error
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise DataError(f"{path}: names the column {twice[0]!r} twice; rename one of them")
    return metadata, columns


class DatasetRows:
    """Hold a `datasets.Dataset`; images stay undecoded, class labels become their names. See Rows."""

    def __init__(self, dataset: Any, *, name: str, files: Sequence[Path] = ()) -> None:
        self._dataset = dataset.with_format("arrow")
        self._name = name
        self._files = list(files)  # that tell whether it changed, beside its own fingerprint
        self._labels = label_names(dataset.features)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Row:
        try:
            return with_names(self._dataset[index].to_pylist()[0], self._labels)
        except _DAMAGED_VALUES:
            raise BadSampleError("dataset row cannot be read") from None

    def where(self, index: int) -> str:
        """Say which row of the dataset it is."""
        return f"{self._name} row {index}"

    @property
    def fingerprint(self) -> Fingerprint:
        """Return the dataset's own."""
        return stamp(self._files, marks=[f"{self._name} {self._dataset._fingerprint}"])


class DatasetStream:
    """Read a `datasets.IterableDataset` in its own order, every epoch the same. See RowStream.

    A place is [how many rows are done, the dataset's own state]: what lies before it is not read again.
    """

    def __init__(self, dataset: Any, *, name: str) -> None:
        self.fingerprint = _fingerprint_of_stream(dataset)
        self._dataset = dataset.decode(False) if dataset.features is not None else dataset
        self._name = name
        self._labels = label_names(dataset.features or {})

    def read(self, *, seed: int | None, epoch: int, place: Any) -> Iterator[StreamedRow]:
        """Read on from a place."""
        dataset = copy(self._dataset)
        number, state = place or (0, None)
        if state is not None:
            dataset.load_state_dict(state)
        for row in dataset:
            named = with_names(dict(row), self._labels)
            yield StreamedRow(named, number, f"{self._name} row {number}", [number + 1, dataset.state_dict()])
            number += 1


def _fingerprint_of_stream(dataset: Any) -> Fingerprint:
    """Return what a stream tells of its files: those on this machine, the addresses of others (with their commit)."""
    arguments = getattr(getattr(dataset, "_ex_iterable", None), "kwargs", {})
    lists = [value for value in arguments.values() if isinstance(value, list)]
    names = list(dict.fromkeys(name for value in lists for name in value if isinstance(name, str)))
    here = [Path(name) for name in names if Path(name).is_file()]
    others = [name for name in names if not Path(name).is_file()]
    return stamp(here, marks=[others[0], short_digest(repr(others).encode()).hex()] if others else [])


def label_names(features: Any) -> dict[str, list[str]]:
    """Return the names of the classes of every column that holds class numbers."""
    return {column: feature.names for column, feature in features.items() if hasattr(feature, "int2str")}


def with_names(row: Row, labels: dict[str, list[str]]) -> Row:
    """Return a row with class numbers replaced by the names of the classes."""
    for column, names in labels.items():
        if isinstance(row[column], int) and 0 <= row[column] < len(names):
            row[column] = names[row[column]]
    return row


def write_parquet(path: Path, rows: Iterable[Row], *, schema: pa.Schema | None = None) -> int:
    """Write rows as a parquet file that is whole or not there, and say how many there were.

    Row groups are small, so that any row is quick to reach. schema: None = that of the first rows.
    """
    writer, num_rows, left = None, 0, iter(rows)
    with whole_file(path) as building:
        while chunk := list(islice(left, ROWS_PER_GROUP)):
            table = pa.Table.from_pylist(chunk, schema=schema)
            schema = table.schema
            writer = writer or pq.ParquetWriter(building, schema, use_dictionary=False)
            writer.write_table(table)
            num_rows += len(chunk)
        if writer is None:
            writer = pq.ParquetWriter(building, schema or pa.schema([]))
        writer.close()
    return num_rows
