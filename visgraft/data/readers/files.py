"""Find the files of a split where they usually lie.

In:  a file, or a folder that holds a split as train.jsonl, train-00000-of-00002.parquet, data/train-*.parquet, train/*.
Out: the files in their order, and their rows.

    rows = open_split(Path("~/data"), split="validation", reader="parquet", suffixes=(".parquet",))
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from visgraft.data.readers.rows import ROW_SUFFIXES, Rows, join_rows, open_rows
from visgraft.data.readers.tables import ParquetRows
from visgraft.errors import DataError, MissingAssetError

ALL_SUFFIXES = (*ROW_SUFFIXES, ".parquet")
_ALIASES = {"validation": ("validation", "val", "valid", "dev"), "val": ("val", "validation")}


def open_split(path: Path | None, *, split: str, reader: str, suffixes: Sequence[str] = ALL_SUFFIXES) -> Rows:
    """Open the rows of a split.

    Raises MissingAssetError without files, DataError where they hold no row or cannot be read.
    """
    files = find_split(path, split=split, reader=reader, suffixes=suffixes)
    rows = open_files(files)
    if not len(rows):
        raise DataError(f"{reader}: {files[0]} holds no samples")
    return rows


def open_files(files: Sequence[Path]) -> Rows:
    """Open files of rows, parquet files among them, one behind the other."""
    tables = [file for file in files if file.suffix == ".parquet"]
    others = [file for file in files if file.suffix != ".parquet"]
    parts: list[Rows] = [ParquetRows(tables)] if tables else []
    return join_rows([*parts, *([open_rows(others)] if others else [])])


def find_split(path: Path | None, *, split: str, reader: str, suffixes: Sequence[str] = ALL_SUFFIXES) -> list[Path]:
    """Return the files of a split: the path itself where it is a file, else what the folder holds of that split.

    Raises MissingAssetError where there is none.
    """
    if path is None:
        raise MissingAssetError(
            f"{reader}: path: not set; name a file ({', '.join(suffixes)}) or a folder of such files"
        )
    if path.is_file():
        return [path]
    for name in _ALIASES.get(split, (split,)):
        for folder in (path, path / "data"):
            found = [file for suffix in suffixes for file in sorted(folder.glob(f"{name}{suffix}"))]
            found = found or [file for suffix in suffixes for file in sorted(folder.glob(f"{name}-*{suffix}"))]
            found = found or [file for suffix in suffixes for file in sorted((folder / name).glob(f"*{suffix}"))]
            if found:
                return found
    there = sorted(file.name for file in path.rglob("*") if file.suffix in suffixes)[:8] if path.is_dir() else []
    looked = " ".join(f"{split}{ending}{suffixes[0]}" for ending in ("", "-*", "/*"))
    raise MissingAssetError(
        f"{reader}: found no files of split {split!r} in {path}; looked for {looked} there and in data/; "
        f"there is {', '.join(there) if there else 'no such file'}"
    )
