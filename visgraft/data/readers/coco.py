"""Read COCO captions: an official captions_*.json and the images it names.

In:  a folder in COCO's layout, or a captions file of that format with its images near by:
     annotations/captions_{split}2017.json (or 2014)     {split}2017/, images/{split}2017/, images/ or beside the file
Out: one sample per image, each of its captions a dialog of its own, behind an empty prompt or the option `prompt`.

    {source: coco, path: ~/coco, split: val}                               in a recipe
    {source: coco, path: my/captions.json, images: my/photos, prompt: Describe the image.}
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from visgraft.data.fingerprint import Fingerprint, stamp
from visgraft.data.readers.splits import check_undivided, samples_of_split, synonyms
from visgraft.data.readers.text_files import TextFile
from visgraft.data.sample import Sample, Source, turn_from_row
from visgraft.errors import BadSampleError, DataError, MissingAssetError
from visgraft.parsing import parse_json

_YEARS = ("2017", "2014")
_NUM_FILES_TRIED = 20  # files looked for in a folder before it is taken for the wrong one


def read(
    path: Path | None, *, split: str, images: str | None = None, prompt: str = "", encoding: str | None = None
) -> Source:
    """Return the images of a split that have captions, in the file's order; bad captions follow as bad samples.

    images: the folder with the image files, where it lies elsewhere. prompt: the text in front of every caption.
    encoding: of the captions file, where it is not UTF-8. A slice of a split counts images.
    Raises MissingAssetError where a file or folder is not there, DataError where it is of another format.
    """
    if path is None:
        raise MissingAssetError("coco: path: not set; name the folder that holds annotations/ and the images")

    def open_named(name: str) -> CocoCaptions:
        captions_file = _captions_file(path, split=name)
        source = CocoCaptions(captions_file, _load(captions_file, encoding=encoding), prompt=prompt)
        if not len(source):
            raise DataError(f"coco: {captions_file} holds no captions")
        source.folder = _image_folder(captions_file, source.file_names, images=images)
        return source

    return samples_of_split(split, reader="coco", open_named=open_named)


class CocoCaptions:
    """Hold the captions of one file by image; see Source."""

    def __init__(self, captions_file: Path, content: dict[str, Any], *, prompt: str) -> None:
        self.folder = captions_file.parent
        self._captions_file = captions_file
        self._prompt = prompt
        self._bad: list[tuple[str, str]] = []  # (where, reason)
        names = self._image_names(content["images"])
        captions: dict[Any, list[str]] = {}
        for image_id, caption in self._image_captions(content["annotations"], names):
            captions.setdefault(image_id, []).append(caption)
        self._ids = [image_id for image_id in names if image_id in captions]
        self.file_names = [names[image_id] for image_id in self._ids]
        self._captions = [tuple(captions[image_id]) for image_id in self._ids]
        self.num_dialogs = np.array([len(texts) for texts in self._captions] + [0] * len(self._bad), dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ids) + len(self._bad)

    def __getitem__(self, index: int) -> Sample:
        if index >= len(self._ids):
            raise BadSampleError(self._bad[index - len(self._ids)][1])
        dialogs = [[turn_from_row(self._prompt, caption)] for caption in self._captions[index]]
        return Sample(images=[self.folder / self.file_names[index]], dialogs=dialogs, id=str(self._ids[index]))

    def where(self, index: int) -> str:
        """Say which image, or which entry of the captions file, it is."""
        if index >= len(self._ids):
            return f"{self._captions_file.name} {self._bad[index - len(self._ids)][0]}"
        return f"{self._captions_file.name} image {self._ids[index]}"

    @property
    def fingerprint(self) -> Fingerprint:
        """Return path, size and time of the captions file."""
        return stamp([self._captions_file])

    @property
    def image_files(self) -> list[str]:
        """The paths of the images."""
        return [os.path.join(self.folder, name) for name in self.file_names]  # noqa: PTH118  # there are many

    def _image_names(self, entries: list[Any]) -> dict[Any, str]:
        """Return the file of every image id; raises DataError where one id has two."""
        names: dict[Any, str] = {}
        for number, entry in enumerate(entries):
            match entry:
                case {"id": int() | str() as image_id, "file_name": str() as name} if not isinstance(image_id, bool):
                    if names.setdefault(image_id, name) != name:
                        raise DataError(
                            f"coco: {self._captions_file} lists the image id {image_id!r} twice, with the files "
                            f"{names[image_id]} and {name}, so that its captions cannot be told apart; number the "
                            "images anew where files were put together, or read each by itself"
                        )
                case _:
                    self._bad.append((f"images[{number}]", "image entry lacks id or file_name"))
        return names

    def _image_captions(self, entries: list[Any], names: dict[Any, str]) -> Iterator[tuple[Any, str]]:
        for number, entry in enumerate(entries):
            try:
                image_id, caption = entry["image_id"], turn_from_row(self._prompt, entry["caption"]).answer
                if isinstance(image_id, bool) or image_id not in names:
                    raise BadSampleError("caption of an image that is not listed")
            except (KeyError, TypeError):
                self._bad.append((f"annotations[{number}]", "caption entry lacks image_id or caption"))
            except BadSampleError as error:
                self._bad.append((f"annotations[{number}]", str(error)))
            else:
                yield image_id, caption


def _captions_file(path: Path, *, split: str) -> Path:
    if path.is_file():
        check_undivided(split, path, reader="coco")
        return path
    folders = (path / "annotations", path)
    names = synonyms(split)
    candidates = [folder / f"captions_{n}{year}.json" for n in names for folder in folders for year in _YEARS]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    there = sorted(file.name for folder in folders for file in folder.glob("captions_*.json"))
    raise MissingAssetError(
        f"coco: no captions file for split {split!r} in {path}; looked for annotations/captions_{split}2017.json and "
        f"annotations/captions_{split}2014.json, found {', '.join(there) if there else 'none'}"
    )


def _load(captions_file: Path, *, encoding: str | None) -> dict[str, Any]:
    text = TextFile(captions_file, encoding)
    try:
        content = parse_json(text.decode(text.readable.read_bytes(), what="the file"))
    except (ValueError, BadSampleError) as error:
        raise DataError(f"coco: {captions_file} is not JSON ({error})") from error
    if not (
        isinstance(content, dict)
        and isinstance(content.get("images"), list)
        and isinstance(content.get("annotations"), list)
    ):
        raise DataError(
            f"coco: {captions_file} is not a COCO captions file: it must be an object with the lists images and "
            "annotations"
        )
    return content


def _image_folder(captions_file: Path, file_names: list[str], *, images: str | None) -> Path:
    """Return the folder in which one of the first images lies."""
    if not file_names:  # nothing but bad entries
        return captions_file.parent
    name = captions_file.stem.removeprefix("captions_")  # val2017
    roots = (captions_file.parent, captions_file.parent.parent)
    folders = [folder for root in roots for folder in (root / name, root / "images" / name, root / "images", root)]
    if images is not None:
        folders = [captions_file.parent / images, captions_file.parent.parent / images, Path(images).expanduser()]
    for folder in folders:
        if any((folder / file_name).is_file() for file_name in islice(file_names, _NUM_FILES_TRIED)):
            return folder
    raise MissingAssetError(
        f"coco: the images of {captions_file} are not found; looked for {file_names[0]} in "
        f"{', '.join(str(folder) for folder in dict.fromkeys(folders))}; set images to their folder"
    )
