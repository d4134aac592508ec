"""Find the files of a split where they usually lie.

In:  a file, or a folder that holds a split as train.jsonl, train-00000-of-00002.parquet, data/train-*.parquet, train/*.
Out: the files in their order, and their rows.

    rows = open_split(Path("~/data"), split="validation", reader="parquet", suffixes=(".parquet",))
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from visgraft.data.readers.json_places import entries_of_list, names_of_lists
from visgraft.data.readers.rows import JSON_SUFFIXES, ROW_SUFFIXES, JsonListRows, Rows, join_rows, open_rows
from visgraft.data.readers.splits import (
    SomeRows,
    check_undivided,
    find_name,
    is_usual,
    not_there,
    rows_of_split,
    split_of_row,
    synonyms,
    usual_name,
)
from visgraft.data.readers.tables import ParquetRows
from visgraft.data.readers.text_files import TextFile
from visgraft.disk_cache import Arrays, keep_arrays
from visgraft.errors import BadSampleError, DataError, MissingAssetError

ALL_SUFFIXES = (*ROW_SUFFIXES, ".parquet")
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".7z")
_NUM_FILES_SHOWN = 8
_NUM_ROWS_TRIED = 20


def open_split(
    path: Path | None,
    *,
    split: str,
    reader: str,
    suffixes: Sequence[str] = ALL_SUFFIXES,
    encoding: str | None = None,
    separator: str | None = None,
) -> Rows:
    """Open the rows of a split: a name, a slice of it, or several (splits.py).

    encoding, separator: of text files, see `open_rows`.
    Raises MissingAssetError without files, DataError where they hold no row or cannot be read.
    """
    open_some = partial(open_files, encoding=encoding, separator=separator)

    def open_named(name: str) -> Rows:
        files = find_split(path, split=name, reader=reader, suffixes=suffixes)
        try:
            rows = open_some(files)
        except DataError:
            by_key = _of_split_key(files, name, reader=reader, encoding=encoding)
            if by_key is None:
                raise
            return by_key
        if not len(rows):
            raise DataError(f"{reader}: {files[0]} holds no samples")
        return _of_one_file(rows, name, files[0], reader=reader) if files == [path] else rows

    return rows_of_split(split, reader=reader, open_named=open_named)


def open_files(files: Sequence[Path], *, encoding: str | None = None, separator: str | None = None) -> Rows:
    """Open files of rows, parquet files among them, one behind the other."""
    tables = [file for file in files if file.suffix.lower() == ".parquet"]
    others = [file for file in files if file.suffix.lower() != ".parquet"]
    parts: list[Rows] = [ParquetRows(tables)] if tables else []
    return join_rows([*parts, *([open_rows(others, encoding=encoding, separator=separator)] if others else [])])


def find_split(path: Path | None, *, split: str, reader: str, suffixes: Sequence[str] = ALL_SUFFIXES) -> list[Path]:
    """Return the files of a split: the path itself where it is a file, else what the folder holds of that split.

    split: a name alone. Raises MissingAssetError where there is none.
    """
    if path is None:
        raise MissingAssetError(
            f"{reader}: path: not set; name a file ({', '.join(suffixes)}) or a folder of such files"
        )
    if path.is_file():
        return [path]
    for name in synonyms(split):
        for folder in (path, path / "data"):
            found = (
                _with_suffix(folder, f"{name}.*", suffixes, stem=name)
                or _with_suffix(folder, f"{name}-*", suffixes)
                or _with_suffix(folder / name, "*", suffixes)
            )
            if found:
                return found
    looked = " ".join(f"{split}{ending}{suffixes[0]}" for ending in ("", "-*", "/*"))
    raise MissingAssetError(
        f"{reader}: found no files of split {split!r} in {path}; looked for {looked} there and in data/; "
        f"there is {_what_is_there(path, suffixes)}"
    )


def _with_suffix(folder: Path, pattern: str, suffixes: Sequence[str], *, stem: str | None = None) -> list[Path]:
    """Return the files of these suffixes in order of suffix and name."""
    files = sorted(file for file in folder.glob(pattern) if file.is_file() and stem in (None, file.stem))
    return [file for suffix in suffixes for file in files if file.suffix.lower() == suffix]


def _what_is_there(path: Path, suffixes: Sequence[str]) -> str:
    if not path.is_dir():
        return "no such file"
    files = sorted(file for file in path.rglob("*") if file.is_file())
    readable = [file.name for file in files if file.suffix.lower() in suffixes]
    packed = [file.name for file in files if file.suffix.lower() in _COMPRESSED]
    shown = ", ".join(readable[:_NUM_FILES_SHOWN]) or "no such file"
    return f"{shown}; {packed[0]} is compressed, unpack it first" if packed and not readable else shown


def _of_split_key(files: Sequence[Path], name: str, *, reader: str, encoding: str | None) -> Rows | None:
    """Return the rows of a split in a file that is {"train": [...], "val": [...]}; None where it is not."""
    if len(files) != 1 or files[0].suffix.lower() not in JSON_SUFFIXES:
        return None
    file = TextFile(files[0], encoding)
    keys = names_of_lists(file)
    if not keys or not all(map(is_usual, keys)):
        return None
    key = find_name(name, keys)
    if key is None:
        raise not_there(name, keys, reader=reader, where=file.path)
    return JsonListRows(file, entries_of_list(file, inside=key))


def _of_one_file(rows: Rows, name: str, file: Path, *, reader: str) -> Rows:
    """Return the rows of a split that are in one file: by their column `split` if they have one, else all or none."""
    if not _has_split_column(rows):
        check_undivided(name, file, reader=reader)
        return rows
    columns = keep_arrays(partial(_read_splits, rows), fingerprint=f"splits of rows {rows.fingerprint}")
    told = columns["splits"]
    there = [str(split) for split in np.unique(told) if split]
    wanted = [split for split in there if usual_name(split) == usual_name(name)]
    if not wanted:
        if len(there) == 1 and usual_name(name) == "train":
            return rows
        raise not_there(name, there, reader=reader, where=f"the column split of {file.name}")
    unknown = [""] if usual_name(name) == "train" else []  # a row that cannot be read is bad, and counted once
    indices = np.flatnonzero(np.isin(told, [*wanted, *unknown]))
    if len(indices) == len(rows):
        return rows
    note = f"{len(indices):,} of {len(rows):,} rows are of split {name}, as the column split of {file.name} says"
    return SomeRows(rows, indices, name=f"rows of split {name}", note=note)


def splits_inside(rows: Rows) -> list[str]:
    """Return the splits that a column `split` names in the rows of one file; none where there is no such column."""
    if not _has_split_column(rows):
        return []
    return [str(split) for split in np.unique(_read_splits(rows)["splits"]) if split]


def _has_split_column(rows: Rows) -> bool:
    """Say whether the first rows that can be read all name a split in a column `split`."""
    told = []
    for index in range(min(_NUM_ROWS_TRIED, len(rows))):
        try:
            told.append(split_of_row(rows[index]))
        except BadSampleError:
            continue
    return bool(told) and all(split is not None and is_usual(split) for split in told)


def _read_splits(rows: Rows) -> Arrays:
    """Read the split of every row; empty of one that cannot be read, which is bad in whatever split."""
    if isinstance(rows, ParquetRows):
        return {"splits": np.array([str(value or "") for value in rows.column("split")])}
    told = []
    for index in range(len(rows)):
        try:
            told.append(split_of_row(rows[index]) or "")
        except BadSampleError:
            told.append("")
    return {"splits": np.array(told)}
