"""Keep what a frozen encoder makes of images on disk, so that no image is decoded or encoded twice.

In:  images (not opened) and, once, their features. Out: features, from memory-mapped files, each checked as it is read.

    cache = FeatureCache(folder, shape=(197, 768), dtype=torch.bfloat16)
    with cache.writer() as add: add(image_version(ref), features)          # [P, D_vision]
    features = cache.find(sample.images)                                   # [F, P, D_vision], or None

A folder holds pairs of files, each pair written by one process and never changed afterwards, so any number of processes
may read and write at once: `NAME.features`, records of one size one behind the other, and `NAME.index`, for each record
the version of its image and a checksum. Of two records of one image that of the later file counts.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor

from visgraft.atomic import put_in_place, refusals_told, write_whole
from visgraft.config import TileSettings
from visgraft.data.images.opening import (
    KEY_BYTES,
    image_file_state,
    image_key,
    is_data_url,
    is_web_address,
    looks_like_base64,
    path_of_text,
    short_digest,
)
from visgraft.data.images.tiles import all_grids, rows_end
from visgraft.data.sample import ImageRef, StoredImage
from visgraft.errors import DiskError
from visgraft.listing import content_of, listing

FILE_BYTES = 2**30  # a pair is closed at this size, and is there for others from then on
_LEFT_OVER_S = 86_400.0  # files that a killed process never closed are removed after a day
_INDEX = np.dtype([("version", np.void, KEY_BYTES), ("checksum", "<u4"), ("own_checksum", "<u4")])


def image_version(ref: ImageRef) -> bytes | None:
    """Return 16 bytes that change when an image does; None: nothing tells its version without reading it.

    A file is known by its path, size and time of change, an image in memory by its content.

    Raises:
        BadSampleError: it cannot even be looked at.
    """
    if isinstance(ref, Mapping) and ref.get("bytes") is None and ref.get("base64") is None:
        return image_version(ref["path"])
    where = getattr(ref, "path", None) if isinstance(ref, StoredImage) else ref
    if isinstance(where, (str, Path)) and not _holds_its_content(where):
        path = path_of_text(where) if isinstance(where, str) else where
        state = image_file_state(path)
        name = ref if isinstance(ref, StoredImage) else path.absolute()
        return short_digest(f"{name!r} {state.st_size} {state.st_mtime_ns}".encode("utf-8", "surrogatepass"))
    if isinstance(ref, StoredImage):
        return short_digest(repr(ref).encode()) if getattr(ref, "url", None) else None
    return image_key(ref, by_content=False)


def picture_version(version: bytes, grid: tuple[int, int], number: int) -> bytes:
    """Name a picture that an image was cut into; an image that is one picture has the image's own name."""
    return version if grid == (1, 1) else short_digest(version + f"{grid[0]} x {grid[1]}: {number}".encode())


class FeatureCache:
    """Features of images, by version; all of one shape and format."""

    def __init__(
        self, folder: Path, *, shape: tuple[int, int], dtype: torch.dtype, tiles: TileSettings | None = None
    ) -> None:
        """Open a cache; the folder need not be there. `shape`: [P, D_vision] of one picture; `tiles`: how images are
        cut into pictures, None = they are not.
        """
        self.folder = folder
        self.tiles = tiles
        self.shape = shape
        self.dtype = dtype
        self.record_bytes = shape[0] * shape[1] * dtype.itemsize
        self._records: dict[bytes, tuple[str, int, int]] = {}  # version -> file, number of the record, checksum
        self._files: dict[str, np.memmap[tuple[int, int], np.dtype[np.uint8]]] = {}
        self.refresh()

    def __len__(self) -> int:
        return len(self._records)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_files": {}}  # worker processes map the files themselves

    @property
    def size_bytes(self) -> int:
        """The size of everything in the folder."""
        return sum(found.state.st_size for found in listing(self.folder, "*.features"))

    def refresh(self) -> None:
        """Take in what was written since, by any process."""
        indices = listing(self.folder, "*.index")  # first, as each is written behind its features
        features = {found.path.name: found.state.st_size for found in listing(self.folder, "*.features")}
        for path, _ in sorted(indices, key=lambda found: (found.state.st_mtime_ns, found.path.name)):
            name = path.with_suffix(".features").name
            data = content_of(path) or b""
            entries = np.frombuffer(data[: len(data) // _INDEX.itemsize * _INDEX.itemsize], _INDEX)
            num_whole = features.get(name, 0) // self.record_bytes
            for number, (version, checksum, own) in enumerate(entries[:num_whole].tolist()):
                if zlib.crc32(version, checksum) == own:
                    self._records[version] = (name, number, checksum)

    def has(self, version: bytes) -> bool:
        """Say whether there is a record of an image, whole or damaged."""
        return version in self._records

    def get(self, version: bytes | None) -> Tensor | None:
        """Return a copy of the features of an image [P, D_vision]; None: they are not there, or damaged."""
        found = None if version is None else self._records.get(version)
        if found is None:
            return None
        name, number, checksum = found
        try:
            record = np.array(self._file(name)[number])
        except FileNotFoundError:  # the cache was cleared meanwhile
            return None
        if zlib.crc32(record.data) != checksum:
            return None
        return torch.from_numpy(record).view(self.dtype).view(self.shape)

    def find(self, images: Sequence[ImageRef]) -> dict[str, Tensor] | None:
        """Return what stands for the images of one sample in a batch; None: not all are there.

        Returns:
            `features` [pictures, P, D_vision], and where tiles have row separators `ends_row` [pictures] bool.

        Raises:
            BadSampleError: an image file is missing.
        """
        found: list[Tensor] = []
        ends: list[bool] = []
        for image in images:
            pictures = self.find_pictures(image_version(image))
            if pictures is None:
                return None
            found += pictures[0]
            ends += pictures[1]
        if not found:
            return None
        made = {"features": torch.stack(found)}
        if self.tiles is not None and self.tiles.separator == "learned":
            made["ends_row"] = torch.tensor(ends)
        return made

    def find_pictures(self, version: bytes | None) -> tuple[list[Tensor], list[bool]] | None:
        """Return the features of the pictures that an image was cut into, and which of them end a row; or None."""
        if version is None:
            return None
        grids = [(1, 1)] if self.tiles is None else all_grids(self.tiles.max)
        for grid in grids:
            if self.has(picture_version(version, grid, 0)):
                ends = rows_end(grid, self.tiles)
                found = [self.get(picture_version(version, grid, number)) for number in range(len(ends))]
                whole = [features for features in found if features is not None]
                return (whole, ends) if len(whole) == len(found) else None
        return None

    def has_pictures(self, version: bytes) -> bool:
        """Say whether there is a record of an image's first picture, whole or damaged."""
        grids = [(1, 1)] if self.tiles is None else all_grids(self.tiles.max)
        return any(self.has(picture_version(version, grid, 0)) for grid in grids)

    @contextmanager
    def writer(self) -> Iterator[Callable[[bytes, Tensor], None]]:
        """Write new records; what was written is there for all processes when a file is full, and at the end."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_left_over()
        pair: _Pair | None = None

        def add(version: bytes, features: Tensor) -> None:
            nonlocal pair
            assert tuple(features.shape) == self.shape and features.dtype == self.dtype, "features of another encoder"
            if pair is not None and pair.size_bytes >= FILE_BYTES:
                pair.close()
                pair = None
            pair = pair or _Pair(self.folder)
            pair.write(version, features.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())

        try:
            yield add
        except DiskError:
            if pair is not None:
                pair.abandon()
                pair = None
            raise
        finally:  # what is whole is kept, also when Ctrl-C ends the work
            if pair is not None:
                pair.close()
        self.refresh()

    def _file(self, name: str) -> np.memmap[tuple[int, int], np.dtype[np.uint8]]:
        if name not in self._files:
            path = self.folder / name
            shape = (path.stat().st_size // self.record_bytes, self.record_bytes)
            self._files[name] = np.memmap(path, np.uint8, mode="r", shape=shape)
        return self._files[name]

    def _remove_left_over(self) -> None:
        for path, state in (*listing(self.folder, "*.part"), *listing(self.folder, ".*.new")):
            if time.time() - state.st_mtime > _LEFT_OVER_S:
                path.unlink(missing_ok=True)


class _Pair:
    """Two files being written; they get their names when they are whole, the index last."""

    def __init__(self, folder: Path) -> None:
        self.stem = folder / uuid4().hex
        self.path = self.stem.with_suffix(".features")
        self.part = self.stem.with_suffix(".features.part")
        with refusals_told(self.path):
            self.file: BinaryIO = self.part.open("wb")
        self.entries: list[tuple[bytes, int, int]] = []
        self.size_bytes = 0

    def write(self, version: bytes, record: bytes) -> None:
        with refusals_told(self.path, num_bytes=self.size_bytes + len(record)):
            self.file.write(record)
        checksum = zlib.crc32(record)
        self.entries.append((version, checksum, zlib.crc32(version, checksum)))
        self.size_bytes += len(record)

    def close(self) -> None:
        with refusals_told(self.path, building=self.part, num_bytes=self.size_bytes):
            self.file.close()
            put_in_place(self.part, self.path)
        write_whole(self.stem.with_suffix(".index"), np.array(self.entries, _INDEX).tobytes())

    def abandon(self) -> None:
        """Remove what there is of the first file: the disk took no more."""
        with suppress(OSError):
            self.file.close()
        self.part.unlink(missing_ok=True)


def _holds_its_content(text: str | Path) -> bool:
    """Say whether a text is not a path but the image itself, or its address."""
    return isinstance(text, str) and (is_data_url(text) or is_web_address(text) or looks_like_base64(text))
