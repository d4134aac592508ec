"""Files and folders that are whole or not there: a reader finds the old content or the new, never half of it.

In: content and where it goes. Out: the file or folder, synced to the disk. Everything that visgraft writes goes through
here; a log is the exception that stays readable anyway: it grows by whole lines.

    write_whole(path, text)                              # or bytes; write_json(path, values)
    with whole_file(path) as building: image.save(building, format="JPEG")
    with whole_folder(path) as building: model.save_pretrained(building)
    append_record(path, {"step": 1, "loss": 2.3})
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file, text as UTF-8; its folder is made if it is not there."""
    with whole_file(path) as building:
        building.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, values: Any) -> None:
    """Write values as JSON with one key a line. Raises ValueError for a number that is not finite."""
    write_whole(path, json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a name beside `path` to write to; the file takes its place only if the block did not raise."""
    if path.exists() and not path.is_file():  # /dev/stdout, a pipe: nothing can take its place
        yield path
        return
    path = path.resolve()  # what a link points to is written, not the link
    path.parent.mkdir(parents=True, exist_ok=True)
    building = path.with_name(f".{path.name}.{uuid4().hex}.new")  # several processes may write one file of a cache
    try:
        yield building
        put_in_place(building, path)
    finally:
        building.unlink(missing_ok=True)


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Give an empty folder beside `target` that takes target's place only if the block did not raise.

    One process writes a folder at a time: what one that was killed left over goes away.
    """
    building, outgoing = target.with_name(f".{target.name}.new"), _outgoing(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    if outgoing.exists() and not target.exists():  # stopped between the two renames of put_in_place
        outgoing.rename(target)
    shutil.rmtree(outgoing, ignore_errors=True)
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    try:
        yield building
        put_in_place(building, target)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def put_in_place(building: Path, target: Path) -> None:
    """Sync a finished file or folder to the disk and give it its name; what was there goes away."""
    for file in [building] if building.is_file() else building.rglob("*"):
        if file.is_file():
            _sync(file)
    if building.is_file():
        building.replace(target)
    else:
        if target.exists():
            target.rename(_outgoing(target))
        building.rename(target)
    _sync(target.parent)
    shutil.rmtree(_outgoing(target), ignore_errors=True)


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Add one record as a line of JSON; its folder is there.

    Numbers that are not finite are written as null, so that any JSON reader takes the file.
    """
    line = json.dumps(_finite(record), allow_nan=False, ensure_ascii=False)
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


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
