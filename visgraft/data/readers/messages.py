"""Read chats as trl and the chat models write them: `messages` with roles, `images` beside or inside them.

In:  .jsonl, .json or .parquet, a file or a folder that holds {split}.jsonl, ...:
     {"images": ["a.jpg"], "messages": [{"role": "user", "content": "What is it?"},
                                        {"role": "assistant", "content": "A cat."}]}
     content is a text or a list of {"type": "text", "text": ...} and {"type": "image"} (the next of `images`, or
     with its own "image", "url", "path" or "base64"). An opening system message is the first turn's instruction.
Out: one sample per image (or list of images); each row is one dialog.

    {source: messages, path: chats.jsonl, images: ~/photos}                         in a recipe
"""

from __future__ import annotations

from pathlib import Path

from visgraft.data.readers.parquet import form_source
from visgraft.data.sample import Source


def read(path: Path | None, *, split: str, images: str | None = None) -> Source:
    """Return the rows of a split; raises MissingAssetError without files, DataError for files of another kind."""
    return form_source(path, split=split, reader="messages", images=images)
