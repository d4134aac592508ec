"""Read COCO (or Flickr) captions in Karpathy's splits: dataset_coco.json.

In:  the file, or a folder that holds dataset_coco.json (or one dataset_*.json); images in `images`, beside the file or
     in the usual folders of COCO, under the file's own filepath/filename:
     {"images": [{"filepath": "val2014", "filename": "COCO_val2014_000000000042.jpg", "split": "test", "cocoid": 42,
                  "sentences": [{"raw": "a cat on a sofa"}, ...]}, ...], "dataset": "coco"}
Out: one sample per image, each of its captions a dialog of its own, behind an empty prompt or the option `prompt`.

Splits are train, restval, val and test; train+restval is the 113,287 images that papers train on.

    {source: karpathy, path: ~/coco, split: train+restval}                          in a recipe
"""

from __future__ import annotations

import os
from array import array
from pathlib import Path

from visgraft.data.fingerprint import Fingerprint, ImagePaths, unpack
from visgraft.data.readers.json_places import entries_of_list
from visgraft.data.readers.rows import JsonListRows, Row
from visgraft.data.readers.splits import find_name, parse_split, samples_of_split
from visgraft.data.readers.text_files import TextFile
from visgraft.data.sample import Sample, Source, turn_from_row
from visgraft.errors import BadSampleError, DataError, MissingAssetError

SPLITS = ("train", "restval", "val", "test")


def read(
    path: Path | None, *, split: str, images: str | None = None, prompt: str = "", encoding: str | None = None
) -> Source:
    """Return the images of a split (or of several, joined by +) in the file's order; a slice counts images.

    Raises MissingAssetError where the file or the images are not there, DataError for another split or format.
    """
    file = _find_file(path)
    text = TextFile(file, encoding)
    rows = JsonListRows(text, entries_of_list(text, inside="images"))

    def open_named(names: str) -> Karpathy:
        wanted = [find_name(name, SPLITS) for name in names.split("+")]
        if None in wanted:
            raise DataError(f"karpathy: split: got {names!r}, allowed are {', '.join(SPLITS)}, or some joined by +")
        source = Karpathy(rows, file, wanted={str(name) for name in wanted}, prompt=prompt)
        if not len(source):
            raise DataError(f"karpathy: {file} holds no image of split {names!r}")
        source.folder = _image_folder(source, file, images=images)
        return source

    parts = parse_split(split, reader="karpathy")
    if all(part.is_whole for part in parts):
        return open_named("+".join(part.name for part in parts))
    return samples_of_split(split, reader="karpathy", open_named=open_named)


class Karpathy:
    """Hold which entries of the file are of the split; see Source."""

    def __init__(self, rows: JsonListRows, file: Path, *, wanted: set[str], prompt: str) -> None:
        self.folder = file.parent
        self.rows = rows
        self._prompt = prompt
        self._entries = array("q")
        images = ImagePaths()
        for index in range(len(self.rows)):
            try:
                row = self.rows[index]
                split = row.get("split")
                images_of = file_name(row)
                if split in wanted:
                    images.add(images_of)
            except BadSampleError:
                split = None  # asking for it gives the reason
            if split is None or split in wanted:
                self._entries.append(index)
        self._images = images.packed()

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Sample:
        row = self.rows[self._entries[index]]
        image = self.folder / file_name(row)
        dialogs = [[turn_from_row(self._prompt, caption)] for caption in _captions(row)]
        name = next((row[key] for key in ("cocoid", "imgid") if key in row), row["filename"])
        return Sample(images=[image], dialogs=dialogs, id=str(name))

    def where(self, index: int) -> str:
        """Say which image of the file it is."""
        return self.rows.where(self._entries[index])

    @property
    def fingerprint(self) -> Fingerprint:
        """Return path, size and time of the file."""
        return self.rows.fingerprint

    @property
    def image_files(self) -> list[str]:
        """The paths of the images, of very many a part."""
        return [os.path.join(self.folder, name) for name in unpack(self._images)]  # noqa: PTH118  # there are many

    def first_names(self, number: int) -> list[str]:
        """Return the file names of the first good images."""
        names = []
        for index in range(min(number, len(self))):
            try:
                names.append(file_name(self.rows[self._entries[index]]))
            except BadSampleError:
                continue
        return names


def file_name(row: Row) -> str:
    """Return the path of an image as the file gives it."""
    if not isinstance(row.get("filename"), str) or not isinstance(row.get("split"), str):
        raise BadSampleError("image entry lacks filename or split")
    folder = row.get("filepath")
    return f"{folder}/{row['filename']}" if isinstance(folder, str) and folder else str(row["filename"])


def _captions(row: Row) -> list[object]:
    sentences = row.get("sentences")
    if not isinstance(sentences, list) or not sentences:
        raise BadSampleError("image has no captions")
    return [sentence.get("raw") if isinstance(sentence, dict) else sentence for sentence in sentences]


def _find_file(path: Path | None) -> Path:
    if path is None:
        raise MissingAssetError("karpathy: path: not set; name dataset_coco.json or the folder that holds it")
    if path.is_file():
        return path
    folders = (path, path / "annotations")
    found = [file for folder in folders for file in sorted(folder.glob("dataset_*.json"))]
    preferred = [file for file in found if file.name == "dataset_coco.json"] or found
    if not preferred:
        raise MissingAssetError(f"karpathy: there is no dataset_coco.json in {path} or {path / 'annotations'}")
    return preferred[0]


def _image_folder(source: Karpathy, file: Path, *, images: str | None) -> Path:
    names = source.first_names(20)
    if not names:
        return file.parent
    roots = [file.parent, file.parent.parent]
    folders = [folder for root in roots for folder in (root, root / "images")]
    if images is not None:
        folders = [file.parent / images, file.parent.parent / images, Path(images).expanduser()]
    for folder in folders:
        if any((folder / name).is_file() for name in names):
            return folder
    raise MissingAssetError(
        f"karpathy: the images of {file} are not found; looked for {names[0]} in "
        f"{', '.join(str(folder) for folder in dict.fromkeys(folders))}; set images to their folder"
    )
