"""Read WebDataset shards: tar files whose members 000.jpg, 000.json, 000.txt are one sample.

In:  a tar, a folder of tars, a glob (shards/*.tar) or a range (train-{000..127}.tar). `json` may be of any usual format
     (row_formats.py) or hold a caption; else `txt` (or `caption`) is the caption.
Out: one sample per member name (per image with `group: content`); images stay in the tar until they are opened.

Tars are indexed once, then read in any order: a shuffled epoch needs no buffer and a resumed run no replay. With
`streaming: true` there is no index: tars are read from beginning to end, a window of samples at a time (windows.py).

    {source: webdataset, path: "~/cc3m/train-{0000..0331}.tar"}                     in a recipe
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from visgraft.data.grouping import RowSource
from visgraft.data.images.opening import FilePart
from visgraft.data.readers.row_formats import Content, content_of_row
from visgraft.data.readers.rows import Row
from visgraft.data.readers.tars import TarRows, TarStream, expand_paths
from visgraft.data.row_streams import SampleStream
from visgraft.data.sample import Source
from visgraft.errors import BadSampleError, DataError, MissingAssetError

_TEXT_MEMBERS = ("txt", "text", "caption")
_IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "avif", "jp2", "img")


def read(
    path: Path | None,
    *,
    split: str,
    prompt: str = "",
    columns: dict[str, str] | None = None,
    streaming: bool = False,
) -> Source | SampleStream:
    """Return the samples of all shards; a path that holds {split} gets the split's name in its place.

    prompt: the text in front of a caption. columns: {key of a format: key of the json}. streaming: no index.
    Raises MissingAssetError without shards, DataError where one is no tar.
    """
    if path is None:
        raise MissingAssetError(
            "webdataset: path: not set; name a tar, a folder of tars, a glob or name-{000..127}.tar"
        )
    tars = expand_paths(str(path).replace("{split}", split))
    read_row = partial(_content, prompt=prompt, columns=columns)
    if streaming:
        return SampleStream(TarStream(tars), read_row=read_row)
    rows = TarRows(tars)
    if not len(rows):
        raise DataError(f"webdataset: {path} holds no samples")
    return RowSource(rows, read_row=read_row)


def _content(row: Row, *, prompt: str, columns: dict[str, str] | None) -> Content:
    parts = [value for key, value in row.items() if key.rpartition(".")[2] in _IMAGE_SUFFIXES]
    described = {} if row.get("json") is None else dict(row["json"])
    caption = next((row[key] for key in _TEXT_MEMBERS if key in row), None)
    if not any(isinstance(part, FilePart) for part in parts):
        raise BadSampleError("sample has no image member")
    try:
        found = content_of_row({**described, "images": parts, "image": None}, prompt=prompt, columns=columns)
    except BadSampleError:
        if caption is None:
            raise
        found = content_of_row({"text": caption}, prompt=prompt)
    return Content(parts, found.dialogs, str(row["__key__"]))
