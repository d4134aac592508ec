"""Folders that prove themselves: one JSON file holds a sum of every other file, and one of its own values.

In: what is written, as it is written. Out: sums (CRC-32, of zlib), and on reading the name of the file that is damaged.

    with path.open("wb") as file:
        summed = Summed(file)
        torch.save(values, summed)
    write_sealed(folder / "state.json", {"step": 3, "files": {path.name: summed.sum}})     # the last file of the folder
    values = read_sealed(folder / "state.json")
    check_files(folder, values["files"])
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from visgraft.atomic import write_json
from visgraft.errors import CheckpointError
from visgraft.parsing import parse_json

PIECE_BYTES = 2**22  # read at a time
Sum = dict[str, int]  # of a file: {"bytes": ..., "crc32": ...}


class Summed:
    """A file that is only written to, and sums what passes; without a file behind it, it only sums."""

    def __init__(self, file: BinaryIO | None = None) -> None:
        self._file = file
        self._bytes = self._crc32 = 0

    def write(self, data: bytes | memoryview) -> int:
        """Pass bytes on."""
        self._bytes += len(data)
        self._crc32 = zlib.crc32(data, self._crc32)
        if self._file is not None:
            self._file.write(data)
        return len(data)

    def flush(self) -> None:
        """Pass on what is held back."""
        if self._file is not None:
            self._file.flush()

    @property
    def sum(self) -> Sum:
        """Number and CRC-32 of the bytes so far."""
        return {"bytes": self._bytes, "crc32": self._crc32}


def write_sealed(path: Path, values: Mapping[str, Any]) -> None:
    """Write values as JSON, with their own sum as the last of them.

    Raises:
        ValueError: a number is not finite.
    """
    write_json(path, {**values, "crc32": _sum_values(values)})


def read_sealed(path: Path) -> dict[str, Any]:
    """Read what `write_sealed` wrote, without the sum.

    Raises:
        CheckpointError: it is missing, or is not what was written.
    """
    try:
        values = parse_json(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: missing") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged: {error}") from error
    if not isinstance(values, dict) or "crc32" not in values:
        raise CheckpointError(f"{path}: holds no sum of itself")
    if values.pop("crc32") != _sum_values(values):
        raise CheckpointError(f"{path}: damaged: its values are not those that were written")
    return values


def check_files(folder: Path, files: Mapping[str, Sum]) -> None:
    """Read files and compare them with their sums.

    Raises:
        CheckpointError: with the first that is missing or damaged, and why.
    """
    for name, wanted in files.items():
        path = folder / name
        try:
            found = sum_file(path)
        except FileNotFoundError as error:
            raise CheckpointError(f"{path}: missing") from error
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
        if found["bytes"] != wanted["bytes"]:
            raise CheckpointError(f"{path}: damaged: {found['bytes']:,} bytes, {wanted['bytes']:,} were written")
        if found != wanted:
            raise CheckpointError(f"{path}: damaged: its bytes are not those that were written")


def _sum_values(values: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(values, sort_keys=True, allow_nan=False).encode())


def sum_file(path: Path) -> Sum:
    """Read a file and give its sum. Raises OSError."""
    summed = Summed()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(PIECE_BYTES):
            summed.write(piece)
    return summed.sum
