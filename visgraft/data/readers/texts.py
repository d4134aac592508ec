"""Read rows of images and texts as The Cauldron and FineVision hold them.

In:  .parquet, .jsonl or .json, a file or a folder that holds {split}-*.parquet, ...:
     {"images": [{"bytes": ..., "path": null}], "texts": [{"user": "What is it?", "assistant": "A cat."}, ...]}
Out: one sample per row or image; each text is a dialog of its own. `dialogs: conversation` makes one chat of a row.

    {source: texts, path: ~/cauldron/ai2d}                                          in a recipe
    {source: hf, path: HuggingFaceM4/the_cauldron, name: ai2d}                      the same from the Hub
"""

from __future__ import annotations

from pathlib import Path

from visgraft.data.readers.parquet import form_source
from visgraft.data.sample import Source


def read(path: Path | None, *, split: str, images: str | None = None) -> Source:
    """Return the rows of a split; raises MissingAssetError without files, DataError for files of another kind."""
    return form_source(path, split=split, reader="texts", images=images)
