"""Read a folder of images with a metadata file that says, line by line, what belongs to which image.

In:  DIR/metadata.jsonl (or .csv, .tsv, .parquet), or DIR/{split}/metadata.jsonl; file names are relative to it. One
     object a line, or the same as columns:
     {"file_name": "a.jpg", "text": "a cat on a sofa"}                           a caption
     {"file_name": "a.jpg", "question": "What is it?", "answer": "A cat."}       or prompt and answer
     {"file_names": ["1.jpg", "2.jpg"], "dialogs": [[{"prompt": "...", "answer": "..."}, {...}], ...]}
     answers may bring "references": ["a cat", ...], other accepted answers, for scores.
Out: one sample per image (or list of images), with the dialogs of all its lines.

    {source: folder, path: ~/photos}                                       in a recipe
"""

from __future__ import annotations

import os
from array import array
from pathlib import Path

import numpy as np

from visgraft.data.fingerprint import Fingerprint, ImagePaths, unpack
from visgraft.data.readers.files import open_files
from visgraft.data.readers.row_formats import content_of_row
from visgraft.data.readers.rows import Row, Rows
from visgraft.data.sample import Sample, Source
from visgraft.errors import BadSampleError, DataError, MissingAssetError

METADATA = "metadata.jsonl"
_METADATA_FILES = (METADATA, "metadata.csv", "metadata.tsv", "metadata.parquet")


def read(path: Path | None, *, split: str) -> Source:
    """Return the folder's samples in order of their first line; a bad line is a bad sample of its own.

    Only places in the file are kept in memory. Raises MissingAssetError without the file, DataError without a line.
    """
    if path is None:
        raise MissingAssetError(f"folder: path: not set; name the folder that holds {METADATA}")
    metadata = _metadata_file(path, split=split)
    source = FolderWithMetadata(open_files([metadata]), folder=metadata.parent)
    if not len(source):
        raise DataError(f"folder: {metadata} holds no samples")
    return source


class FolderWithMetadata:
    """Hold which rows are about which image; see Source."""

    def __init__(self, rows: Rows, *, folder: Path) -> None:
        self._rows = rows
        self._folder = folder
        self._groups: list[array[int]] = []  # per sample: its rows
        num_dialogs: list[int] = []
        images = ImagePaths()
        by_images: dict[tuple[str, ...], int] = {}
        for index in range(len(rows)):
            number = len(self._groups)
            count = 0
            try:
                row = rows[index]
                count = len(content_of_row(row).dialogs)
                names = _file_names(row)
                if names and names not in by_images:
                    images.add(*names)
                number = by_images.setdefault(names, number) if names else number
            except BadSampleError:
                count = 0  # it stands alone, and asking for it gives the reason
            if number == len(self._groups):
                self._groups.append(array("q"))
                num_dialogs.append(0)
            self._groups[number].append(index)
            num_dialogs[number] += count
        self.num_dialogs = np.array(num_dialogs, dtype=np.int64)
        self._images = images.packed()

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, index: int) -> Sample:
        group = self._groups[index]
        rows = [self._rows[row] for row in group]
        names = _file_names(rows[0])
        dialogs = [dialog for row in rows for dialog in content_of_row(row).dialogs]
        images = [self._folder / name for name in names]
        return Sample(images=images, dialogs=dialogs, id="+".join(names) or self._rows.where(group[0]).split(" ", 1)[1])

    def where(self, index: int) -> str:
        """Say on which lines it stands."""
        first, *others = (self._rows.where(row) for row in self._groups[index])
        return ", ".join([first, *(other.rsplit(" ", 1)[1] for other in others)])

    @property
    def fingerprint(self) -> Fingerprint:
        """Return path, size and time of the metadata file."""
        return self._rows.fingerprint

    @property
    def image_files(self) -> list[str]:
        """The paths of the images, of very many a part."""
        return [os.path.join(self._folder, name) for name in unpack(self._images)]  # noqa: PTH118  # there are many


def _metadata_file(path: Path, *, split: str) -> Path:
    for folder in (path / split, path):
        found = next((folder / name for name in _METADATA_FILES if (folder / name).is_file()), None)
        if found is not None and (folder != path or split == "train"):
            return found
    if found is None:
        raise MissingAssetError(
            f"folder: there is no {METADATA} in {path} or {path / split}; write one with a line like "
            '{"file_name": "a.jpg", "text": "a cat on a sofa"} per text'
        )
    raise DataError(
        f"folder: split: got {split!r}, but {path} has no folder {split}/ with a {METADATA}; "
        f"its only {found.name} is read as split train, so make a folder for each split or leave split out"
    )


def _file_names(row: Row) -> tuple[str, ...]:
    names = row["file_names"] if row.get("file_names") is not None else [row.get("file_name")]
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise BadSampleError("line lacks file_name or file_names")
    return tuple(names)
