"""Files and folders that are whole or not there: a reader finds the old content or the new, never half of it.

In: content and where it goes. Out: the file or folder, synced to the disk. Everything that visgraft writes goes through
here; a log is the exception that stays readable anyway: it grows by whole lines. What the disk refuses is one
DiskError, with path and bytes, and leaves everything as it was.

    write_whole(path, text)                              # or bytes; write_json(path, values)
    with whole_file(path) as building: image.save(building, format="JPEG")
    with whole_folder(path) as building: model.save_pretrained(building)
    append_record(path, {"step": 1, "loss": 2.3})
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from visgraft.errors import CheckpointError, DiskError
from visgraft.listing import content_of
from visgraft.parsing import parse_json

#: what a disk says when it takes no more, and what helps
REFUSALS = {
    errno.ENOSPC: ("the disk is full", "make room"),
    errno.EDQUOT: ("the disk quota is used up", "make room"),
    errno.EFBIG: ("files as large are not allowed here", "raise the limit (`ulimit -f`), or write to another disk"),
    errno.EROFS: ("the disk is read-only", "make it writable, or write to another one"),
}
NumBytes = int | Callable[[], int] | None
TAIL_BYTES = 2**16  # read at a time to find where the last whole line ends


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file, text as UTF-8; its folder is made if it is not there. Raises DiskError."""
    data = _utf8(content) if isinstance(content, str) else content
    with whole_file(path, num_bytes=len(data)) as building:
        building.write_bytes(data)


def write_json(path: Path, values: Any) -> None:
    """Write values as JSON with one key a line. Raises ValueError for a number that is not finite."""
    write_whole(path, json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _utf8(text: str) -> bytes:
    """Encode a text; what is no Unicode (a file's name in another encoding) is written as JSON writes it, `\\udcff`."""
    return text.encode("utf-8", "backslashreplace")


@contextmanager
def whole_file(path: Path, *, num_bytes: NumBytes = None) -> Iterator[Path]:
    """Give a name beside `path` to write to; the file takes its place only if the block did not raise.

    Args:
        path: the file.
        num_bytes: how large it will be, if that is known, or what finds it out when it is asked for.

    Raises:
        DiskError: the disk took no more; nothing of the file stays.
    """
    if path.exists() and not path.is_file():  # /dev/stdout, a pipe: nothing can take its place
        with refusals_told(path, num_bytes=num_bytes):
            yield path
        return
    path = path.resolve()  # what a link points to is written, not the link
    building = path.with_name(f".{path.name}.{uuid4().hex}.new")  # several processes may write one file of a cache
    with refusals_told(path, building=building, num_bytes=num_bytes):
        path.parent.mkdir(parents=True, exist_ok=True)
        yield building
        put_in_place(building, path)


@contextmanager
def whole_folder(target: Path, *, num_bytes: NumBytes = None) -> Iterator[Path]:
    """Give an empty folder beside `target` that takes target's place only if the block did not raise.

    One process writes a folder at a time: what one that was killed left over goes away.

    Args:
        target: the folder.
        num_bytes: how large it will be, if that is known, or what finds it out when it is asked for.

    Raises:
        DiskError: the disk took no more; nothing of the folder stays.
    """
    building = target.with_name(f".{target.name}.new")
    with refusals_told(target, building=building, num_bytes=num_bytes):
        target.parent.mkdir(parents=True, exist_ok=True)
        restore_folder(target)
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir()
        yield building
        put_in_place(building, target)


def put_in_place(building: Path, target: Path) -> None:
    """Sync a finished file or folder to the disk and give it its name; what was there goes away."""
    if building.is_file():
        _sync(building)
        building.replace(target)
        _sync(target.parent)
        return
    for path in building.rglob("*"):
        if path.is_file() or path.is_dir():
            _sync(path)
    _sync(building)
    outgoing = _outgoing(target)
    if target.exists():
        target.rename(outgoing)
    try:
        building.rename(target)
    except OSError:
        restore_folder(target)
        raise
    _sync(target.parent)
    shutil.rmtree(outgoing, ignore_errors=True)


def current_folder(target: Path) -> Path | None:
    """Find a folder: in its place or, where a kill came between the two renames of `put_in_place`, beside it."""
    return next((path for path in (target, _outgoing(target)) if path.is_dir()), None)


def restore_folder(target: Path) -> None:
    """Put a folder back in its place after such a kill; one that was replaced goes away."""
    outgoing = _outgoing(target)
    if outgoing.is_dir() and not target.exists():
        outgoing.rename(target)
    shutil.rmtree(outgoing, ignore_errors=True)


def remove_folder(target: Path) -> None:
    """Remove a folder, if it is there, so that no part of it is ever taken for the whole."""
    outgoing = target.with_name(f".{target.name.strip('.')}.gone")
    if target.is_dir():
        shutil.rmtree(outgoing, ignore_errors=True)
        with suppress(FileNotFoundError):  # another process removes it too
            target.rename(outgoing)
            shutil.rmtree(outgoing)


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Add one record as a line of JSON; its folder is there. A last line that a kill tore goes away first.

    Numbers that are not finite are written as null, so that any JSON reader takes the file. Raises DiskError; nothing
    of the record stays then.
    """
    line = _utf8(json.dumps(_finite(record), allow_nan=False, ensure_ascii=False) + "\n")
    is_new = not path.exists()
    with refusals_told(path, num_bytes=len(line)), path.open("ab+", buffering=0) as file:
        end = _whole_lines(file)
        try:
            while line:
                line = line[file.write(line) :]
        except BaseException:
            path.unlink() if is_new else file.truncate(end)
            raise


def read_records(path: Path, *, start: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read the records of a log with the byte that each starts at; none where there is no log.

    A torn last line is left out. `start` is a byte at which a record starts, and where reading does; the lines of an
    error are counted from there. Raises CheckpointError for any line but the last that is no record.
    """
    content = content_of(path, start=start) or b""
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):  # what follows is empty or torn
        try:
            record = parse_json(line.decode("utf-8", errors="replace"))
        except ValueError as error:
            what = error.msg if isinstance(error, json.JSONDecodeError) else error
            raise CheckpointError(f"{path}: line {number} is not JSON: {what}; mend or remove the line") from error
        if not isinstance(record, dict):
            raise CheckpointError(f"{path}: line {number} is no JSON object; mend or remove the line")
        yield start, record
        start += len(line) + 1


def sync_records(path: Path) -> int:
    """Bring the lines of a log to the disk, without a torn last one; return how many bytes they are, 0 of no log."""
    if not path.exists():
        return 0
    with refusals_told(path), path.open("rb+", buffering=0) as file:
        end = _whole_lines(file)
        os.fsync(file.fileno())
    return end


def _whole_lines(file: Any) -> int:
    """Cut a torn last line off and return how long the file is."""
    size = end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - TAIL_BYTES)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end < size:
        file.truncate(end)
    return int(end)


@contextmanager
def refusals_told(path: Path, *, building: Path | None = None, num_bytes: NumBytes = None) -> Iterator[None]:
    """Turn what the disk refuses into a DiskError, whichever library met it; what was being built goes away.

    Args:
        path: what is written.
        building: where it is written until it is whole.
        num_bytes: how large it will be, if that is known, or what finds it out when it is asked for.
    """
    try:
        yield
    except Exception as error:
        number, reason = _refusal(error, building)
        if not reason:
            raise
        written = 0
        if building is not None:
            written = _size_of(building)
            _clear(building)  # its room is free again, and counts as such
        told = DiskError(_in_words(path, number, reason, num_bytes=num_bytes, written=written))
        told.errno = number
        raise told from error
    finally:
        if building is not None:
            _clear(building)


def _refusal(error: BaseException | None, building: Path | None) -> tuple[int | None, str]:
    """Find what the disk refused in an error or in what caused it: its number, and in words."""
    while error is not None:
        in_rust = re.search(r"\(os error (\d+)\)", str(error))  # safetensors and tokenizers say it so
        number = int(in_rust[1]) if in_rust else error.errno if isinstance(error, OSError) else None
        if number in REFUSALS:
            return number, REFUSALS[number][0]
        name = getattr(error, "filename", None)
        if building is not None and isinstance(name, str | Path) and Path(name).is_relative_to(building):
            return number, str(getattr(error, "strerror", None) or error)
        error = error.__cause__ or error.__context__
    return None, ""


def _in_words(path: Path, number: int | None, reason: str, *, num_bytes: NumBytes, written: int) -> str:
    if number not in REFUSALS:
        return f"{path}: cannot be written: {reason}"
    known = num_bytes() if callable(num_bytes) else num_bytes
    needed = f"more than {written:,}" if known is None else f"{max(known, written):,}"
    free = _free(path) if number in (errno.ENOSPC, errno.EDQUOT) else ""
    return f"{path}: cannot be written: {reason}; needs {needed} bytes{free}; {REFUSALS[number][1]}, then go on"


def _free(path: Path) -> str:
    """Say how much a disk still takes."""
    folder = next((parent for parent in path.absolute().parents if parent.is_dir()), None)
    if folder is None or not hasattr(os, "statvfs"):
        return ""
    disk = os.statvfs(folder)
    no_file = ", but not for one more file" if disk.f_files and not disk.f_favail else ""
    return f", has room for {disk.f_bavail * disk.f_frsize:,}{no_file}"


def _size_of(building: Path) -> int:
    files = [building] if building.is_file() else building.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def _clear(building: Path) -> None:
    if building.is_dir():
        shutil.rmtree(building, ignore_errors=True)
    else:
        with suppress(OSError):  # it is not there, or what went wrong before is told
            building.unlink()


def _outgoing(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open folders
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if not isinstance(value, (str, int, float, bool, type(None))) and hasattr(value, "item"):
        value = value.item()  # a number of numpy's or torch's
    return None if isinstance(value, float) and not math.isfinite(value) else value
