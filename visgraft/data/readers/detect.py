"""Find out which format a folder of data is in, by what lies in it.

In:  a folder, or a file. Out: the sources that read it, as a recipe writes them.

    found = detect(Path("~/coco"))
    found.train            # SourceSettings(source="coco", path="/home/me/coco", split="train")

The first that fits: easy-VQA, a folder with a metadata file, captions in Karpathy's splits or COCO's own files, M3IT's
tasks, WebDataset shards, a dataset that save_to_disk wrote, and rows of any usual format (row_formats.py).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from visgraft.config import SourceSettings
from visgraft.data.images.opening import image_ref
from visgraft.data.readers import karpathy
from visgraft.data.readers.files import ALL_SUFFIXES, find_split, open_files
from visgraft.data.readers.folder import METADATA
from visgraft.data.readers.row_formats import ROW_FORMATS, images_of_row
from visgraft.data.readers.rows import Row, Rows
from visgraft.errors import BadSampleError, DataError, MissingAssetError

_VALIDATION_NAMES = ("validation", "val", "valid", "dev")
_METADATA_STEM = "metadata"
_MAX_FILES_COUNTED = 2000
_NUM_ROWS_TRIED = 20  # rows whose images are looked for


@dataclass(frozen=True)
class DetectedDataset:
    """What a folder holds: its format in words, a source to train on, and one to validate on if there is one."""

    format: str
    train: SourceSettings
    validation: SourceSettings | None = None


def detect(path: Path) -> DetectedDataset:
    """Return the sources that read a folder or a file.

    Raises MissingAssetError where nothing is there, DataError where no reader knows what is.
    """
    path = path.expanduser().resolve()
    if not path.exists():
        raise MissingAssetError(f"{path}: no such file or folder; name the one that holds your images and texts")
    for detector in _DETECTORS:
        found = detector(path)
        if found is not None:
            return found
    raise DataError(
        f"{path}: no format that is known here; looked for {METADATA}, COCO captions, tars, and parquet, JSON or CSV "
        f"files with images and texts, found {_contents(path)}. Write a {METADATA} beside the images with a line such "
        'as {"file_name": "a.jpg", "text": "a cat on a sofa"} for each text'
    )


def _easy_vqa(path: Path) -> DetectedDataset | None:
    if not ((path / "train" / "questions.json").is_file() and (path / "train" / "images").is_dir()):
        return None
    return _detected("easy-VQA", "easy_vqa", path, ["train", "validation"])


def _folder(path: Path) -> DetectedDataset | None:
    if path.is_file() and path.stem == _METADATA_STEM:
        path = path.parent
    there = [file for file in (*path.glob("metadata.*"), *path.glob("*/metadata.*")) if file.suffix in ALL_SUFFIXES]
    if not there:
        return None
    splits = ["train" if file.parent == path else file.parent.name for file in sorted(there)]
    return _detected(f"a folder with {there[0].name}", "folder", path, splits)


def _karpathy(path: Path) -> DetectedDataset | None:
    files = [path] if path.is_file() else sorted(path.glob("dataset_*.json"))
    if len(files) != 1 or not re.fullmatch(r"dataset_(coco|flickr8k|flickr30k)\.json", files[0].name):
        return None
    splits = [split for split in karpathy.SPLITS if _has_karpathy_split(files[0], split)]
    return _detected("captions in Karpathy's splits", "karpathy", path, splits or ["train"])


def _has_karpathy_split(file: Path, split: str) -> bool:
    """Say whether the file names the split of some image, in the file's own words; the whole need not be parsed."""
    return re.search(rb'"split":\s*"' + split.encode() + rb'"', file.read_bytes()) is not None


def _coco(path: Path) -> DetectedDataset | None:
    if path.is_file():
        is_captions = path.suffix == ".json" and path.stem.startswith("captions_")
        return DetectedDataset("COCO captions", SourceSettings("coco", path=str(path))) if is_captions else None
    files = [file for folder in (path / "annotations", path) for file in sorted(folder.glob("captions_*.json"))]
    named = [re.fullmatch(r"captions_(.+)(2017|2014)\.json", file.name) for file in files]
    splits = [match[1] for match in named if match]
    if splits:
        return _detected("COCO captions", "coco", path, splits)
    return DetectedDataset("COCO captions", SourceSettings("coco", path=str(files[0]))) if files else None


def _m3it(path: Path) -> DetectedDataset | None:
    tasks = [file for file in islice(path.glob("*/*"), _MAX_FILES_COUNTED) if file.suffix in (".jsonl", ".parquet")]
    if not tasks or not _has_format(tasks[0], "m3it"):
        return None
    return _detected("M3IT tasks", "m3it", path, [file.stem.partition("-")[0] for file in tasks])


def _webdataset(path: Path) -> DetectedDataset | None:
    if not (path.suffix == ".tar" if path.is_file() else any(path.glob("*.tar"))):
        return None
    return DetectedDataset("WebDataset shards", SourceSettings("webdataset", path=str(path)))


def _saved_dataset(path: Path) -> DetectedDataset | None:
    if (path / "dataset_dict.json").is_file():
        splits = sorted(folder.name for folder in path.iterdir() if (folder / "state.json").is_file())
        return _detected("a dataset of Hugging Face", "hf", path, splits)
    is_one = (path / "state.json").is_file() and (path / "dataset_info.json").is_file()
    return DetectedDataset("a dataset of Hugging Face", SourceSettings("hf", path=str(path))) if is_one else None


def _rows(path: Path) -> DetectedDataset | None:
    """Find files of rows: named by split, or one alone."""
    splits = [name for name in ("train", "validation") if _split_files(path, name)]
    files = _split_files(path, (splits or ["train"])[0])
    if not files and path.is_dir():
        files = [file for file in sorted(path.iterdir()) if file.suffix in ALL_SUFFIXES]
    if not files or (len(files) > 1 and not splits):
        return None
    rows = open_files(files)
    row_format = _format_of(rows)
    if row_format is None:
        return None
    reader = ROW_FORMATS[row_format].reader if row_format in ROW_FORMATS else "parquet"
    where = path if splits and path.is_dir() else files[0]
    options = _image_options(rows, folder=where if where.is_dir() else where.parent)
    found = _detected(
        f"rows of the format {row_format} in {files[0].name}", reader, where, splits or ["train"], **options
    )
    return found if where.is_dir() else DetectedDataset(found.format, found.train)


_DETECTORS: tuple[Callable[[Path], DetectedDataset | None], ...] = (
    _easy_vqa,
    _folder,
    _karpathy,
    _coco,
    _m3it,
    _webdataset,
    _saved_dataset,
    _rows,
)


def _detected(format_: str, source: str, path: Path, splits: list[str], **options: Any) -> DetectedDataset:
    """Train on the split of that name, or the first that is neither for validation nor for the test."""
    held_out = [name for name in _VALIDATION_NAMES if name in splits]
    others = [name for name in splits if name not in held_out and not name.startswith("test")]
    train = "train" if "train" in others else (others or held_out or splits)[0]
    validation = next((name for name in held_out if name != train), None)

    def settings(split: str) -> SourceSettings:
        return SourceSettings(source, path=str(path), split=split, options=options)

    return DetectedDataset(format_, settings(train), None if validation is None else settings(validation))


def _split_files(path: Path, split: str) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix in ALL_SUFFIXES and split == "train" else []
    try:
        return find_split(path, split=split, reader="rows")
    except MissingAssetError:
        return []


def _first_rows(rows: Rows) -> list[Row]:
    """Return some of the first rows that can be read."""
    found = []
    for index in range(min(_NUM_ROWS_TRIED, len(rows))):
        try:
            found.append(rows[index])
        except BadSampleError:
            continue
    return found


def _format_of(rows: Rows) -> str | None:
    """Name the format of the first row that has one; None where there is none."""
    for row in _first_rows(rows):
        for name, row_format in ROW_FORMATS.items():
            if all(row.get(key) is not None for key in row_format.keys):
                return name
        if images_of_row(row) and any(key in row for key in ("text", "caption", "captions")):
            return "captions"
    return None


def _has_format(file: Path, row_format: str) -> bool:
    try:
        return _format_of(open_files([file])) == row_format
    except DataError:
        return False


def _image_options(rows: Rows, *, folder: Path) -> dict[str, str]:
    """Find the folder that the rows' image paths count from, where it is not the folder itself."""
    values = [value for row in _first_rows(rows) for value in images_of_row(row)[:1]]
    candidates = [folder, *sorted(place for place in folder.iterdir() if place.is_dir()), folder.parent]
    for candidate in candidates:
        refs = [image_ref(value, folder=candidate) for value in values]
        if any(isinstance(ref, Path) and ref.is_file() for ref in refs):
            return {} if candidate == folder else {"images": str(candidate)}
    return {}  # they stand in the rows, or are missing, which the reader will say


def _contents(path: Path) -> str:
    """Count the kinds of files, in words."""
    files = [path] if path.is_file() else (file for file in path.rglob("*") if file.is_file())
    kinds = Counter(file.suffix.lower() or "without suffix" for file in islice(files, _MAX_FILES_COUNTED))
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5)) or "nothing"
