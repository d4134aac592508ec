"""A disk that refuses, by hooks where Python opens, writes, syncs and renames files: full, read-only, out of inodes.

In: what is to be refused, and where. Out: the errors that the kernel would give, until the disk is repaired.

    disk = Disk(monkeypatch)
    disk.refuse("write", errno.ENOSPC, match="optimizer.pt", after_bytes=100)
    ...
    disk.repair()
"""

import builtins
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CALLS = ("open", "write", "fsync", "rename", "mkdir")


class Disk:
    """Hooks on everything that changes a disk; names that do not hold `match` go through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.call: str | None = None
        self.number, self.match, self.left = 0, "", 0
        self.refused: list[str] = []
        for module in (io, builtins):
            monkeypatch.setattr(module, "open", self._opening(module.open))
        for call in ("rename", "replace", "mkdir"):
            monkeypatch.setattr(os, call, self._naming(getattr(os, call), "rename" if call == "replace" else call))
        monkeypatch.setattr(os, "fsync", self._syncing(os.fsync))

    def refuse(self, call: str, number: int, *, match: str = "", after_bytes: int = 0) -> None:
        """Refuse one kind of call from now on: `open` (of a file to write), `write`, `fsync`, `rename`, `mkdir`."""
        assert call in CALLS
        self.call, self.number, self.match, self.left = call, number, match, after_bytes

    def repair(self) -> None:
        """Let everything through again."""
        self.call = None

    def error(self, *names: object) -> OSError:
        self.refused.append(str(names[0]) if names else "")
        return OSError(self.number, os.strerror(self.number), *map(str, names[:1]))

    def hits(self, call: str, name: object) -> bool:
        return call == self.call and self.match in str(name)

    def _opening(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def open_(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if not set(mode) & set("wax+"):
                return real(file, mode, *args, **kwargs)
            if self.hits("open", file):
                raise self.error(file)
            return _File(real(file, mode, *args, **kwargs), str(file), self)

        return open_

    def _naming(self, real: Callable[..., Any], call: str) -> Callable[..., Any]:
        def named(path: Any, *args: Any, **kwargs: Any) -> Any:
            if self.hits(call, path) and not (call == "mkdir" and os.path.isdir(path)):  # noqa: PTH112
                raise self.error(path)
            return real(path, *args, **kwargs)

        return named

    def _syncing(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def fsync(handle: int) -> None:
            if self.hits("fsync", Path(f"/proc/self/fd/{handle}").readlink()):
                raise self.error()  # of a handle the kernel knows no name
            real(handle)

        return fsync


class _File:
    """A file that takes only so many bytes more."""

    def __init__(self, file: Any, name: str, disk: Disk) -> None:
        self.__dict__.update(file=file, file_name=name, disk=disk)

    def write(self, data: Any) -> int:
        if self.disk.hits("write", self.file_name):
            if len(data) > self.disk.left:
                self.file.write(data[: self.disk.left])
                raise self.disk.error()
            self.disk.left -= len(data)
        return int(self.file.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
