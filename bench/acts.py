"""How many files and functions run in five acts: opening a run, a training step, a loss, a sample, an answer.

    python bench/acts.py                          # a small table
    python bench/acts.py --json > acts.json       # every file and function by name
    python bench/acts.py --baseline acts.json     # the table, each figure beside that of an earlier count

What is counted: the functions of the package that are called at least once during the act, in any thread, and the
files that define them. Comprehensions and lambdas belong to the function around them. Data are read in the same process
(`num_workers: 0`), so that nothing is done out of sight. Each act but the opening has run once before it is counted:
what is set up only the first time belongs to no act.

Why: whoever wants to understand an act reads these files. Fewer is better where what is one thing stands in one place;
a call that is hidden, or a file that holds two things, would lower the count and make the reading longer.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "visgraft"
sys.path.insert(0, str(ROOT))  # for the tiny pair and data of the tests

ACTS = ("opening a run", "a training step", "a loss", "a sample", "an answer")
Functions = dict[str, list[str]]  # file -> its functions that ran


@contextmanager
def watch() -> Iterator[Functions]:
    """Note which functions of the package run inside the block, in this thread and in those that it starts."""
    seen: set[tuple[str, str]] = set()
    prefix = f"{PACKAGE}/"

    def note(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(prefix) and not code.co_name.startswith("<"):
            seen.add((code.co_filename.removeprefix(prefix), code.co_qualname))

    found: Functions = {}
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield found
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
        by_file = defaultdict(list)
        for file, function in sorted(seen):
            by_file[file].append(function)
        found.update(by_file)


def count_acts(folder: Path) -> dict[str, Functions]:
    """Run the five acts with a tiny pair and tiny data that are made in an empty folder."""
    from tests.training.tiny import tiny_recipe
    from visgraft.config import load_recipe
    from visgraft.data.sample import Sample, Turn
    from visgraft.inference import answer
    from visgraft.training.loop import train_step
    from visgraft.training.progress import make_progress
    from visgraft.training.setup import open_session
    from visgraft.training.steps import load_steps

    recipe = load_recipe(tiny_recipe(folder, num_workers=0))
    with make_progress(show=False) as progress:
        with watch() as opening:
            session = open_session(recipe, folder=folder / "run", progress=progress)
        steps = load_steps(session.planner, session.state.position, epochs=recipe.train.epochs, settings=session.loader)
        train_step(session, steps)
        with watch() as step:
            train_step(session, steps)
    with watch() as loss:
        session.model.loss(session.filler)
    with watch() as sample:
        one = session.planner.sources[0]
        session.processor.collate([one])
    question = Sample(images=one.images, dialogs=[[Turn("what?", "")]])
    answer(session.model, session.processor, [question], max_new_tokens=2)
    with watch() as answering:
        answer(session.model, session.processor, [question], max_new_tokens=2)
    return dict(zip(ACTS, (opening, step, loss, sample, answering), strict=True))


def summarise(acts: dict[str, Functions]) -> dict[str, dict[str, int]]:
    """Count files and functions of each act."""
    return {act: {"files": len(found), "functions": sum(map(len, found.values()))} for act, found in acts.items()}


def as_table(now: dict[str, dict[str, int]], before: dict[str, dict[str, int]] | None = None) -> str:
    """Write the counts as a Markdown table; with a baseline, each beside what it was: `41 -> 34`."""
    lines = ["| act | files | functions |", "| --- | ---: | ---: |"]
    for act, counts in now.items():
        cells = [
            str(number) if before is None else f"{before[act][kind]} -> {number}" for kind, number in counts.items()
        ]
        lines.append(f"| {act} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def main() -> None:
    """Count, and print the table or the values."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print counts and names as JSON")
    parser.add_argument("--baseline", type=Path, metavar="FILE", help="what --json printed earlier")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        acts = count_acts(Path(folder))
    counts = summarise(acts)
    if arguments.json:
        values: dict[str, Any] = {act: {**counts[act], "by_file": found} for act, found in acts.items()}
        sys.stdout.write(json.dumps(values, indent=2) + "\n")
        return
    baseline = None if arguments.baseline is None else json.loads(arguments.baseline.read_text())
    sys.stdout.write(as_table(counts, baseline) + "\n")


if __name__ == "__main__":
    main()
