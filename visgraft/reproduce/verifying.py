"""Check a reproduction that someone hands in: reckon every figure again from its answers and logs; say what differs.

In: its folder; no data, no weights, no GPU. Out: a `Verification`.

    found = verify(Path("hour"))
    found.num_figures, found.num_files, found.differences

Three things are held against each other: the figures that are written, those that the kept files give, and the sums of
these files. What no file proves (hours, memory, joules, the machine, the rows that were found) is what the run wrote.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visgraft.errors import CheckpointError
from visgraft.reproduce.figures import count_figures, differences, figures_of
from visgraft.reproduce.record import MAY_BE_LEFT_OUT, RECORD, read_record
from visgraft.sealed import check_files, read_sealed

NOT_PROVEN = "hours, memory, joules, the machine, versions, revisions and the rows found are as the run wrote them"


@dataclass(frozen=True)
class Verification:
    """What came of a check.

    Attributes:
        folder: that was checked.
        record: what it says of itself.
        num_figures: reckoned again.
        num_files: whose sums were taken.
        left_out: pages and pictures that were not handed in.
        differences: a line for each; none: everything is as it was written.
    """

    folder: Path
    record: dict[str, Any]
    num_figures: int
    num_files: int
    left_out: tuple[str, ...]
    differences: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Give it as plain values."""
        return {
            "folder": str(self.folder),
            "scale": self.record["scale"],
            "figures": self.num_figures,
            "files": self.num_files,
            "left_out": list(self.left_out),
            "differences": list(self.differences),
        }


def verify(folder: Path) -> Verification:
    """Check a reproduction.

    Raises:
        ConfigError: the folder is none, or was not finished.
        CheckpointError: what it says of itself cannot be read.
    """
    record = read_record(folder)
    found: list[str] = []
    again = figures_of(folder, wrong=lambda file, what: found.append(f"{file}: {what}"))
    found += [f"{RECORD}: {line}" for line in differences(record["experiments"], again, "")]
    left_out = []
    for name, sum_of_it in record["files"].items():
        if name.endswith(MAY_BE_LEFT_OUT) and not (folder / name).is_file():
            left_out.append(name)
            continue
        try:
            check_files(folder, {name: sum_of_it})
        except CheckpointError as error:
            found.append(str(error).removeprefix(f"{folder}/"))
    try:
        read_sealed(folder / RECORD)
    except CheckpointError as error:
        found.append(str(error).removeprefix(f"{folder}/"))
    num_files = len(record["files"]) - len(left_out)
    return Verification(folder, record, count_figures(again), num_files, tuple(left_out), tuple(dict.fromkeys(found)))
