"""Count what a process does to the files in some folders, and end it at one of these operations, as if power were cut.

In: the folders, and perhaps the number of an operation. Out: the names of the operations, in order; or SIGKILL in front
of that one. Of one that writes, half is written first where it is to be `torn`.

Meant for a process of its own: what it puts in the place of `open`, `os.replace` and the like stays there.

    operations = FileOperations([folder], kill_at=17).install()
    train(recipe, folder=folder)
"""

import builtins
import io
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

CHANGING = (
    "mkdir", "rename", "replace", "link", "symlink", "unlink", "remove", "rmdir", "truncate", "ftruncate", "fsync",
    "fdatasync",
)  # fmt: skip
WRITING_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class FileOperations:
    """The operations of this process on files in some folders: counted, listed, and perhaps ended at one."""

    def __init__(self, folders: Sequence[Path], *, kill_at: int | None = None, torn: bool = False) -> None:
        self.folders = tuple(os.fspath(folder.absolute()) for folder in folders)
        self.kill_at = kill_at
        self.torn = torn
        self.seen: list[str] = []

    def install(self) -> "FileOperations":
        """Put watched functions in the place of those that change files."""
        for name in CHANGING:
            setattr(os, name, self._watched(getattr(os, name), name=name))
        os.open = self._watched(os.open, name="open", is_watched=_opens_to_write)
        os.write = self._watched(os.write, name="write", half=_half_to_descriptor(os.write))
        builtins.open = io.open = self._watched_open(builtins.open)  # type: ignore[assignment]
        safetensors.torch.serialize_file = self._watched_save(  # type: ignore[assignment]
            safetensors.torch.serialize_file, name="serialize_file"
        )
        torch.save = self._watched_save(torch.save, name="torch.save")
        return self

    def meet(self, name: str, where: Any, half: Callable[[], Any] | None = None, **settings: Any) -> None:
        """Note an operation; end this process in front of it, or in the middle of it, if it is the one."""
        path = _path_of(where, **settings)
        if path is None or not path.startswith(self.folders):
            return
        if len(self.seen) == self.kill_at:
            if self.torn and half is not None:
                half()
            os.kill(os.getpid(), signal.SIGKILL)
        self.seen.append(f"{name}{'' if half is None else ' *'} {path}")

    def _watched(
        self,
        real: Callable[..., Any],
        *,
        name: str,
        is_watched: Callable[..., bool] = lambda *_, **__: True,
        half: Callable[..., Any] | None = None,
    ) -> Any:
        def watched(*args: Any, **settings: Any) -> Any:
            if is_watched(*args, **settings):
                half_of_it = None if half is None else (lambda: half(*args))
                self.meet(name, args[0], half_of_it, **settings)
            return real(*args, **settings)

        return watched

    def _watched_open(self, real: Callable[..., Any]) -> Any:
        def watched(file: Any, mode: str = "r", *args: Any, **settings: Any) -> Any:
            if not set(mode) & set("wax+"):
                return real(file, mode, *args, **settings)
            self.meet(f"open({mode})", file)
            return WatchedFile(real(file, mode, *args, **settings), file, self)

        return watched

    def _watched_save(self, real: Callable[..., Any], *, name: str) -> Any:
        def watched(content: Any, file: Any, *args: Any, **settings: Any) -> Any:
            def half() -> None:
                real(content, file, *args, **settings)
                size = Path(file).stat().st_size
                with FileOperations._real_open(file, "r+b") as opened:
                    opened.truncate(size // 2)

            if isinstance(file, str | os.PathLike):
                self.meet(name, file, half)
            return real(content, file, *args, **settings)

        return watched

    _real_open = staticmethod(builtins.open)


class WatchedFile:
    """An open file whose writes are operations."""

    def __init__(self, file: Any, where: Any, operations: FileOperations) -> None:
        self._file, self._where, self._operations = file, where, operations

    def write(self, content: Any) -> Any:
        """Write, if the process still lives."""

        def half() -> None:
            self._file.write(content[: len(content) // 2])
            self._file.flush()

        self._operations.meet("write", self._where, half)
        return self._file.write(content)

    def truncate(self, *size: int) -> Any:
        """Cut off, if the process still lives."""
        self._operations.meet("truncate", self._where)
        return self._file.truncate(*size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "WatchedFile":
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def __iter__(self) -> Any:
        return iter(self._file)


def _opens_to_write(_: Any, flags: int, *__: Any, **___: Any) -> bool:
    return bool(flags & WRITING_FLAGS)


def _half_to_descriptor(real: Callable[..., Any]) -> Callable[..., Any]:
    return lambda descriptor, content: real(descriptor, bytes(content)[: len(content) // 2])


def _path_of(where: Any, **settings: Any) -> str | None:
    """Give the absolute path of what an operation is given: a path, one under an open folder, an open file."""
    if isinstance(where, int):
        return _open_at(where)
    if not isinstance(where, str | bytes | os.PathLike):
        return None
    folder = settings.get("dir_fd", settings.get("src_dir_fd"))
    inside = str(Path.cwd()) if folder is None else _open_at(folder)
    return os.path.normpath(os.path.join(inside, os.fsdecode(where)))  # noqa: PTH118  # a path may hold ..


def _open_at(descriptor: int) -> str:
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())
