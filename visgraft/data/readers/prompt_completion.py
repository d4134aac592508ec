"""Read prompts and completions as trl writes them.

In:  .jsonl, .json or .parquet, a file or a folder that holds {split}.jsonl, ...:
     {"images": ["a.jpg"], "prompt": "What is it?", "completion": "A cat."}
     prompt and completion are texts, or lists of messages.
Out: one sample per image (or list of images); each row is one dialog.

    {source: prompt_completion, path: pairs.jsonl, images: ~/photos}                in a recipe
"""

from __future__ import annotations

from pathlib import Path

from visgraft.data.readers.parquet import form_source
from visgraft.data.sample import Source


def read(path: Path | None, *, split: str, images: str | None = None) -> Source:
    """Return the rows of a split; raises MissingAssetError without files, DataError for files of another kind."""
    return form_source(path, split=split, reader="prompt_completion", images=images)
