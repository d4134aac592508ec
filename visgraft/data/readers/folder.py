"""Read a folder of images with a metadata file that says, line by line, what belongs to which image.

In:  DIR/metadata.jsonl (or .csv, .tsv, .parquet), or DIR/{split}/metadata.jsonl; file names are relative to it. One
     object a line, or the same as columns:
     {"file_name": "a.jpg", "text": "a cat on a sofa"}                           a caption
     {"file_name": "a.jpg", "question": "What is it?", "answer": "A cat."}       or prompt and answer
     {"file_names": ["1.jpg", "2.jpg"], "dialogs": [[{"prompt": "...", "answer": "..."}, {...}], ...]}
     answers may bring "references": ["a cat", ...], other accepted answers, for scores.
     Or images with a text beside each (a.jpg, a.txt), as kohya's scripts and img2dataset leave them: its caption.
Out: one sample per image (or list of images), with the dialogs of all its lines.

Rows of a file above train/, val/ and test/ belong to the folder that they lie in.

    {source: folder, path: ~/photos}                                       in a recipe
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from visgraft.data.fingerprint import Fingerprint, ImagePaths, describe_images, unpack
from visgraft.data.images.opening import image_refs
from visgraft.data.readers.files import open_files
from visgraft.data.readers.row_formats import content_of_row, images_of_row
from visgraft.data.readers.rows import Row, Rows
from visgraft.data.readers.splits import (
    SomeRows,
    check_undivided,
    is_usual,
    not_there,
    notes_of,
    rows_of_split,
    synonyms,
    usual_name,
)
from visgraft.data.readers.text_files import check_encoding, decode_text
from visgraft.data.sample import Sample, Source, Turn
from visgraft.errors import BadSampleError, DataError, MissingAssetError

METADATA = "metadata.jsonl"
_METADATA_FILES = (METADATA, "metadata.csv", "metadata.tsv", "metadata.parquet")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
TEXT_SUFFIXES = (".txt", ".caption")


def read(
    path: Path | None,
    *,
    split: str,
    columns: dict[str, str] | None = None,
    encoding: str | None = None,
    separator: str | None = None,
) -> Source:
    """Return the folder's samples in order of their first line; a bad line is a bad sample of its own.

    Only places in the file are kept in memory. columns: {key of a format: column of the file}. encoding, separator: of
    a metadata file or of texts that are not UTF-8 and not what the header shows.
    Raises MissingAssetError without the file, DataError without a line.
    """
    if path is None:
        raise MissingAssetError(f"folder: path: not set; name the folder that holds {METADATA}")
    folders: set[Path] = set()

    def open_named(name: str) -> Rows:
        metadata = _metadata_file(path, split=name)
        if metadata is None:
            folders.add(path)
            return _texts_beside(path, name, encoding=encoding)
        folders.add(metadata.parent)
        rows = open_files([metadata], encoding=encoding, separator=separator)
        if not len(rows):
            raise DataError(f"folder: {metadata} holds no samples")
        return rows if metadata.parent != path else _of_split_folder(rows, name, metadata, columns=columns or {})

    rows = rows_of_split(split, reader="folder", open_named=open_named)
    if len(folders) > 1:
        raise DataError(
            f"folder: split: got {split!r}, whose parts lie in folders of their own; make a source of each of them"
        )
    source = FolderWithMetadata(rows, folder=folders.pop(), columns=columns)
    source.notes = notes_of(rows)
    return source


class FolderWithMetadata:
    """Hold which rows are about which image; see Source."""

    def __init__(self, rows: Rows, *, folder: Path, columns: dict[str, str] | None = None) -> None:
        self.rows = rows
        self._folder = folder
        self._columns = columns
        self.notes: list[str] = []  # what the reader has to say
        self._groups: list[array[int]] = []  # per sample: its rows
        num_dialogs: list[int] = []
        images = ImagePaths()
        by_images: dict[tuple[str, ...], int] = {}
        for index in range(len(rows)):
            number = len(self._groups)
            count = 0
            try:
                names, dialogs = self._read(index)
                count = len(dialogs)
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
        read = [self._read(row) for row in group]
        names = read[0][0]
        dialogs = [dialog for _, about in read for dialog in about]
        images = image_refs(list(names), folder=self._folder)
        return Sample(images=images, dialogs=dialogs, id="+".join(names) or self.rows.where(group[0]).split(" ", 1)[1])

    def _read(self, index: int) -> tuple[tuple[str, ...], Sequence[Sequence[Turn]]]:
        """Return the images that a row names, and its dialogs."""
        row = self.rows[index]
        content = content_of_row(row, columns=self._columns)
        names = tuple(content.images)
        if not all(isinstance(name, str) and name for name in names) or not (names or "file_names" in row):
            raise BadSampleError("line lacks file_name or file_names")
        return names, content.dialogs

    def where(self, index: int) -> str:
        """Say on which lines it stands."""
        first, *others = (self.rows.where(row) for row in self._groups[index])
        return ", ".join([first, *(other.rsplit(" ", 1)[1] for other in others)])

    @property
    def fingerprint(self) -> Fingerprint:
        """Return path, size and time of the metadata file."""
        return self.rows.fingerprint

    @property
    def image_files(self) -> list[str]:
        """The paths of the images, of very many a part."""
        return [os.path.join(self._folder, name) for name in unpack(self._images)]  # noqa: PTH118  # there are many


def _metadata_file(path: Path, *, split: str) -> Path | None:
    """Return the metadata file of a split's own folder, else that of the whole; None: images have texts beside them."""
    for folder in (*(path / name for name in synonyms(split)), path):
        found = next((folder / name for name in _METADATA_FILES if (folder / name).is_file()), None)
        if found is not None:
            return found
    if next(images_with_text(path), None) is not None:
        return None
    divided = sorted(file.parent.name for name in _METADATA_FILES for file in path.glob(f"*/{name}"))
    if divided:
        raise not_there(split, divided, reader="folder", where=path)
    raise MissingAssetError(
        f"folder: there is no {METADATA} in {path} or {path / split}; write one with a line like "
        '{"file_name": "a.jpg", "text": "a cat on a sofa"} per text'
    )


# --- Rows of one file that lie in folders of their split


def split_of_path(name: str) -> str | None:
    """Return the split whose folder a relative path lies in: train of train/a.jpg and images/train/a.jpg."""
    folders = PurePosixPath(name.replace("\\", "/")).parts[:-1]
    return next((usual_name(folder) for folder in folders if is_usual(folder)), None)


def _of_split_folder(rows: Rows, name: str, metadata: Path, *, columns: Mapping[str, str]) -> Rows:
    """Return the rows whose first image lies in a split's folder; those in none, and bad ones, are of train."""
    told = [_split_of_row(rows, index, columns) for index in range(len(rows))]
    there = {split for split in told if split is not None}
    if len(there) < 2 and usual_name(name) == "train" and there <= {"train"}:
        return rows
    if usual_name(name) not in there:
        if not there:
            raise DataError(
                f"folder: split: got {name!r}, but {metadata.parent} has no folder {name}/ with a {METADATA} or with "
                f"the images of its {metadata.name}, which is read as split train; make a folder for each split or "
                "leave split out"
            )
        raise not_there(name, {*there, *(["train"] if None in told else [])}, reader="folder", where=metadata)
    wanted = {usual_name(name), *([None] if usual_name(name) == "train" else [])}
    indices = [index for index, split in enumerate(told) if split in wanted]
    note = f"{len(indices):,} of {len(rows):,} rows of {metadata.name} are of split {name}, by their images' folder"
    return SomeRows(rows, indices, name=f"images of {name}", note=note)


def _split_of_row(rows: Rows, index: int, columns: Mapping[str, str]) -> str | None:
    try:
        row = rows[index]
    except BadSampleError:
        return None
    names = images_of_row({**row, **{key: row.get(column) for key, column in columns.items()}})
    return split_of_path(names[0]) if names and isinstance(names[0], str) else None


# --- Images with a text beside each


class TextsBeside:
    """Hold images of a folder that have a text of the same name beside them. See Rows."""

    def __init__(self, folder: Path, pairs: list[tuple[str, str | None]], *, encoding: str | None) -> None:
        self._folder, self._pairs, self._encoding = folder, pairs, check_encoding(encoding)

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Row:
        image, text = self._pairs[index]
        if text is None:
            raise BadSampleError("image has no text beside it")
        try:
            data = (self._folder / text).read_bytes()
        except OSError:
            raise BadSampleError("text file cannot be read") from None
        return {"file_name": image, "text": decode_text(data, encoding=self._encoding, what="text file")}

    def where(self, index: int) -> str:
        """Say which image it is."""
        return f"{self._folder.name} image {self._pairs[index][0]}"

    @property
    def fingerprint(self) -> Fingerprint:
        """Return the sizes and times of all the texts in one line."""
        texts = [self._folder / text for _, text in self._pairs if text is not None]
        marks = [
            describe_images(texts) or "no text",
            *([] if self._encoding is None else [f"encoding {self._encoding}"]),
        ]
        return Fingerprint(marks=tuple(marks))


def images_with_text(folder: Path) -> Iterator[tuple[str, str]]:
    """Go through the images in a folder, and in those inside it, that have a text beside them."""
    for place, folders, names in os.walk(folder):
        folders.sort()
        there = set(names)
        for name in sorted(names):
            text = _text_beside(name, there)
            if text is not None:
                inside = PurePosixPath(os.path.relpath(place, folder).replace(os.sep, "/"))
                yield str(inside / name), str(inside / text)


def _text_beside(name: str, there: set[str]) -> str | None:
    stem, suffix = os.path.splitext(name)  # noqa: PTH122  # there are many
    if suffix.lower() not in IMAGE_SUFFIXES:
        return None
    return next((stem + ending for ending in TEXT_SUFFIXES if stem + ending in there), None)


def _texts_beside(folder: Path, split: str, *, encoding: str | None) -> Rows:
    """Return the images of a split with their texts; one without is bad where others of its folder have one."""
    pairs: list[tuple[str, str | None]] = list(images_with_text(folder))
    with_text = {image for image, _ in pairs}
    places = {str(PurePosixPath(image).parent) for image in with_text}
    alone = [
        image
        for place in sorted(places)
        for image in (str(PurePosixPath(place) / file.name) for file in sorted((folder / place).iterdir()))
        if image not in with_text and image.lower().endswith(IMAGE_SUFFIXES)
    ]
    pairs = sorted([*pairs, *((image, None) for image in alone)], key=lambda pair: pair[0])
    told = {image: split_of_path(image) for image, _ in pairs}
    there = {name for name in told.values() if name is not None}
    if there:
        if usual_name(split) not in there:
            raise not_there(split, there, reader="folder", where=folder)
        unknown = [None] if usual_name(split) == "train" else []
        pairs = [pair for pair in pairs if told[pair[0]] in (usual_name(split), *unknown)]
    else:
        check_undivided(split, folder, reader="folder")
    return TextsBeside(folder, pairs, encoding=encoding)
