"""Votes on pairs of answers: a file that grows by a line a vote, and what they add up to.

In: votes as they come, those of `votes.jsonl`. Out: a tally for each pair, with a 95 % interval.

    votes = Votes(Path("votes.jsonl"))
    votes.add({"first": "my-run", "second": "other-run", "winner": "first", ...})
    votes.tally()         # [{"first": "my-run", "second": "other-run", "wins": [1, 0], "ties": 0, ...}]
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visgraft.atomic import append_record, read_records
from visgraft.metrics.intervals import wilson


class Votes:
    """The votes of one file; several threads may add."""

    def __init__(self, path: Path) -> None:
        """Name the file; it is made with the first vote.

        Raises:
            CheckpointError: it is there and holds something else.
        """
        self._path = path.expanduser().absolute()
        self._lock = threading.Lock()
        self.tally()

    def add(self, vote: Mapping[str, Any]) -> None:
        """Add a vote: `first` and `second`, the two by name, in the order of their names; `winner`: first, second,
        tie or both bad.

        Raises:
            DiskError: the disk took no more; the file is as it was.
        """
        with self._lock:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            append_record(self._path, vote)

    def tally(self) -> list[dict[str, Any]]:
        """Add up, for each pair: wins, ties, and the share of the first among the votes that chose one of the two.

        Raises:
            CheckpointError: a line is no record.
        """
        with self._lock:
            records = [record for _, record in read_records(self._path)]
        pairs: dict[tuple[str, str], dict[str, int]] = {}
        for record in records:
            counts = pairs.setdefault((str(record.get("first")), str(record.get("second"))), {})
            winner = str(record.get("winner"))
            counts[winner] = counts.get(winner, 0) + 1
        return [_told(*pair, counts) for pair, counts in sorted(pairs.items())]


def _told(first: str, second: str, counts: Mapping[str, int]) -> dict[str, Any]:
    wins = [counts.get("first", 0), counts.get("second", 0)]
    told: dict[str, Any] = {"first": first, "second": second, "wins": wins}
    told |= {"ties": counts.get("tie", 0), "both_bad": counts.get("both bad", 0)}
    if sum(wins):
        low, high = wilson(wins[0], sum(wins))
        told |= {"share": wins[0] / sum(wins), "low": low, "high": high}
    return told
