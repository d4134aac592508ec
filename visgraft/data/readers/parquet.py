"""Read parquet files (JSON Lines and CSV too) whose rows are of any usual form.

In:  a file, or a folder with {split}.parquet, {split}-*.parquet, data/{split}-*.parquet or {split}/*.parquet. What a
     row holds is told by its columns (see forms.py), or said: columns: {image: picture, question: q, answer: label}.
     What `visgraft data prepare` wrote is read so, too.
Out: one sample per image (or list of images) with the dialogs of all its rows.

    {source: parquet, path: ~/data/vqa, columns: {image: img, question: q, answer: a}}      in a recipe
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from visgraft.data.grouping import RowSource
from visgraft.data.readers.files import ALL_SUFFIXES, open_split
from visgraft.data.readers.row_formats import content_of_row
from visgraft.data.sample import Source

_FIRST_PARQUET = (".parquet", *(suffix for suffix in ALL_SUFFIXES if suffix != ".parquet"))


def read(
    path: Path | None,
    *,
    split: str,
    images: str | None = None,
    columns: dict[str, str] | None = None,
    prompt: str = "",
) -> Source:
    """Return the rows of a split.

    images: the folder of image files that rows name. columns: {key of a form: column of the file}. prompt: the text
    in front of a caption.
    Raises MissingAssetError without files, DataError where they cannot be read.
    """
    rows = open_split(path, split=split, reader="parquet", suffixes=_FIRST_PARQUET)
    read_row = partial(content_of_row, columns=columns, prompt=prompt)
    return RowSource(rows, folder=image_folder(path, images=images), read_row=read_row)


def form_source(path: Path | None, *, split: str, reader: str, images: str | None) -> Source:
    """Return the rows of a split, all of the one form that is named like its reader."""
    rows = open_split(path, split=split, reader=reader)
    return RowSource(rows, folder=image_folder(path, images=images), read_row=partial(content_of_row, form=reader))


def image_folder(path: Path | None, *, images: str | None) -> Path | None:
    """Return the folder that relative image paths count from: `images` (beside the path, or in full) or the path's."""
    folder = path.parent if path is not None and path.is_file() else path
    if images is None:
        return folder
    given = Path(images).expanduser()
    return folder / given if folder is not None and (folder / given).is_dir() else given
