"""Answers kept as they come, so that a call that was killed at any moment goes on where it was.

In: the file of an evaluation and the tag of what the answers depend on. Out: what is known; each new answer one whole
line, at once on its way to the disk; at the end the whole also in the cache, where other evaluations find it.

    with AnswerLog(folder / "answers.jsonl", tag=tag) as log:
        if question.id not in log.known: log.add({"id": question.id, "answer": "red"})
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from visgraft.atomic import append_record, read_records, whole_file
from visgraft.disk_cache import cache_folder
from visgraft.errors import CheckpointError

TAG = "asked"  # the key of a line that says what its answer depends on
KEPT = ("id", "answer", "tokens", "stopped", "error", "no_answer", "measured")  # of a line, for other evaluations


class AnswerLog:
    """What is known of one model's answers under one tag.

    Attributes:
        known: id of a question -> its line, of this file or of the cache.
        num_found: how many were known from the beginning.
    """

    def __init__(self, path: Path, *, tag: str) -> None:
        """Read what is there; lines of other tags are left alone, and a damaged cache counts as none."""
        self.path, self.tag = path, tag
        self.known: dict[str, Mapping[str, Any]] = {}
        self._cached = cache_folder() / "answers" / f"{tag}.jsonl"
        try:
            for _, record in read_records(self._cached):
                self._take(record)
        except CheckpointError:
            self._cached.unlink(missing_ok=True)
        for _, record in read_records(path):
            if record.get(TAG) == tag:
                self._take(record)
        self.num_found = len(self.known)

    def add(self, record: Mapping[str, Any]) -> None:
        """Write a line down. Raises DiskError."""
        append_record(self.path, {**record, TAG: self.tag})
        self._take(record)

    def _take(self, record: Mapping[str, Any]) -> None:
        if isinstance(record.get("id"), str) and (isinstance(record.get("answer"), str) or record.get("measured")):
            self.known[record["id"]] = {key: record[key] for key in KEPT if key in record}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Keep what is new in the cache too, whatever ended the work."""
        if len(self.known) > self.num_found:
            with whole_file(self._cached) as building, building.open("w", encoding="utf-8") as file:
                for record in self.known.values():
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")


def forget_others(path: Path, *, tags: set[str]) -> None:
    """Take the lines of other evaluations out of a file of answers; a torn last line goes with them.

    Raises:
        CheckpointError: a line in the middle is damaged.
    """
    records = [record for _, record in read_records(path)]
    kept = [record for record in records if record.get(TAG) in tags]
    if len(kept) < len(records):
        write_lines(path, kept)


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    """Write a file of lines whole. Raises DiskError."""
    with whole_file(path) as building, building.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
