"""Read rows out of large files by their number, keeping only places in memory.

In:  JSON Lines, a JSON list (alone, or inside an object), JSON objects one behind the other, CSV or TSV files.
Out: Rows: how many, row by number as a dict, and where it stands; a row that cannot be read is a BadSampleError. What a
     file is, its first bytes say, not its name: a list in a .jsonl is a list.

    rows = open_rows([Path("train.jsonl")])
    rows[17]["text"]
"""

from __future__ import annotations

import csv
import re
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeAlias

from visgraft.data.fingerprint import Fingerprint
from visgraft.data.readers.json_places import entries_of_list, list_inside, objects_in_file
from visgraft.data.readers.text_files import UTF8_MARK, TextFile, text_lines
from visgraft.disk_cache import Arrays
from visgraft.errors import BadSampleError, DataError
from visgraft.parsing import parse_json

Row: TypeAlias = dict[str, Any]

JSON_SUFFIXES, TABLE_SUFFIXES = (".jsonl", ".json", ".ndjson"), (".csv", ".tsv")
ROW_SUFFIXES = (*JSON_SUFFIXES, *TABLE_SUFFIXES)
_SEPARATORS = {".csv": ",;\t|", ".tsv": "\t,;|"}
_EXCELS_LINE = re.compile(r'"?sep=(.)"?\s*')  # above the header: it tells a spreadsheet what divides the cells
_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_SHOWN_COLUMNS = 8
csv.field_size_limit(2**31 - 1)  # a cell may hold an image in base64


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


def open_rows(paths: Sequence[Path], *, encoding: str | None = None, separator: str | None = None) -> Rows:
    """Open files of rows by their suffix: .jsonl (or .ndjson), .json, .csv, .tsv; several follow one another.

    encoding: None = UTF-8, or what a byte order mark says. separator: of a table's cells; None = as its header shows.
    Raises DataError for another suffix or a file that is not what it says.
    """
    return join_rows([_open_file(path, encoding=encoding, separator=separator) for path in paths])


def _open_file(path: Path, *, encoding: str | None, separator: str | None) -> Rows:
    suffix = path.suffix.lower()
    if suffix not in ROW_SUFFIXES:
        raise DataError(
            f"{path}: got the suffix {path.suffix!r}, need one of {', '.join(ROW_SUFFIXES)}; unpack what is compressed"
        )
    try:
        if suffix in TABLE_SUFFIXES:
            return CsvRows(path, encoding=encoding, separator=separator)
        return _open_json(TextFile(path, encoding))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _open_json(file: TextFile) -> Rows:
    """Open JSON as what it is: a list, lines, one object with a list inside, or objects that span lines."""
    with file.open() as opened:
        start = opened.read(2**16).removeprefix(UTF8_MARK).lstrip()[:1]
    if start == b"[":
        try:
            return JsonListRows(file, entries_of_list(file))
        except DataError:
            if file.path.suffix.lower() == ".json":
                raise
    lines: Rows = JsonLinesRows(file)
    if start != b"{" or (len(lines) > 1 and _is_object(lines, 0)):
        return lines
    if len(lines) > 1:  # an object spans lines, or the first line is damaged
        places = objects_in_file(file)
        objects = None if places is None else JsonListRows(file, places, what="object")
        if objects is None or (len(objects) > 1 and not _is_object(objects, 0)):
            return lines
        if len(objects) > 1:
            return objects
        lines = objects
    found = list_inside(file)
    return lines if found is None else JsonListRows(file, found)


def _is_object(rows: Rows, index: int) -> bool:
    try:
        rows[index]
    except BadSampleError:
        return False
    return True


def parse_object(text: str, *, what: str = "line") -> Row:
    """Return the JSON object that a piece of text is; raises BadSampleError."""
    try:
        row = parse_json(text)
    except ValueError as error:
        if str(error).startswith("Extra data") and text.lstrip().startswith("{"):
            raise BadSampleError(f"{what} holds more than one JSON object") from None
        raise BadSampleError(f"{what} is not JSON") from None
    if not isinstance(row, dict):
        raise BadSampleError(f"{what} is not a JSON object")
    return row


class JsonLinesRows:
    """Hold where the lines of a JSON Lines file begin; blank lines are none. See Rows."""

    def __init__(self, file: TextFile) -> None:
        self.file = file
        self._offsets, self._numbers = array("q"), array("q")
        offset = 0
        with file.open() as opened:
            for number, line in enumerate(text_lines(opened), start=1):
                if not line.isspace() and line != UTF8_MARK:
                    self._offsets.append(offset)
                    self._numbers.append(number)
                offset += len(line)

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> Row:
        with self.file.open() as opened:
            opened.seek(self._offsets[index])
            return parse_object(self.file.decode(next(text_lines(opened), b""), what="line"))

    def where(self, index: int) -> str:
        """Say on which line it stands."""
        return f"{self.file.name} line {self._numbers[index]}"

    @property
    def fingerprint(self) -> Fingerprint:
        """Return path, size and time of the file."""
        return self.file.fingerprint


class JsonListRows:
    """Hold where the entries of a JSON list, or objects one behind the other, begin and end. See Rows."""

    def __init__(self, file: TextFile, places: Arrays, *, what: str = "entry") -> None:
        self.file = file
        self._what = what
        self._starts, self._ends = places["starts"], places["ends"]

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Row:
        with self.file.open() as opened:
            opened.seek(int(self._starts[index]))
            data = opened.read(int(self._ends[index] - self._starts[index]))
        return parse_object(self.file.decode(data, what=self._what), what=self._what)

    def where(self, index: int) -> str:
        """Say which entry of the list it is."""
        return f"{self.file.name} {self._what} {index}"

    @property
    def fingerprint(self) -> Fingerprint:
        """Return path, size and time of the file."""
        return self.file.fingerprint


class CsvRows:
    """Hold where the records of a CSV or TSV file with a header begin. See Rows.

    separator: None = the one of comma, semicolon, tab and bar by which the header has more than one column. Where a
    quotation mark is not closed, its line is bad alone and the next one is read.
    Raises DataError without a header, where it names a column twice, and where it is a row itself.
    """

    def __init__(self, path: Path, *, encoding: str | None = None, separator: str | None = None) -> None:
        if separator is not None and len(separator) != 1:
            raise DataError(f"separator: got {separator!r}, need one character, such as ';'")
        self.file = TextFile(path, encoding, settings=() if separator is None else (f"separator {separator!r}",))
        self._offsets, self._numbers = array("q"), array("q")
        self._unclosed: set[int] = set()
        with self.file.open() as opened:
            lines = text_lines(opened)
            head = self._text(next(lines, b""))
            told = _EXCELS_LINE.fullmatch(head)
            if told is not None:
                head = self._text(next(lines, b""))
            self._separator = separator or (told[1] if told is not None else _separator_of(head, path=path))
            self._scan(opened, num_lines_before=0 if told is None else 1)
        _check_header(self._columns, path=path)

    def _scan(self, file: BinaryIO, *, num_lines_before: int) -> None:
        file.seek(0)
        lines = _CountedLines(file)
        for _ in range(num_lines_before):
            next(lines)
        reader = csv.reader(lines, delimiter=self._separator)
        self._columns = next(reader, [])
        while not lines.is_done:
            offset, number = lines.offset, lines.number
            try:
                record = next(reader, None)
                is_bad = (lines.number > number + 1 or lines.is_done) and not self._is_closed(offset)
            except csv.Error:
                record, is_bad = [], True
            if record is None:
                break
            if is_bad:
                self._unclosed.add(len(self._offsets))  # asking for it gives the reason
                lines.go_back(offset, number)
                next(lines)
                reader = csv.reader(lines, delimiter=self._separator)
            if is_bad or any(record):
                self._offsets.append(offset)
                self._numbers.append(number + 1)

    def _is_closed(self, offset: int) -> bool:
        """Say whether every quotation mark of a record is closed where its cell ends."""
        with self.file.open() as opened:
            opened.seek(offset)
            try:
                next(csv.reader(_CountedLines(opened), delimiter=self._separator, strict=True), None)
            except csv.Error:
                return False
        return True

    def _text(self, head: bytes) -> str:
        try:
            return self.file.decode(head, what="header")
        except BadSampleError as error:
            raise DataError(f"{self.file.path}: its {error}") from None

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> Row:
        if index in self._unclosed:
            raise BadSampleError("line has a quotation mark that is not closed")
        with self.file.open() as opened:
            opened.seek(self._offsets[index])
            lines = _CountedLines(opened)
            values = next(csv.reader(lines, delimiter=self._separator))
            opened.seek(self._offsets[index])
            self.file.decode(opened.read(lines.offset), what="line")  # the reader took what is no text as it came
        if len(values) != len(self._columns):
            raise BadSampleError("line has another number of columns than the header")
        return dict(zip(self._columns, values, strict=True))

    def where(self, index: int) -> str:
        """Say on which line it begins."""
        return f"{self.file.name} line {self._numbers[index]}"

    @property
    def fingerprint(self) -> Fingerprint:
        """Return path, size and time of the file."""
        return self.file.fingerprint


def _separator_of(header: str, *, path: Path) -> str:
    """Return the first usual separator that divides the header; a table of one column has the usual one of its kind."""
    usual = _SEPARATORS[path.suffix.lower()]
    divided = (separator for separator in usual if len(next(csv.reader([header], delimiter=separator), [])) > 1)
    return next(divided, usual[0])


def _check_header(columns: list[str], *, path: Path) -> None:
    if not any(columns) or any("\n" in name for name in columns):
        raise DataError(f"{path}: has no header; its first line must name the columns")
    twice = sorted({name for name in columns if name and columns.count(name) > 1})
    if twice:
        raise DataError(f"{path}: its header names the column {twice[0]!r} twice; rename one of them")
    if any(name.lower().endswith(_IMAGE_ENDINGS) for name in columns):
        shown = ", ".join(name[:40] for name in columns[:_SHOWN_COLUMNS])
        raise DataError(
            f"{path}: has no header; its first line is a row ({shown}); put a line such as file_name,text in front"
        )


class _CountedLines:
    """The lines of a file as text, with the place that has been read up to; what is no UTF-8 stays as it came."""

    def __init__(self, file: BinaryIO) -> None:
        self.offset = self.number = 0
        self.is_done = False
        self._file = file
        self._lines = text_lines(file)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines, None)
        if line is None:
            self.is_done = True
            raise StopIteration
        encoding = "utf-8-sig" if self.offset == 0 else "utf-8"
        self.offset += len(line)
        self.number += 1
        return line.decode(encoding, "surrogateescape")

    def go_back(self, offset: int, number: int) -> None:
        """Read on from an earlier line."""
        self._file.seek(offset)
        self.offset, self.number, self.is_done = offset, number, False
        self._lines = text_lines(self._file)


class JoinedRows:
    """Hold the rows of several files one behind the other. See Rows."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self._parts = parts
        self._starts = [0]
        self.notes = [note for part in parts for note in getattr(part, "notes", [])]  # on how rows were chosen
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
