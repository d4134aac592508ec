"""Read WebDataset shards by sample number: every tar is indexed once, then any sample is one seek away.

In:  tar files in which the members of a sample follow one another under one name: 000.jpg, 000.json, 000.txt.
Out: Rows (see rows.py): {"__key__": "000", "jpg": FilePart, "json": {...}, "txt": "..."}; images stay in the tar.

    rows = TarRows(expand_paths("shards/train-{000..007}.tar"))
"""

from __future__ import annotations

import re
import tarfile
from array import array
from collections.abc import Iterator, Sequence
from functools import partial
from glob import has_magic
from pathlib import Path
from typing import Any

import numpy as np

from visgraft.data.kept import Arrays, keep_arrays
from visgraft.data.refs import FilePart
from visgraft.data.rows import Row, parse_object, stamp
from visgraft.errors import BadSampleError, DataError, MissingAssetError

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")
_TEXT_SUFFIXES = ("txt", "text", "caption", "cls")


def expand_paths(pattern: str) -> list[Path]:
    """Return the files that a path means: a.tar, shards/*.tar, a-{000..127}.tar, a-{x,y}.tar, or a folder of tars.

    Raises MissingAssetError where there is none, or where one of a range is missing.
    """
    paths: list[Path] = []
    for name in _braces(str(Path(pattern).expanduser())):
        if Path(name).is_dir():
            paths += sorted(Path(name).glob("*.tar"))
        elif has_magic(name):
            paths += sorted(_glob(Path(name)))
        else:
            paths.append(Path(name))
    missing = [path for path in paths if not path.is_file()]
    if missing or not paths:
        named = f"{missing[0]} is missing" if missing else f"nothing matches {pattern}"
        raise MissingAssetError(
            f"webdataset: {named}; path is a tar, a folder of tars, a glob or name-{{000..127}}.tar"
        )
    return paths


def _glob(pattern: Path) -> Iterator[Path]:
    root = Path(pattern.anchor)
    return root.glob(str(pattern.relative_to(root)))


def _braces(text: str) -> Iterator[str]:
    found = _RANGE.search(text)
    if found is None:
        yield text
        return
    first, last, choices = found.groups()
    if choices is not None:
        values = choices.split(",")
    else:
        values = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    for value in values:
        yield from _braces(text[: found.start()] + value + text[found.end() :])


class TarRows:
    """Hold where the members of every sample of some tars lie. See Rows."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = list(paths)
        index = keep_arrays(partial(_index, self._paths), fingerprint=f"tars {stamp(self._paths)}")
        self._suffixes: list[str] = index["suffixes"].tolist()
        self._keys, self._shards = index["keys"], index["shards"]
        self._starts, self._members = index["starts"], index["members"]

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> Row:
        path = self._paths[self._shards[index]]
        row: dict[str, Any] = {"__key__": str(self._keys[index])}
        for number, offset, size in self._members[self._starts[index] : self._starts[index + 1]].tolist():
            suffix, part = self._suffixes[number], FilePart(path, offset, size)
            last = suffix.rpartition(".")[2]
            if last == "json":
                row[suffix] = parse_object(part.read(), what="json member")
            elif last in _TEXT_SUFFIXES:
                row[suffix] = _text(part.read())
            else:
                row[suffix] = part
        return row

    def where(self, index: int) -> str:
        """Say which sample of which tar it is."""
        return f"{self._paths[self._shards[index]].name} sample {self._keys[index]}"

    @property
    def fingerprint(self) -> object:
        """Return path, size and time of the tars."""
        return stamp(self._paths)


def _index(paths: Sequence[Path]) -> Arrays:
    """Go through the headers of all tars: which members each sample has, and where they lie."""
    suffixes: dict[str, int] = {}
    members = array("q")  # suffix, offset, size; three numbers a member
    starts, shards = array("q"), array("q")  # of each sample, its first member and its tar
    keys: list[str] = []
    for number, path in enumerate(paths):
        current: str | None = None
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    tar.members = []  # type: ignore[attr-defined]  # else it keeps an object of every member it has met
                    folder, _, name = member.name.rpartition("/")
                    stem, dot, suffix = name.partition(".")
                    if not member.isfile() or not dot or not stem:
                        continue
                    key = f"{folder}/{stem}" if folder else stem
                    if key != current:
                        current = key
                        keys.append(key)
                        shards.append(number)
                        starts.append(len(members) // 3)
                    place = suffixes.setdefault(suffix.lower(), len(suffixes))
                    members.extend((place, member.offset_data, member.size))
        except (tarfile.TarError, OSError) as error:
            raise DataError(f"webdataset: {path} is no plain tar ({error}); unpack a compressed one first") from error
    starts.append(len(members) // 3)
    return {
        "suffixes": np.array(list(suffixes), dtype=np.str_),
        "members": np.array(members, dtype=np.int64).reshape(-1, 3),
        "starts": np.array(starts, dtype=np.int64),
        "shards": np.array(shards, dtype=np.int64),
        "keys": np.array(keys, dtype=np.str_),
    }


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadSampleError("text member is not UTF-8") from None
