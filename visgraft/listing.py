"""What is in a folder while other processes write to it: what they take away meanwhile is not there, and no error.

In: a folder and a pattern. Out: paths, each with what the system said of it. `Path.glob` fails where a folder goes away
while it is looked through, and a `stat` behind it where a file does.

    for found in listing(cache, "*.index"): found.path, found.state.st_mtime_ns
    changed_at(run / "metrics.jsonl")            # 0.0 where there is none
    content_of(run / "summary.json")             # None where there is none
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

GONE = (FileNotFoundError, NotADirectoryError, PermissionError)  # Windows denies what is being removed


class Found(NamedTuple):
    """A file or folder as it was when it was listed; of a link, what it leads to."""

    path: Path
    state: os.stat_result

    @property
    def is_file(self) -> bool:
        """Whether it is a file."""
        return stat.S_ISREG(self.state.st_mode)

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return stat.S_ISDIR(self.state.st_mode)


def listing(folder: Path, pattern: str = "*") -> list[Found]:
    """List what is in a folder, sorted by path; nothing where there is no folder.

    Args:
        folder: that others may write to, or remove, at any moment.
        pattern: of names, as `Path.glob` takes it: `*.json`, `*/recipe.yaml`, `**/*` for any depth.
    """
    return sorted(_look_through(folder, pattern.split("/")), key=lambda found: found.path)


def changed_at(path: Path) -> float:
    """Give the time at which a file last changed, in seconds; 0 of one that is not there."""
    with suppress(*GONE):
        return path.stat().st_mtime
    return 0.0


def content_of(path: Path, *, start: int = 0) -> bytes | None:
    """Read a file, from a byte on; None of one that is not there."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        file.seek(start)
        return file.read()
    return None


def _look_through(folder: Path, names: Sequence[str]) -> Iterator[Found]:
    try:
        with os.scandir(folder) as opened:
            entries = list(opened)
    except GONE:
        return
    is_deep = names[0] == "**"
    name, rest = names[is_deep], names[is_deep + 1 :]
    for entry in entries:
        path = folder / entry.name
        with suppress(*GONE):
            if fnmatchcase(entry.name, name):
                if rest:
                    yield from _look_through(path, rest)
                else:
                    yield Found(path, entry.stat())
            if is_deep and entry.is_dir(follow_symlinks=False):
                yield from _look_through(path, names)
