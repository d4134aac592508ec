"""Read WebDataset shards: tar files whose members 000.jpg, 000.json, 000.txt are one sample.

In:  a tar, a folder of tars, a glob (shards/*.tar) or a range (train-{000..127}.tar). `json` may be of any usual format
     (row_formats.py) or hold a caption; else `txt` (or `caption`) is the caption.
Out: one sample per member name (per image with `group: content`); images stay in the tar until they are opened. Of
     several images of a sample one is used, 000.jpg before 000.mask.png, unless `members` names them.

Tars are indexed once, then read in any order: a shuffled epoch needs no buffer and a resumed run no replay. With
`streaming: true` there is no index: tars are read from beginning to end, a window of samples at a time (windows.py).

    {source: webdataset, path: "~/cc3m/train-{0000..0331}.tar"}                     in a recipe
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from visgraft.data.grouping import RowSource
from visgraft.data.images.opening import FilePart
from visgraft.data.processes import ALONE, Processes
from visgraft.data.readers.row_formats import Content, content_of_row
from visgraft.data.readers.rows import Row
from visgraft.data.readers.splits import parse_split, rows_of_split
from visgraft.data.readers.tars import TarRows, TarStream, first_suffixes, tars_of_split
from visgraft.data.row_streams import SampleStream
from visgraft.data.sample import Source
from visgraft.errors import BadSampleError, ConfigError, DataError, MissingAssetError

_TEXT_MEMBERS = ("txt", "text", "caption")
_IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "avif", "jp2", "img")
_SHOWN_MEMBERS = 6


def read(
    path: Path | None,
    *,
    split: str,
    prompt: str = "",
    columns: dict[str, str] | None = None,
    members: list[str] | None = None,
    streaming: bool = False,
    encoding: str | None = None,
    processes: Processes = ALONE,
) -> Source | SampleStream:
    """Return the samples of all shards; a path that holds {split} gets the split's name in its place.

    prompt: the text in front of a caption. columns: {key of a format: key of the json}. members: the image members of
    a sample, [jpg, mask.png], say; None: one, and that by its plainest suffix. streaming: no index. encoding: of texts
    that are not UTF-8. processes: index the tars together.
    Raises MissingAssetError without shards, DataError where one is no tar or the split cannot be told, ConfigError for
    a slice of a stream.
    """
    if path is None:
        raise MissingAssetError(
            "webdataset: path: not set; name a tar, a folder of tars, a glob or name-{000..127}.tar"
        )
    read_row = partial(_content, prompt=prompt, columns=columns, members=members)
    if streaming:
        parts = parse_split(split, reader="webdataset")
        if not all(part.is_whole for part in parts):
            raise ConfigError(
                f"webdataset: split: got {split!r} with streaming: true; a stream has no length and no slices; "
                "name tars, or leave streaming out"
            )
        tars = [tar for part in parts for tar in tars_of_split(str(path), split=part.name)]
        notes = [] if members is not None else _notes(first_suffixes(tars[0]))
        return SampleStream(TarStream(tars, encoding=encoding), read_row=read_row, notes=notes)

    def open_named(name: str) -> TarRows:
        rows = TarRows(tars_of_split(str(path), split=name), encoding=encoding, processes=processes)
        if not len(rows):
            raise DataError(f"webdataset: {path} holds no samples")
        together.extend(rows.suffixes_together(_is_image))
        return rows

    together: list[str] = []  # image members that some sample has beside others
    source = RowSource(rows_of_split(split, reader="webdataset", open_named=open_named), read_row=read_row)
    if members is None:
        source.notes = _notes(together)
    return source


def _notes(suffixes: Sequence[str]) -> list[str]:
    """Say that samples have several images, of which one is taken."""
    images = list(dict.fromkeys(suffix for suffix in suffixes if _is_image(suffix)))
    if len(images) < 2:
        return []
    return [
        f"samples have several images ({', '.join(images)}); {min(images, key=_rank)} is used where a sample has it; "
        "name others with members: [...]"
    ]


def _is_image(suffix: str) -> bool:
    return suffix.rpartition(".")[2] in _IMAGE_SUFFIXES


def _rank(suffix: str) -> tuple[int, int]:
    """Rank suffixes: plain ones first (jpg before mask.png), then by kind."""
    return suffix.count("."), _IMAGE_SUFFIXES.index(suffix.rpartition(".")[2])


def _content(
    row: Row, *, prompt: str, columns: dict[str, str] | None, members: list[str] | None, texts: bool = True
) -> Content:
    images = _images(row, members=members)
    described = {} if row.get("json") is None else dict(row["json"])
    if not any(isinstance(image, FilePart) for image in images):
        raise BadSampleError(f"sample has no image member (members: {_shown(row)})")
    if not texts:
        return Content(images, [], str(row["__key__"]))
    caption = _caption(row)
    try:
        found = content_of_row({**described, "images": images}, prompt=prompt, columns=columns)
    except BadSampleError:
        if caption is None and described:
            raise
        if caption is None:
            raise BadSampleError(
                f"sample has no text member (members: {_shown(row)}); what stands before the first dot of a name is "
                "the sample, and its members must follow one another"
            ) from None
        found = content_of_row({"text": caption, "images": images}, prompt=prompt)
    return Content(images, found.dialogs, str(row["__key__"]))


def _images(row: Row, *, members: list[str] | None) -> list[object]:
    if members is None:
        there = [suffix for suffix in row if _is_image(suffix)]
        return [row[min(there, key=_rank)]] if there else []
    missing = next((suffix for suffix in members if suffix not in row), None)
    if missing is not None:
        raise BadSampleError(f"sample has no member {missing}")
    return [row[suffix] for suffix in members]


def _caption(row: Row) -> str | None:
    """Return the text member of a sample, by its plain suffix, or the only one there is."""
    plain = next((row[suffix] for suffix in _TEXT_MEMBERS if suffix in row), None)
    if plain is not None:
        return str(plain)
    others = [value for suffix, value in row.items() if suffix.rpartition(".")[2] in _TEXT_MEMBERS]
    return str(others[0]) if len(others) == 1 else None


def _shown(row: Row) -> str:
    names = [suffix for suffix in row if suffix != "__key__"]
    return ", ".join(ascii(name)[1:-1][:40] for name in names[:_SHOWN_MEMBERS]) + (
        ", ..." if len(names) > _SHOWN_MEMBERS else ""
    )
