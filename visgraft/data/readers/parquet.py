"""Read files whose rows are of a usual format: parquet, JSON Lines, a JSON list or CSV; LLaVA, TRL, The Cauldron.

In:  a file, or a folder with {split}.parquet, {split}-*.parquet, data/{split}-*.parquet or {split}/*.parquet, or the
     same with .jsonl, .json, .csv or .tsv. The format of a row is found by its keys (row_formats.py), or columns says
     which column is what: columns: {image: picture, question: q, answer: label}. What `visgraft data prepare` wrote is
     read so, too.
Out: one sample per image (or list of images) with the dialogs of all its rows.

    {source: parquet, path: ~/data/vqa, columns: {image: img, question: q, answer: a}}      in a recipe

Four more readers take rows of the one format that is called like the reader, and refuse any other row. Images are
relative to the option `images`, else to the file.

    llava: one dialog a row; `image` may be a list, or be left out: text only
        {"id": "1", "image": "coco/1.jpg", "conversations": [{"from": "human", "value": "<image>\nWhat is it?"},
                                                             {"from": "gpt", "value": "A cat."}]}
    messages: one dialog a row, as trl and the chat models write it
        {"images": ["a.jpg"], "messages": [{"role": "user", "content": "What is it?"},
                                           {"role": "assistant", "content": "A cat."}]}
        content is a text or a list of {"type": "text", "text": ...} and {"type": "image"} (the next of `images`, or
        with its own "image", "url", "path" or "base64"). An opening system message is the first turn's instruction.
    prompt_completion: one dialog a row, as trl writes it; prompt and completion are texts, or lists of messages
        {"images": ["a.jpg"], "prompt": "What is it?", "completion": "A cat."}
    texts: each text is a dialog of its own, as The Cauldron and FineVision hold it; `dialogs: conversation` joins them
        {"images": [{"bytes": ..., "path": null}], "texts": [{"user": "What is it?", "assistant": "A cat."}, ...]}

    {source: llava, path: llava_v1_5_mix665k.json, images: ~/llava/images}
    {source: texts, path: ~/cauldron/ai2d}
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from visgraft.data.grouping import ReadRow, RowSource
from visgraft.data.readers.files import ALL_SUFFIXES, open_split
from visgraft.data.readers.row_formats import content_of_row
from visgraft.data.readers.rows import Rows
from visgraft.data.readers.splits import notes_of
from visgraft.data.sample import Source

_FIRST_PARQUET = (".parquet", *(suffix for suffix in ALL_SUFFIXES if suffix != ".parquet"))


def read(
    path: Path | None,
    *,
    split: str,
    images: str | None = None,
    columns: dict[str, str] | None = None,
    prompt: str = "",
    encoding: str | None = None,
    separator: str | None = None,
) -> Source:
    """Return the rows of a split.

    images: the folder of image files that rows name. columns: {key of a format: column of the file}. prompt: the text
    in front of a caption. encoding, separator: of text files, where they are not UTF-8 and not what the header shows.
    Raises MissingAssetError without files, DataError where they cannot be read.
    """
    rows = open_split(
        path, split=split, reader="parquet", suffixes=_FIRST_PARQUET, encoding=encoding, separator=separator
    )
    read_row = partial(content_of_row, columns=columns, prompt=prompt)
    return _source(rows, path, images=images, read_row=read_row)


def read_one_format(
    path: Path | None, *, split: str, reader: str, images: str | None = None, encoding: str | None = None
) -> Source:
    """Return the rows of a split, all of the one format that is called like their reader.

    Raises MissingAssetError without files, DataError for files of another kind.
    """
    rows = open_split(path, split=split, reader=reader, encoding=encoding)
    read_row = partial(content_of_row, row_format=reader)
    return _source(rows, path, images=images, read_row=read_row)


def _source(rows: Rows, path: Path | None, *, images: str | None, read_row: ReadRow) -> RowSource:
    source = RowSource(rows, folder=_image_folder(path, images=images), read_row=read_row)
    source.notes = notes_of(rows)
    return source


def _image_folder(path: Path | None, *, images: str | None) -> Path | None:
    """Return the folder that relative image paths count from: `images` (beside the path, or in full) or the path's."""
    folder = path.parent if path is not None and path.is_file() else path
    if images is None:
        return folder
    given = Path(images).expanduser()
    return folder / given if folder is not None and (folder / given).is_dir() else given
