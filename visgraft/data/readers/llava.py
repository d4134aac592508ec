"""Read LLaVA JSON: conversations between human and gpt, with `<image>` somewhere in the text.

In:  a .json list or .jsonl, or a folder that holds {split}.json; images relative to `images`, else to the file:
     {"id": "1", "image": "coco/1.jpg", "conversations": [{"from": "human", "value": "<image>\nWhat is it?"},
                                                           {"from": "gpt", "value": "A cat."}]}
     `image` may be a list, or be left out: text only.
Out: one sample per image (or list of images); each row is one dialog of its turns.

    {source: llava, path: llava_v1_5_mix665k.json, images: ~/llava/images}          in a recipe
"""

from __future__ import annotations

from pathlib import Path

from visgraft.data.readers.parquet import form_source
from visgraft.data.sample import Source


def read(path: Path | None, *, split: str, images: str | None = None) -> Source:
    """Return the rows of a split; raises MissingAssetError without files, DataError for files of another kind."""
    return form_source(path, split=split, reader="llava", images=images)
