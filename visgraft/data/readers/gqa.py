"""Read GQA: questions about scenes, made from their graphs, in the form of its official files.

In:  the file of a split, or the folder that holds {split}_questions.json (testdev_balanced_questions.json, ...), and
     images/, beside the file or named by the option `images`:
     {"201307251": {"question": "Is it overcast?", "answer": "no", "imageId": "n161313",
                    "types": {"structural": "verify", ...}, ...}, ...}
Out: one sample per image, each question a dialog of its own; its kind is the structural type.

    {source: gqa, path: ~/gqa, split: testdev_balanced}                                  in a recipe
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from visgraft.data.fingerprint import Fingerprint, stamp
from visgraft.data.sample import Sample, Source, turn_from_row
from visgraft.errors import BadSampleError, DataError, MissingAssetError
from visgraft.parsing import parse_json

KEYS = ("question", "answer", "imageId")


def read(path: Path | None, *, split: str, images: str | None = None) -> Source:
    """Return the samples of a split, in the order in which the file first names their images.

    Raises MissingAssetError where the questions or the images are not there, DataError where the file is none of GQA.
    """
    if path is None:
        raise MissingAssetError("gqa: path: not set; name the folder that holds the questions and images/")
    file = path if path.is_file() else path / f"{split}_questions.json"
    if not file.is_file():
        raise MissingAssetError(f"gqa: {file}: missing; put questions1.2.zip's {split}_questions.json there")
    folder = file.parent / "images" if images is None else Path(images).expanduser()
    if not folder.is_dir():
        raise MissingAssetError(f"gqa: {folder}: missing; unpack images.zip there, or set images to the folder")
    try:
        values = parse_json(file.read_bytes())
    except ValueError as error:
        raise DataError(f"gqa: {file} is not JSON: {error}") from error
    if not isinstance(values, dict) or not values:
        raise DataError(f"gqa: {file}: got {type(values).__name__}, need an object with a question under each id")
    return Gqa(file, folder, values)


class Gqa:
    """Hold the questions of one split by image; see Source."""

    def __init__(self, file: Path, folder: Path, values: dict[str, Any]) -> None:
        self._file, self._folder = file, folder
        by_image: dict[str, list[Any]] = {}
        for name, entry in values.items():
            image = entry.get("imageId") if isinstance(entry, dict) else None
            kept = _kept(entry)
            by_image.setdefault(str(image) if kept else f"entry {name}", []).append(kept)
        self._images = list(by_image.items())
        self.num_dialogs = np.array([len(kept) * (None not in kept) for _, kept in self._images], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Sample:
        image, kept = self._images[index]
        if None in kept:
            raise BadSampleError("question lacks question, answer or imageId")
        dialogs = [[turn_from_row(question, answer, kind=kind)] for question, answer, kind in kept]
        return Sample([self._folder / f"{image}.jpg"], dialogs, id=image)

    def where(self, index: int) -> str:
        """Say which image it is."""
        return f"{self._file.name} image {self._images[index][0]}"

    @property
    def fingerprint(self) -> Fingerprint:
        """Return path, size and time of the questions."""
        return stamp([self._file])

    @property
    def image_files(self) -> list[str]:
        """The paths of the images."""
        return [f"{self._folder}/{image}.jpg" for image, kept in self._images if None not in kept]


def _kept(entry: Any) -> tuple[str, str, str] | None:
    """Keep of a question what is asked; None where something is missing."""
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) and entry[key] for key in KEYS):
        return None
    types = entry.get("types")
    kind = types.get("structural") if isinstance(types, dict) else None
    return entry["question"], entry["answer"], kind if isinstance(kind, str) else ""
