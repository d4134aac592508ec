"""Read any Hugging Face dataset: by its name on the Hub, or a folder that `save_to_disk` wrote.

In:  path: the name or folder; name: its configuration; revision; columns where its own are not of a usual format
     (row_formats.py). streaming: true reads the rows as they come, a window at a time (windows.py), and keeps nothing.
     With take: N the first N rows are read off the stream once, without downloading the rest, and kept as parquet in
     the cache, so that order, grouping, a resumed run and a second epoch are as of any other source.
Out: one sample per image (or list of images) with the dialogs of all its rows; images are never decoded on the way.

    {source: hf, path: HuggingFaceM4/the_cauldron, name: ai2d, split: train}        in a recipe
    {source: hf, path: nlphuji/flickr30k, split: test, columns: {image: image, captions: caption}}
"""

from __future__ import annotations

import re
from functools import partial
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from visgraft.data.grouping import RowSource
from visgraft.data.readers.row_formats import content_of_row
from visgraft.data.readers.rows import Rows
from visgraft.data.readers.splits import (
    check_undivided,
    find_name,
    not_there,
    parse_split,
    rows_of_split,
    synonyms,
    usual_name,
)
from visgraft.data.readers.tables import DatasetRows, DatasetStream, ParquetRows, label_names, with_names, write_parquet
from visgraft.data.row_streams import SampleStream
from visgraft.data.sample import Source
from visgraft.disk_cache import cache_folder
from visgraft.errors import ConfigError, DataError, MissingAssetError

# what `datasets` says of a split that is not there: of a dataset, and of a stream
_UNKNOWN_SPLIT = re.compile(r"Unknown split|Bad split")


def read(
    path: Path | None,
    *,
    split: str,
    name: str | None = None,
    revision: str | None = None,
    columns: dict[str, str] | None = None,
    prompt: str = "",
    images: str | None = None,
    streaming: bool = False,
    take: int | None = None,
) -> Source | SampleStream:
    """Return the rows of a split.

    name: the dataset's configuration. images: the folder of image files that rows name.
    Raises MissingAssetError where the dataset cannot be had, ConfigError for take without streaming.
    """
    if path is None:
        raise MissingAssetError("hf: path: not set; give the dataset's name on the Hub, or a folder of save_to_disk")
    if take is not None and not streaming:
        raise ConfigError(
            f"hf: got take {take} without streaming: true; take bounds what is read off a stream, `limit` the samples "
            "of any source"
        )
    wanted = {"path": str(path.expanduser() if _is_saved(path) else path), "name": name, "revision": revision}
    folder = None if images is None else Path(images).expanduser()
    read_row = partial(content_of_row, columns=columns, prompt=prompt)
    if streaming and take is None:
        return SampleStream(DatasetStream(_load_stream(wanted, split=split), name=str(path)), read_row, folder)
    rows = _rows(wanted, split=split) if take is None else ParquetRows(_take(wanted, split=split, take=take))
    if not len(rows):
        raise DataError(f"hf: {path} split {split!r} holds no samples")
    return RowSource(rows, folder=folder, read_row=read_row)


def _rows(wanted: dict[str, Any], *, split: str) -> Rows:
    """Open a dataset whole; what `save_to_disk` wrote is divided here, all else by `datasets` itself."""
    path = Path(wanted["path"])
    if _is_saved(path):
        return rows_of_split(split, reader="hf", open_named=lambda name: _saved_rows(path, name))
    dataset = _load(wanted, split=split)
    return DatasetRows(dataset, name=wanted["path"])


def _is_saved(path: Path) -> bool:
    """Say whether `save_to_disk` wrote a folder, or the folders in it."""
    path = path.expanduser()
    return any((path / name).is_file() for name in ("dataset_dict.json", "state.json")) or bool(_saved_splits(path))


def _saved_splits(path: Path) -> list[str]:
    if not path.is_dir():
        return []
    return sorted(folder.name for folder in path.iterdir() if (folder / "state.json").is_file())


def _saved_rows(path: Path, split: str) -> Rows:
    import datasets

    folder = path
    if not (path / "state.json").is_file():
        there = _saved_splits(path)
        name = find_name(split, there)
        if name is None:
            raise not_there(split, there, reader="hf", where=path)
        folder = path / name
    try:
        dataset = datasets.load_from_disk(str(folder))
    except MemoryError:
        raise
    except Exception as error:  # what describes a dataset may be damaged in every way there is
        raise DataError(f"hf: {folder} cannot be read ({' '.join(str(error).split())[:200]}); save it again") from error
    if folder == path and usual_name(str(dataset.split or "")) != usual_name(split):
        check_undivided(split, path, reader="hf")
    return DatasetRows(dataset, name=str(path), files=_saved_files(dataset, path))


def _load(wanted: dict[str, Any], *, split: str, streaming: bool = False) -> Any:
    """Load a split by the name that the dataset has for it; slices are those of `datasets`."""
    import datasets

    parse_split(split, reader="hf")
    first: Exception | None = None
    for spelling in _spellings(split):
        try:
            return datasets.load_dataset(**wanted, split=spelling, streaming=streaming)
        except MemoryError:
            raise
        except Exception as error:  # the library and the files of a dataset fail in every way there is
            first = first or error
            if not (isinstance(error, ValueError) and _UNKNOWN_SPLIT.search(str(error))):
                break  # another name of the split would not help
    cause = first.__cause__ if first is not None and first.__cause__ is not None else first
    reason = " ".join(str(cause).split())[:300].rstrip(".")
    raise MissingAssetError(
        f"hf: the dataset {wanted['path']} (name {wanted['name']}, split {split}) cannot be loaded: "
        f"{reason}. Check path, name and split; a dataset with a loading script must be exported first"
    ) from first


def _spellings(split: str) -> list[str]:
    """Return a split as it was written, and with the other names of its parts."""
    found = [split]
    for part in parse_split(split, reader="hf"):
        for other in synonyms(part.name)[1:]:
            found.append(re.sub(rf"(?<![\w.-]){re.escape(part.name)}(?![\w.-])", other, split))
    return found


def _load_stream(wanted: dict[str, Any], *, split: str) -> Any:
    """Load a stream; a slice in rows from its beginning is taken, one that needs its length is refused."""
    [part, *more] = parse_split(split, reader="hf")
    if more or part.is_percent or any(bound is not None and bound < 0 for bound in (part.start, part.stop)):
        raise ConfigError(
            f"hf: split: got {split!r} with streaming: true; a stream's length is not known, so take one split of it, "
            "or rows from its beginning, such as train[:10000] or train[10000:]"
        )
    stream = _load(wanted, split=part.name, streaming=True)
    if part.stop is not None:
        stream = stream.take(part.stop)
    return stream.skip(part.start) if part.start else stream


def _saved_files(dataset: Any, path: Path) -> list[Path]:
    """Return the files of a folder of save_to_disk; those of the library's cache may be made again at any time."""
    files = [Path(cached["filename"]) for cached in dataset.cache_files]
    return [file for file in files if file.is_relative_to(path.expanduser().absolute())]


def _take(wanted: dict[str, Any], *, split: str, take: int) -> list[Path]:
    """Keep the first rows of a stream as a parquet file, images as they are stored."""
    key = ({"path": wanted["path"], "name": wanted["name"], "split": split, "revision": wanted["revision"]}, take)
    kept = cache_folder() / "streams" / f"{sha256(repr(key).encode()).hexdigest()[:32]}.parquet"
    if not kept.is_file():
        stream = _load_stream(wanted, split=split).decode(False)
        labels, schema = {}, None
        if stream.features is not None:
            labels, schema = label_names(stream.features), stream.features.arrow_schema
            for column in labels:
                schema = schema.set(schema.get_field_index(column), pa.field(column, pa.string()))
        write_parquet(kept, (with_names(dict(row), labels) for row in islice(stream, take)), schema=schema)
    return [kept]
