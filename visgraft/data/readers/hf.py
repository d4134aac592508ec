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

from functools import partial
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from visgraft.data.grouping import RowSource
from visgraft.data.readers.row_formats import content_of_row
from visgraft.data.readers.rows import Rows
from visgraft.data.readers.tables import DatasetRows, DatasetStream, ParquetRows, label_names, with_names, write_parquet
from visgraft.data.row_streams import SampleStream
from visgraft.data.sample import Source
from visgraft.disk_cache import cache_folder
from visgraft.errors import ConfigError, DataError, MissingAssetError


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
    wanted = {"path": str(path), "name": name, "split": split, "revision": revision}
    folder = None if images is None else Path(images).expanduser()
    read_row = partial(content_of_row, columns=columns, prompt=prompt)
    if streaming and take is None:
        return SampleStream(DatasetStream(_load(wanted, streaming=True), name=str(path)), read_row, folder)
    rows: Rows
    if take is None:
        dataset = _load(wanted, streaming=False)
        rows = DatasetRows(dataset, name=str(path), files=_saved_files(dataset, path))
    else:
        rows = ParquetRows(_take(wanted, take=take))
    if not len(rows):
        raise DataError(f"hf: {path} split {split!r} holds no samples")
    return RowSource(rows, folder=folder, read_row=read_row)


def _load(wanted: dict[str, Any], *, streaming: bool) -> Any:
    import datasets

    path = Path(wanted["path"])
    try:
        if (path / "dataset_dict.json").is_file():
            return datasets.load_from_disk(str(path))[wanted["split"]]
        if (path / "state.json").is_file():
            return datasets.load_from_disk(str(path))
        return datasets.load_dataset(**wanted, streaming=streaming)
    except (OSError, ValueError, RuntimeError, LookupError) as error:
        reason = " ".join(str(error).split())[:300]
        raise MissingAssetError(
            f"hf: the dataset {wanted['path']} (name {wanted['name']}, split {wanted['split']}) cannot be loaded: "
            f"{reason}. Check path, name and split; a dataset with a loading script must be exported first"
        ) from error


def _saved_files(dataset: Any, path: Path) -> list[Path]:
    """Return the files of a folder of save_to_disk; those of the library's cache may be made again at any time."""
    files = [Path(cached["filename"]) for cached in dataset.cache_files]
    return [file for file in files if file.is_relative_to(path.expanduser().absolute())]


def _take(wanted: dict[str, Any], *, take: int) -> list[Path]:
    """Keep the first rows of a stream as a parquet file, images as they are stored."""
    kept = cache_folder() / "streams" / f"{sha256(repr((wanted, take)).encode()).hexdigest()[:32]}.parquet"
    if not kept.is_file():
        stream = _load(wanted, streaming=True).decode(False)
        labels, schema = {}, None
        if stream.features is not None:
            labels, schema = label_names(stream.features), stream.features.arrow_schema
            for column in labels:
                schema = schema.set(schema.get_field_index(column), pa.field(column, pa.string()))
        write_parquet(kept, (with_names(dict(row), labels) for row in islice(stream, take)), schema=schema)
    return [kept]
