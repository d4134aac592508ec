"""What files were when a run read them: sizes and times of change, so that a change shows without reading them again.

In: paths. Out: a Fingerprint of the files that a source reads, and one line about all its image files.

    before = stamp([Path("train.jsonl")])
    before.described()                      # {"train.jsonl": "1,234 bytes of 2026-01-02 03:04:05.000000000"}
    describe_images(["0.png", "1.png"])     # "2 files, 5,678 bytes, the newest 1.png of 2026-...; sum 0f3a..."
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from itertools import chain, compress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MOST_IMAGES = 200_000  # of one source whose files are looked at: about a second on a local disk
_NUM_THREADS = 8  # a network disk answers many at once


class Stamp(NamedTuple):
    """A file, its size in bytes and when it last changed, in nanoseconds."""

    path: str
    size: int
    time_ns: int


@dataclass(frozen=True)
class Fingerprint:
    """What differs wherever the files differ; `marks` say it where there is no file to look at."""

    files: tuple[Stamp, ...] = ()
    marks: tuple[str, ...] = ()

    def __add__(self, other: Fingerprint) -> Fingerprint:
        return Fingerprint(self.files + other.files, self.marks + other.marks)

    def described(self) -> dict[str, str]:
        """Describe every file under its path inside the folder that holds all of them, and then the marks."""
        folder = os.path.commonpath([Path(file.path).parent for file in self.files]) if self.files else ""
        named = {
            Path(file.path).relative_to(folder).as_posix(): f"{file.size:,} bytes of {in_words(file.time_ns)}"
            for file in self.files
        }
        return named | ({"version": ", ".join(self.marks)} if self.marks else {})


def stamp(paths: Sequence[Path], *, marks: Sequence[str] = ()) -> Fingerprint:
    """Look at files without reading them. Raises OSError for one that is not there."""
    states = [(path, path.stat()) for path in paths]
    files = tuple(Stamp(str(path.absolute()), state.st_size, state.st_mtime_ns) for path, state in states)
    return Fingerprint(files, tuple(marks))


def in_words(time_ns: int) -> str:
    """Write a time of change with all its digits, in UTC."""
    seconds, rest = divmod(time_ns, 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}.{rest:09d}"


# --- Image files


class ImagePaths:
    """Collect the paths of image files as rows name them; of very many those of every second, fourth, ... row."""

    def __init__(self) -> None:
        self._kept: list[str] = []
        self._rows: list[int] = []
        self._every = 1
        self._next = 0

    def add(self, *paths: str | Path, row: int | None = None) -> None:
        """Add those of a row (None: the next one); what no file can be called is left out, as opening it will say."""
        row = self._next if row is None else row
        self._next = row + 1
        if row % self._every == 0:
            named = [path for path in map(str, paths) if is_file_name(path)]
            self._kept += named
            self._rows += [row] * len(named)
            self._thin()

    def packed(self) -> NDArray[np.uint8]:
        """Return the distinct ones as one array of bytes, which `unpack` takes apart."""
        return _pack(dict.fromkeys(self._kept))

    def part(self) -> dict[str, NDArray[Any]]:
        """Return them as arrays, from which `joined` makes those of several stretches of rows together."""
        rows = np.array(self._rows, np.int64)
        return {"images": _pack(self._kept), "image_rows": rows, "image_every": np.array([self._every])}

    @classmethod
    def joined(cls, parts: Sequence[Mapping[str, NDArray[Any]]]) -> ImagePaths:
        """Put stretches of rows together, in their order: they are those that one would have collected."""
        together = cls()
        together._every = max((int(part["image_every"][0]) for part in parts), default=1)
        for part in parts:
            for row, path in zip(part["image_rows"].tolist(), unpack(part["images"]), strict=True):
                if row % together._every == 0:
                    together._kept.append(path)
                    together._rows.append(row)
        together._thin()
        return together

    def _thin(self) -> None:
        while len(self._kept) > MOST_IMAGES and self._every <= self._rows[-1]:
            self._every *= 2
            keep = [row % self._every == 0 for row in self._rows]
            self._kept, self._rows = list(compress(self._kept, keep)), list(compress(self._rows, keep))


def _pack(paths: Iterable[str]) -> NDArray[np.uint8]:
    return np.frombuffer(b"\0".join(map(os.fsencode, paths)), dtype=np.uint8)


def is_file_name(name: str) -> bool:
    """Say whether a file can have a name: there is no NUL in it, and no half of a surrogate pair."""
    try:
        return "\0" not in name and bool(name.isascii() or os.fsencode(name))
    except UnicodeEncodeError:
        return False


def unpack(packed: NDArray[np.uint8]) -> list[str]:
    """Return the paths that `ImagePaths.packed` put together."""
    return os.fsdecode(packed.tobytes()).split("\0") if len(packed) else []


def describe_images(paths: Iterable[str | Path]) -> str | None:
    """Look at image files without opening them, and say in one line what differs wherever one of them does.

    A folder (of frames) stands for the files in it. None: there are no such files.
    """
    named = list(dict.fromkeys(map(str, paths)))
    named = named[:: -(-len(named) // MOST_IMAGES) or 1]
    if not named:
        return None
    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        shares = threads.map(_look_at, [named[first::_NUM_THREADS] for first in range(_NUM_THREADS)])
        found = sorted(chain.from_iterable(shares))
    there = [file for file in found if file.size >= 0]
    digest = blake2b(repr([tuple(file) for file in found]).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    newest = max(there, key=lambda file: file.time_ns, default=None)
    words = [f"{len(there):,} files, {sum(file.size for file in there):,} bytes"]
    if newest is not None:
        words.append(f"the newest {newest.path} of {in_words(newest.time_ns)}")
    if len(there) < len(found):
        words.append(f"{len(found) - len(there):,} missing")
    return f"{', '.join(words)}; sum {digest}"


def _look_at(paths: Sequence[str]) -> list[Stamp]:
    """Stamp files under the last part of their names, so that a folder may be moved; size -1 of one that is missing."""
    found = []
    for path in paths:
        name = path.rpartition("/")[2]
        try:
            state = os.stat(path)  # noqa: PTH116  # a hundred thousand of them: a Path each would take as long again
            if stat.S_ISDIR(state.st_mode):
                found += [Stamp(f"{name}/{file.path}", *file[1:]) for file in _look_at(_files_in(path))]
            else:
                found.append(Stamp(name, state.st_size, state.st_mtime_ns))
        except (OSError, ValueError):  # a name that no file can have: with a NUL in it
            found.append(Stamp(name, -1, 0))
    return found


def _files_in(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.path for entry in entries if entry.is_file()]
