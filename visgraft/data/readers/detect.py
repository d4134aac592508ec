"""Find out which format a folder of data is in, by what lies in it.

In:  a folder, or a file. Out: the sources that read it, as a recipe writes them.

    found = detect(Path("~/coco"))
    found.train            # SourceSettings(source="coco", path="/home/me/coco", split="train")

The first that fits: easy-VQA, a folder with a metadata file, captions in Karpathy's splits or COCO's own files, M3IT's
tasks, WebDataset shards, a dataset that save_to_disk wrote, images with a text beside each, rows of any usual format
(row_formats.py), a COCO or row file anywhere inside, and folders of images that are called like what they show.
"""

from __future__ import annotations

import codecs
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from visgraft.config import SourceSettings
from visgraft.data.images.opening import image_ref
from visgraft.data.readers import karpathy
from visgraft.data.readers.files import ALL_SUFFIXES, find_split, open_files, splits_inside
from visgraft.data.readers.folder import IMAGE_SUFFIXES, METADATA, images_with_text, split_of_path
from visgraft.data.readers.json_places import entries_of_list
from visgraft.data.readers.row_formats import ROW_FORMATS, has_caption, images_of_row
from visgraft.data.readers.rows import ROW_SUFFIXES, JsonListRows, Row, Rows
from visgraft.data.readers.splits import is_usual, told_by
from visgraft.data.readers.text_files import TextFile
from visgraft.errors import BadSampleError, DataError, MissingAssetError

_VALIDATION_NAMES = ("validation", "val", "valid", "dev")
_METADATA_STEM = "metadata"
_MAX_FILES_COUNTED = 2000
_MAX_FILES_SEEN, _MAX_FILES_TRIED = 200_000, 50  # of a deep folder: names looked at, files opened
_NUM_ROWS_TRIED = 20  # rows whose images are looked for
_BYTES_TRIED = 2**20  # of a text file, to see whether it is UTF-8
_SHOWN_NAMES = 4


@dataclass(frozen=True)
class DetectedDataset:
    """What a folder holds: its format in words, a source to train on, and one to validate on if there is one.

    captions: by split, rows that must be written first, as {split}.jsonl in a folder that becomes the sources' path.
    """

    format: str
    train: SourceSettings
    validation: SourceSettings | None = None
    captions: Mapping[str, Sequence[Row]] | None = None


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
    splits = [file.parent.name for file in sorted(there) if file.parent != path]
    above = [file for file in there if file.parent == path]
    if above:
        splits += _splits_of_folders(above[0]) or ["train"]
    return _detected(f"a folder with {there[0].name}", "folder", path, splits, **_text_options(there[0]))


def _splits_of_folders(metadata: Path) -> list[str]:
    """Return the splits whose folders the images of a metadata file lie in."""
    rows = open_files([metadata], **_text_options(metadata))
    names = (value for row in _first_rows(rows, len(rows)) for value in images_of_row(row)[:1])
    return sorted({split for name in names if isinstance(name, str) and (split := split_of_path(name)) is not None})


def _text_options(file: Path) -> dict[str, str]:
    """Return the encoding of a text file that is not UTF-8: that of Windows in the West, which no file can tell."""
    if file.suffix.lower() not in ROW_SUFFIXES:
        return {}
    with file.open("rb") as opened:
        data = opened.read(_BYTES_TRIED)
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return {}
    if b"\0" in data[:200]:
        return {"encoding": "utf-16-le" if data[1:2] == b"\0" else "utf-16-be"}
    for encoding in ("utf-8", "cp1252"):
        try:
            codecs.getincrementaldecoder(encoding)().decode(data)
        except UnicodeDecodeError:
            continue
        return {} if encoding == "utf-8" else {"encoding": encoding}
    return {"encoding": "latin-1"}


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
    if path.is_file():
        is_tar = path.suffix.lower() == ".tar"
        return DetectedDataset("WebDataset shards", SourceSettings("webdataset", path=str(path))) if is_tar else None
    inside = sorted({tar.parent for tar in islice(path.glob("*/*.tar"), _MAX_FILES_COUNTED)})
    if not any(path.glob("*.tar")) and not inside:
        return None
    if not any(path.glob("*.tar")) and not any(is_usual(folder.name) for folder in inside):
        path = path / "*" if len(inside) > 1 else inside[0]  # shards in parts of their own
        pattern = path / "*.tar" if path.name == "*" else path
        return DetectedDataset("WebDataset shards", SourceSettings("webdataset", path=str(pattern)))
    told = {told_by(tar) for tar in [*path.glob("*.tar"), *path.glob("*/*.tar")]} - {None}
    return _detected("WebDataset shards", "webdataset", path, sorted(str(name) for name in told) or ["train"])


def _saved_dataset(path: Path) -> DetectedDataset | None:
    if (path / "dataset_dict.json").is_file():
        splits = sorted(folder.name for folder in path.iterdir() if (folder / "state.json").is_file())
        return _detected("a dataset of Hugging Face", "hf", path, splits)
    is_one = (path / "state.json").is_file() and (path / "dataset_info.json").is_file()
    if is_one:
        return DetectedDataset("a dataset of Hugging Face", SourceSettings("hf", path=str(path)))
    splits = sorted(file.parent.name for file in path.glob("*/state.json") if is_usual(file.parent.name))
    return _detected("datasets of Hugging Face, one a split", "hf", path, splits) if splits else None


def _texts_beside(path: Path) -> DetectedDataset | None:
    """Find images with a text of the same name beside each: kohya's and img2dataset's way."""
    found = next(images_with_text(path), None) if path.is_dir() else None
    if found is None:
        return None
    told = {split_of_path(image) for image, _ in islice(images_with_text(path), _MAX_FILES_COUNTED)} - {None}
    options = _text_beside_options(path)
    words = "images with a text beside each"
    return _detected(words, "folder", path, sorted(str(split) for split in told) or ["train"], **options)


def _text_beside_options(path: Path) -> dict[str, str]:
    for _, text in islice(images_with_text(path), _NUM_ROWS_TRIED):
        try:
            (path / text).read_bytes().decode()
        except UnicodeDecodeError:
            return {"encoding": "cp1252"}
    return {}


def _rows(path: Path) -> DetectedDataset | None:
    """Find files of rows: named by split, or one alone."""
    splits = [name for name in ("train", "validation") if _split_files(path, name)]
    files = _split_files(path, (splits or ["train"])[0])
    if not files and path.is_dir():
        files = [file for file in sorted(path.iterdir()) if file.suffix in ALL_SUFFIXES]
    if not files or (len(files) > 1 and not splits):
        return None
    where = path if splits and path.is_dir() else files[0]
    return _rows_of_files(files, where, splits, root=where if where.is_dir() else where.parent)


def _rows_of_files(files: Sequence[Path], where: Path, splits: list[str], *, root: Path) -> DetectedDataset | None:
    """Return the source of files of rows, whose path is the folder that holds the splits, or one file.

    root: the folder in which their images are looked for.
    """
    text = _text_options(files[0])
    try:
        rows = open_files(files, **text)
    except DataError:
        return None
    row_format = _format_of(rows)
    if row_format is None:
        return None
    reader = ROW_FORMATS[row_format].reader if row_format in ROW_FORMATS else "parquet"
    options = {**_image_options(rows, folder=where if where.is_dir() else where.parent, root=root), **text}
    words = f"rows of the format {row_format} in {files[0].name}"
    if where.is_dir():
        return _detected(words, reader, where, splits, **options)
    inside = splits_inside(rows)
    found = _detected(words, reader, where, inside or ["train"], **options)
    return found if inside else DetectedDataset(found.format, found.train)


def _anywhere(path: Path) -> DetectedDataset | None:
    """Find a file of captions or rows deep inside a folder; of several, those whose names tell their split."""
    if path.is_file():
        return None
    found: dict[str, DetectedDataset] = {}
    for file in _files_inside(path):
        one = _coco_file(file, path) or _rows_of_files([file], file, [], root=path)
        if one is not None:
            found.setdefault(told_by(file) or "train", one)
    first = found.get("train") or next(iter(found.values()), None)
    if first is None:
        return None
    where = Path(str(first.train.path)).relative_to(path)
    validation = found.get("validation")
    settings = None if validation in (None, first) else replace(validation.train, split="validation")
    return DetectedDataset(f"{first.format} ({where})", first.train, first.validation or settings)


def _files_inside(path: Path) -> Iterator[Path]:
    """Go through some of the files of rows inside a folder, those with fewer folders above first."""
    files = (file for file in islice(path.rglob("*"), _MAX_FILES_SEEN) if file.suffix.lower() in ALL_SUFFIXES)
    there = sorted((file for file in files if file.is_file()), key=lambda file: (len(file.parts), file.name))
    yield from there[:_MAX_FILES_TRIED]


def _coco_file(file: Path, root: Path) -> DetectedDataset | None:
    """Return the source of a captions file of COCO's format under any name, with the folder of its images."""
    if file.suffix.lower() != ".json":
        return None
    try:
        text = TextFile(file)
        captions, images = (JsonListRows(text, entries_of_list(text, inside=key)) for key in ("annotations", "images"))
        if not (len(captions) and len(images)) or "caption" not in captions[0]:
            return None
        name = images[0].get("file_name")
    except (DataError, OSError):
        return None
    if not isinstance(name, str):
        return None
    folder = _folder_of(name, root)
    options = {} if folder is None else {"images": str(folder)}
    return DetectedDataset("COCO captions", SourceSettings("coco", path=str(file), options=options))


def _folder_of(name: str, root: Path) -> Path | None:
    """Return the folder inside which a relative path names a file."""
    relative = Path(name.replace("\\", "/"))
    for file in islice(root.rglob(relative.name), _MAX_FILES_TRIED):
        if file.parts[-len(relative.parts) :] == relative.parts:
            return Path(*file.parts[: -len(relative.parts)])
    return None


def _class_folders(path: Path) -> DetectedDataset | None:
    """Find folders of images that are called like what they show, perhaps inside train/ and val/."""
    if path.is_file():
        return None
    folders = [folder for folder in sorted(path.iterdir()) if folder.is_dir()]
    divided = [folder for folder in folders if is_usual(folder.name)]
    captions = {}
    for split, parent in [(folder.name, folder) for folder in divided] or [("train", path)]:
        rows = [
            {"image": file.relative_to(path).as_posix(), "text": _caption_of(folder.name)}
            for folder in sorted(parent.iterdir())
            if folder.is_dir()
            for file in sorted(folder.iterdir())
            if file.suffix.lower() in IMAGE_SUFFIXES
        ]
        if len({row["text"] for row in rows}) > 1:
            captions[split] = rows
    if not captions:
        return None
    names = list(dict.fromkeys(row["text"] for rows in captions.values() for row in rows))
    shown = ", ".join(names[:_SHOWN_NAMES]) + (", ..." if len(names) > _SHOWN_NAMES else "")
    words = f"folders of images whose names become captions ({shown})"
    found = _detected(words, "parquet", path, list(captions), images=str(path))
    return replace(found, captions=captions)


def _caption_of(name: str) -> str:
    return " ".join(re.sub(r"[_-]+", " ", name).split())


_DETECTORS: tuple[Callable[[Path], DetectedDataset | None], ...] = (
    _easy_vqa,
    _folder,
    _karpathy,
    _coco,
    _m3it,
    _webdataset,
    _saved_dataset,
    _texts_beside,
    _rows,
    _anywhere,
    _class_folders,
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


def _first_rows(rows: Rows, number: int = _NUM_ROWS_TRIED) -> list[Row]:
    """Return some of the first rows that can be read."""
    found = []
    for index in range(min(number, len(rows))):
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
        if images_of_row(row) and has_caption(row):
            return "captions"
    return None


def _has_format(file: Path, row_format: str) -> bool:
    try:
        return _format_of(open_files([file])) == row_format
    except DataError:
        return False


def _image_options(rows: Rows, *, folder: Path, root: Path) -> dict[str, str]:
    """Find the folder that the rows' image paths count from, where it is not the folder itself."""
    values = [value for row in _first_rows(rows) for value in images_of_row(row)[:1]]
    candidates = [folder, *sorted(place for place in folder.iterdir() if place.is_dir()), folder.parent]
    for candidate in candidates:
        refs = [image_ref(value, folder=candidate) for value in values]
        if any(isinstance(ref, Path) and ref.is_file() for ref in refs):
            return {} if candidate == folder else {"images": str(candidate)}
    named = next((value for value in values if isinstance(value, str) and isinstance(image_ref(value), Path)), None)
    found = None if named is None else _folder_of(named, root)
    if found is not None:
        return {"images": str(found)}
    return {}  # they stand in the rows, or are missing, which the reader will say


def _contents(path: Path) -> str:
    """Count the kinds of files, in words."""
    files = [path] if path.is_file() else (file for file in path.rglob("*") if file.is_file())
    kinds = Counter(file.suffix.lower() or "without suffix" for file in islice(files, _MAX_FILES_COUNTED))
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5)) or "nothing"
