"""Read rows out of parquet files and Hugging Face datasets, a row at a time.

In:  parquet files, or a `datasets.Dataset`. Out: Rows (see rows.py); images come as they are stored, never decoded.

    rows = ParquetRows([Path("train-00000-of-00002.parquet"), ...])
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from visgraft.atomic import whole_file
from visgraft.data.fingerprint import Fingerprint, stamp
from visgraft.data.images.opening import short_digest
from visgraft.data.readers.rows import Row
from visgraft.data.row_streams import StreamedRow
from visgraft.errors import BadSampleError, DataError
from visgraft.parsing import parse_json

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
        self._decoders: list[Decoders] = []  # of each file
        for number, path in enumerate(self._paths):
            metadata, schema = _metadata(path)
            self.columns = self.columns or schema.names
            self._decoders.append(json_columns(schema))
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
            return decoded(row, self._decoders[self._groups[number][0]])
        except _DAMAGED_VALUES:
            raise BadSampleError("parquet row cannot be read") from None

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


def _metadata(path: Path) -> tuple[pq.FileMetaData, pa.Schema]:
    """Return what a file says of its row groups, and its columns."""
    try:
        metadata = pq.read_metadata(path)
        schema = metadata.schema.to_arrow_schema()
        columns = schema.names
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{path}: is no parquet file that can be read ({error})") from error
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise DataError(f"{path}: names the column {twice[0]!r} twice; rename one of them")
    return metadata, schema


# --- Columns of JSON: `datasets` keeps values of several types (a content that is a text here and a list there) as JSON


Decoders: TypeAlias = dict[str, Callable[[Any], Any]]


def json_columns(schema: pa.Schema) -> Decoders:
    """Return how to read the columns that hold JSON as text, at whatever depth."""
    return {field.name: decode for field in schema if (decode := _json_in(field.type)) is not None}


def decoded(row: Row, decoders: Decoders) -> Row:
    """Read the JSON that a row holds as text. Raises ValueError."""
    return {**row, **{name: decode(row[name]) for name, decode in decoders.items() if name in row}} if decoders else row


def _json_in(kind: pa.DataType) -> Callable[[Any], Any] | None:
    if getattr(kind, "extension_name", None) == "arrow.json":
        return _parsed
    if pa.types.is_struct(kind):
        inside = {field.name: decode for field in kind if (decode := _json_in(field.type)) is not None}
        return partial(_parsed_fields, inside) if inside else None
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        decode = _json_in(kind.value_type)
        return None if decode is None else partial(_parsed_each, decode)
    return None


def _stored(kind: pa.DataType) -> pa.DataType:
    """Return a type with text in the place of JSON."""
    if _json_in(kind) is None:
        return kind
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_stored(field.type)) for field in kind])
    if pa.types.is_large_list(kind):
        return pa.large_list(_stored(kind.value_type))
    return kind.storage_type if hasattr(kind, "storage_type") else pa.list_(_stored(kind.value_type))


def _parsed(value: Any) -> Any:
    return parse_json(value) if isinstance(value, str) else value


def _parsed_fields(inside: Decoders, value: Any) -> Any:
    return decoded(value, inside) if isinstance(value, dict) else value


def _parsed_each(decode: Callable[[Any], Any], value: Any) -> Any:
    return [decode(entry) for entry in value] if isinstance(value, list) else value


class DatasetRows:
    """Hold a `datasets.Dataset`; images stay undecoded, class labels become their names. See Rows."""

    def __init__(self, dataset: Any, *, name: str, files: Sequence[Path] = ()) -> None:
        self._dataset = dataset.with_format("arrow")
        self._name = name
        self._files = list(files)  # that tell whether it changed, beside its own fingerprint
        self._labels = label_names(dataset.features)
        self._decoders = json_columns(dataset.features.arrow_schema)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Row:
        try:
            return with_names(decoded(self._dataset[index].to_pylist()[0], self._decoders), self._labels)
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
        self._decoders = {} if dataset.features is None else json_columns(dataset.features.arrow_schema)

    def read(self, *, seed: int | None, epoch: int, place: Any) -> Iterator[StreamedRow]:
        """Read on from a place."""
        dataset = copy(self._dataset)
        number, state = place or (0, None)
        if state is not None:
            dataset.load_state_dict(state)
        rows = iter(dataset)
        while (row := self._next(rows, number)) is not None:
            named = with_names(decoded(dict(row), self._decoders), self._labels)
            yield StreamedRow(named, number, f"{self._name} row {number}", [number + 1, dataset.state_dict()])
            number += 1

    def _next(self, rows: Iterator[Any], number: int) -> Any:
        try:
            return next(rows, None)
        except (MemoryError, KeyboardInterrupt):
            raise
        except Exception as error:  # the files of a dataset are damaged in every way there is
            reason = " ".join(str(error).split())[:200]
            raise DataError(
                f"hf: {self._name} cannot be read behind row {number:,} ({reason}); repair the file, or leave it out"
            ) from error


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
            if schema is not None:  # a table of JSON cannot be made of Python's values, only of another table
                plain = pa.schema([field.with_type(_stored(field.type)) for field in schema], metadata=schema.metadata)
                table = pa.Table.from_pylist(chunk, schema=plain).cast(schema)
            else:
                table = pa.Table.from_pylist(chunk)
            schema = table.schema
            writer = writer or pq.ParquetWriter(building, schema, use_dictionary=False)
            writer.write_table(table)
            num_rows += len(chunk)
        if writer is None:
            writer = pq.ParquetWriter(building, schema or pa.schema([]))
        writer.close()
    return num_rows
