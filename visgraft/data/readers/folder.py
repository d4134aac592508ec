"""Read a folder of images with a metadata.jsonl that says, line by line, what belongs to which image.

In:  DIR/metadata.jsonl, or DIR/{split}/metadata.jsonl; file names are relative to it. One object a line:
     {"file_name": "a.jpg", "text": "a cat on a sofa"}                           a caption
     {"file_name": "a.jpg", "question": "What is it?", "answer": "A cat."}       or prompt and answer
     {"file_names": ["1.jpg", "2.jpg"], "dialogs": [[{"prompt": "...", "answer": "..."}, {...}], ...]}
     answers may bring "references": ["a cat", ...], other accepted answers, for scores.
Out: one sample per image (or list of images), with the dialogs of all its lines.

    {source: folder, path: ~/photos}                                       in a recipe
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from visgraft.data.sample import Sample, Source, Turn, turn_from_row
from visgraft.errors import BadSampleError, DataError, MissingAssetError

METADATA = "metadata.jsonl"
_TEXT_KEYS = "text, question and answer, prompt and answer, or dialogs"


def read(path: Path | None, *, split: str) -> Source:
    """Return the folder's samples in order of their first line; a bad line is a bad sample of its own.

    Only places in the file are kept in memory. Raises MissingAssetError without the file, DataError without a line.
    """
    if path is None:
        raise MissingAssetError(f"folder: path: not set; name the folder that holds {METADATA}")
    metadata = _metadata_file(path, split=split)
    source = FolderWithMetadata(metadata)
    if not len(source):
        raise DataError(f"folder: {metadata} holds no samples")
    return source


class FolderWithMetadata:
    """Hold where the lines of each image stand in the file; see Source."""

    def __init__(self, metadata: Path) -> None:
        self._metadata = metadata
        self._groups: list[array[int]] = []  # per sample: offset, line number, offset, line number, ...
        by_images: dict[tuple[str, ...], array[int]] = {}
        for offset, number, line in _lines(metadata):
            group = array("q")
            try:
                row = _parse(line)
                list(_dialogs(row))
                names = _file_names(row)
                group = by_images.setdefault(names, group) if names else group
            except BadSampleError:
                pass  # it stands alone, and asking for it gives the reason
            if not group:
                self._groups.append(group)
            group.extend((offset, number))

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, index: int) -> Sample:
        group = self._groups[index]
        with self._metadata.open("rb") as file:
            rows = []
            for offset in group[::2]:
                file.seek(offset)
                rows.append(_parse(file.readline()))
        names = _file_names(rows[0])
        dialogs = [dialog for row in rows for dialog in _dialogs(row)]
        images = [self._metadata.parent / name for name in names]
        return Sample(images=images, dialogs=dialogs, id="+".join(names) or f"line {group[1]}")

    def where(self, index: int) -> str:
        """Say on which lines it stands."""
        numbers = self._groups[index][1::2]
        return f"{self._metadata.name} line {', '.join(map(str, numbers))}"


def _metadata_file(path: Path, *, split: str) -> Path:
    if (path / split / METADATA).is_file():
        return path / split / METADATA
    if not (path / METADATA).is_file():
        raise MissingAssetError(
            f"folder: there is no {METADATA} in {path} or {path / split}; write one with a line like "
            '{"file_name": "a.jpg", "text": "a cat on a sofa"} per text'
        )
    if split != "train":
        raise DataError(
            f"folder: split: got {split!r}, but {path} has no folder {split}/ with a {METADATA}; "
            f"its only {METADATA} is read as split train, so make a folder for each split or leave split out"
        )
    return path / METADATA


def _lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Yield offset, line number and text of every line that is not blank."""
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield offset, number, line
            offset += len(line)


def _parse(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        raise BadSampleError("line is not JSON") from None
    if not isinstance(row, dict):
        raise BadSampleError("line is not a JSON object")
    return row


def _file_names(row: dict[str, Any]) -> tuple[str, ...]:
    names = row["file_names"] if "file_names" in row else [row.get("file_name")]
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise BadSampleError("line lacks file_name or file_names")
    return tuple(names)


def _dialogs(row: dict[str, Any]) -> Iterator[list[Turn]]:
    match row:
        case {"dialogs": list() as dialogs} if dialogs:
            for dialog in dialogs:
                if not isinstance(dialog, list) or not dialog:
                    raise BadSampleError("dialog is not a list of turns")
                yield [_turn(turn) for turn in dialog]
        case {"text": text}:
            yield [turn_from_row("", text, references=row.get("references", ()))]
        case _:
            yield [_turn(row)]


def _turn(row: object) -> Turn:
    match row:
        case {"question": prompt, "answer": answer, **rest} | {"prompt": prompt, "answer": answer, **rest}:
            return turn_from_row(prompt, answer, references=rest.get("references", ()))
    raise BadSampleError(f"line lacks {_TEXT_KEYS}")
