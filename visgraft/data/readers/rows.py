"""Read rows out of large files by their number, keeping only places in memory.

In:  JSON Lines, a JSON list, CSV or TSV files.
Out: Rows: how many, row by number as a dict, and where it stands; a row that cannot be read is a BadSampleError.

    rows = open_rows([Path("train.jsonl")])
    rows[17]["text"]
"""

from __future__ import annotations

import csv
import json
import mmap
import re
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeAlias

import numpy as np

from visgraft.data.fingerprint import Fingerprint, stamp
from visgraft.disk_cache import Arrays, keep_arrays
from visgraft.errors import BadSampleError, DataError
from visgraft.parsing import parse_json

Row: TypeAlias = dict[str, Any]

ROW_SUFFIXES = (".jsonl", ".json", ".ndjson", ".csv", ".tsv")
csv.field_size_limit(2**31 - 1)  # a cell may hold an image in base64
# A string as a whole, or a bracket: all that is needed to see where the entries of a JSON list begin and end.
_JSON_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


class Rows(Protocol):
    """Rows by number, read when they are asked for; travels to worker processes."""

    def __len__(self) -> int:
        """Return how many rows there are."""

    def __getitem__(self, index: int) -> Row:
        """Return a row; raises BadSampleError where it cannot be read."""

    def where(self, index: int) -> str:
        """Say where a user finds that row."""

    @property
    def fingerprint(self) -> Fingerprint:
        """Return what differs wherever the files differ."""


def open_rows(paths: Sequence[Path]) -> Rows:
    """Open files of rows by their suffix: .jsonl (or .ndjson), .json, .csv, .tsv; several follow one another.

    Raises DataError for another suffix or a file that is not what it says.
    """
    return join_rows([_open_file(path) for path in paths])


def _open_file(path: Path) -> Rows:
    if path.suffix in (".csv", ".tsv"):
        return CsvRows(path)
    if path.suffix not in ROW_SUFFIXES:
        raise DataError(f"{path}: got the suffix {path.suffix!r}, need one of {', '.join(ROW_SUFFIXES)}")
    with path.open("rb") as file:
        is_list = path.suffix == ".json" and file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"["
    return JsonListRows(path) if is_list else JsonLinesRows(path)


def parse_object(text: bytes, *, what: str = "line") -> Row:
    """Return the JSON object that a piece of text is; raises BadSampleError."""
    try:
        row = parse_json(text.decode("utf-8-sig"))
    except ValueError:
        raise BadSampleError(f"{what} is not JSON") from None
    if not isinstance(row, dict):
        raise BadSampleError(f"{what} is not a JSON object")
    return row


class JsonLinesRows:
    """Hold where the lines of a JSON Lines file begin; blank lines are none. See Rows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offsets, self._numbers = array("q"), array("q")
        offset = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.isspace() and line != b"\xef\xbb\xbf":
                    self._offsets.append(offset)
                    self._numbers.append(number)
                offset += len(line)

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> Row:
        with self.path.open("rb") as file:
            file.seek(self._offsets[index])
            return parse_object(file.readline())

    def where(self, index: int) -> str:
        """Say on which line it stands."""
        return f"{self.path.name} line {self._numbers[index]}"

    @property
    def fingerprint(self) -> Fingerprint:
        """Return path, size and time of the file."""
        return stamp([self.path])


class JsonListRows:
    """Hold where the entries of a JSON list of objects begin and end. See Rows.

    The file is one list, or an object that has it under the key `inside`.
    """

    def __init__(self, path: Path, *, inside: str | None = None) -> None:
        self.path = path
        scan = keep_arrays(partial(_scan_list, path, inside=inside), fingerprint=f"list {inside} {stamp([path])}")
        self._starts, self._ends = scan["starts"], scan["ends"]

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Row:
        with self.path.open("rb") as file:
            file.seek(int(self._starts[index]))
            return parse_object(file.read(int(self._ends[index] - self._starts[index])), what="entry")

    def where(self, index: int) -> str:
        """Say which entry of the list it is."""
        return f"{self.path.name} entry {index}"

    @property
    def fingerprint(self) -> Fingerprint:
        """Return path, size and time of the file."""
        return stamp([self.path])


def _scan_list(path: Path, *, inside: str | None) -> Arrays:
    """Find where the objects of a list begin and end, by its brackets alone."""
    starts, ends = array("q"), array("q")
    depth, level, last, is_inside = 0, 1 if inside is None else 2, b"", inside is None
    key = json.dumps(inside).encode()
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            for token in _JSON_TOKEN.finditer(text):
                byte = token[0][:1]
                if byte in b"[{":
                    if depth == 1 and level == 2:
                        is_inside = last == key
                    if depth == level and is_inside:
                        starts.append(token.start())
                    depth += 1
                elif byte in b"]}":
                    depth -= 1
                    if depth == level and is_inside:
                        ends.append(token.end())
                elif depth == 1:
                    last = token[0]
    except ValueError:  # an empty file cannot be mapped
        depth = -1
    if depth != 0 or len(starts) != len(ends):
        raise DataError(f"{path}: is not a whole JSON list (brackets do not close); write it again")
    return {"starts": np.array(starts, dtype=np.int64), "ends": np.array(ends, dtype=np.int64)}


class CsvRows:
    """Hold where the records of a CSV or TSV file with a header begin. See Rows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._delimiter = "\t" if path.suffix == ".tsv" else ","
        self._offsets, self._numbers = array("q"), array("q")
        with path.open("rb") as file:
            lines = _CountedLines(file)
            reader = csv.reader(lines, delimiter=self._delimiter)
            self._columns = next(reader, [])
            while True:
                offset, number = lines.offset, lines.number
                record = next(reader, None)
                if record is None:
                    break
                if any(record):
                    self._offsets.append(offset)
                    self._numbers.append(number + 1)
        if not any(self._columns):
            raise DataError(f"{path}: has no header; its first line must name the columns")

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> Row:
        with self.path.open("rb") as file:
            file.seek(self._offsets[index])
            values = next(csv.reader(_CountedLines(file), delimiter=self._delimiter))
        if len(values) != len(self._columns):
            raise BadSampleError("line has another number of columns than the header")
        return dict(zip(self._columns, values, strict=True))

    def where(self, index: int) -> str:
        """Say on which line it begins."""
        return f"{self.path.name} line {self._numbers[index]}"

    @property
    def fingerprint(self) -> Fingerprint:
        """Return path, size and time of the file."""
        return stamp([self.path])


class _CountedLines:
    """The lines of a file as text, with the place that has been read up to."""

    def __init__(self, file: BinaryIO) -> None:
        self.offset = self.number = 0
        self._file = file

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._file.readline()
        if not line:
            raise StopIteration
        encoding = "utf-8-sig" if self.offset == 0 else "utf-8"
        self.offset += len(line)
        self.number += 1
        return line.decode(encoding, "replace").replace("\0", "\ufffd")


class JoinedRows:
    """Hold the rows of several files one behind the other. See Rows."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self._parts = parts
        self._starts = [0]
        for part in parts:
            self._starts.append(self._starts[-1] + len(part))

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Row:
        number = self._part_of(index)
        return self._parts[number][index - self._starts[number]]

    def where(self, index: int) -> str:
        """Say where it stands in its file."""
        number = self._part_of(index)
        return self._parts[number].where(index - self._starts[number])

    @property
    def fingerprint(self) -> Fingerprint:
        """Return those of the parts together."""
        return sum((part.fingerprint for part in self._parts), Fingerprint())

    def _part_of(self, index: int) -> int:
        return bisect_right(self._starts, index) - 1


def join_rows(parts: Sequence[Rows]) -> Rows:
    """Put rows one behind the other."""
    return parts[0] if len(parts) == 1 else JoinedRows(parts)
