"""Read easy-VQA: 5,000 drawn images of one coloured shape, about 9.6 short questions each.

In:  the `easy_vqa` package as pip installs it, or a folder of the same layout:
     {train,test}/questions.json = [[question, answer, image id], ...] and {train,test}/images/{image id}.png
Out: one sample per image, each question a dialog of its own.

The official train images are divided once and for all, so that nothing need be tuned on the test images:

    split               images   questions
    train                3,000
    validation           1,000   (a quarter of the official train images, picked by a hash of the image id)
    train+validation     4,000      38,575   the official train split
    test                 1,000       9,673   the official test split

    {source: easy_vqa, split: train}                                       in a recipe
    {source: easy_vqa, split: validation, questions_per_image: 1}          a quick measure over many images
    {source: easy_vqa, split: train, questions: what, weight: 4}           only those that ask what colour or shape
"""

from __future__ import annotations

from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np

from visgraft.data.fingerprint import Fingerprint, stamp
from visgraft.data.readers.splits import parse_split, samples_of_split, usual_name
from visgraft.data.sample import Sample, Source, turn_from_row
from visgraft.errors import DataError, MissingAssetError
from visgraft.parsing import parse_json

SPLITS = ("train", "validation", "train+validation", "test")
_VALIDATION_SHARE = 4  # one image of so many

QuestionKind = Literal["all", "what", "yes/no"]


def read(
    path: Path | None, *, split: str, questions: QuestionKind = "all", questions_per_image: int | None = None
) -> Source:
    """Return the samples of a split, one per image, in order of the image ids.

    questions: `what` keeps those whose answer is a colour or a shape, `yes/no` the others; an image without one is
    left out.
    questions_per_image: a choice of so many by a hash, the same in every run (the file has "what" first); None: all.
    Raises MissingAssetError without the package or the files, DataError for another split or another layout.
    """

    def open_named(name: str) -> EasyVqa:
        return _read_named(path, split=name, questions=questions, questions_per_image=questions_per_image)

    parts = parse_split(split, reader="easy_vqa")
    if all(part.is_whole for part in parts):
        return open_named("+".join(sorted(usual_name(part.name) for part in parts)))  # train before validation
    return samples_of_split(split, reader="easy_vqa", open_named=lambda name: open_named(usual_name(name)))


def _read_named(path: Path | None, *, split: str, questions: QuestionKind, questions_per_image: int | None) -> EasyVqa:
    if split not in SPLITS:
        raise DataError(f"easy_vqa: split: got {split!r}, allowed are {', '.join(SPLITS)}")
    folder = (_package_folder() if path is None else path) / ("test" if split == "test" else "train")
    rows = _read_questions(folder / "questions.json")
    wanted = _image_ids(sorted({image_id for _, _, image_id in rows}), split=split)
    kept: dict[int, list[tuple[object, object]]] = {image_id: [] for image_id in wanted}
    for question, answer, image_id in rows:
        if image_id in kept and questions in ("all", kind_of(answer)):
            kept[image_id].append((question, answer))
    if questions_per_image is not None:
        if questions_per_image < 1:
            raise DataError(f"easy_vqa: questions_per_image: got {questions_per_image}, need at least 1")
        kept = {image_id: _choose(image_id, pairs, questions_per_image) for image_id, pairs in kept.items()}
    return EasyVqa(folder, {image_id: pairs for image_id, pairs in kept.items() if pairs})


def kind_of(answer: object) -> QuestionKind:
    """Say whether a question with that answer is a `what` or a `yes/no` question."""
    return "yes/no" if answer in ("yes", "no") else "what"


class EasyVqa:
    """Hold the questions of one split by image; see Source."""

    def __init__(self, folder: Path, questions: dict[int, list[tuple[object, object]]]) -> None:
        self._folder = folder
        self._questions = list(questions.items())
        self.num_dialogs = np.array([len(pairs) for pairs in questions.values()], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._questions)

    def __getitem__(self, index: int) -> Sample:
        image_id, pairs = self._questions[index]
        dialogs = [[turn_from_row(question, answer, kind=kind_of(answer))] for question, answer in pairs]
        image = self._folder / "images" / f"{image_id}.png"
        return Sample(images=[image], dialogs=dialogs, id=f"{self._folder.name}/{image_id}")

    def where(self, index: int) -> str:
        """Say which image it is."""
        return f"{self._folder.name}/images/{self._questions[index][0]}.png"

    @property
    def fingerprint(self) -> Fingerprint:
        """Return path, size and time of the questions."""
        return stamp([self._folder / "questions.json"])

    @property
    def image_files(self) -> list[str]:
        """The paths of the images."""
        folder = self._folder / "images"
        return [f"{folder}/{image_id}.png" for image_id, _ in self._questions]


def _package_folder() -> Path:
    spec = find_spec("easy_vqa")
    if spec is None or not spec.submodule_search_locations:
        raise MissingAssetError(
            "easy_vqa: the package with the data is not installed (3 MB); run `pip install easy-vqa`, "
            "or set path to a folder that holds train/questions.json and train/images/"
        )
    return Path(spec.submodule_search_locations[0]) / "data"


def _read_questions(path: Path) -> list[tuple[object, object, int]]:
    if not path.is_file():
        raise MissingAssetError(
            f"easy_vqa: {path} is missing; path must be a folder that holds {path.parent.name}/questions.json "
            f"and {path.parent.name}/images/, or be left out to read the installed package"
        )
    try:
        rows = [(question, answer, int(image_id)) for question, answer, image_id in parse_json(path.read_bytes())]
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(f"easy_vqa: {path} is not a JSON list of [question, answer, image id] ({error})") from error
    if not rows:
        raise DataError(f"easy_vqa: {path} holds no questions")
    return rows


def _choose(image_id: int, pairs: list[tuple[object, object]], number: int) -> list[tuple[object, object]]:
    return sorted(pairs, key=lambda pair: sha256(f"{image_id} {pair[0]}".encode()).digest())[:number]


def _image_ids(image_ids: list[int], *, split: str) -> list[int]:
    """Pick a split's images; train and validation are apart for good, whatever the seed of a run."""
    if split in ("test", "train+validation"):
        return image_ids
    by_hash = sorted(image_ids, key=lambda image_id: sha256(f"easy_vqa {image_id}".encode()).digest())
    held_out = set(by_hash[: len(by_hash) // _VALIDATION_SHARE])
    return [image_id for image_id in image_ids if (image_id in held_out) == (split == "validation")]
