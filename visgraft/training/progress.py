"""What a person sees of a run: a live display in a terminal, plain lines elsewhere.

In: what happens, as it happens. Out: text on standard error.

    with make_progress() as progress:
        progress.begin(run.folder, rows=parts_table(model, report), notes=[])
        progress.step(record, fraction=0.4)
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from visgraft.model.trainable import PartRow

LINE_EVERY_S = 10.0  # between plain lines
PLAIN_WIDTH = 120  # characters, where no terminal says how wide it is
WINDOW = 20  # steps over which speeds are averaged


def parts_as_table(rows: Sequence[PartRow]) -> Table:
    """Draw the table of parts."""
    table = Table(box=None, pad_edge=False)
    for name, justify in [("part", "left"), ("trains", "left"), ("parameters", "right"), ("trained", "right"),
                          ("dtype", "left"), ("learning rate", "right"), ("notes", "left")]:  # fmt: skip
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for row in rows:
        rate = "" if row.learning_rate is None else f"{row.learning_rate:g}"
        counts = (f"{row.num_parameters:,}", f"{row.num_trainable:,}")
        table.add_row(row.part, row.mode, *counts, row.dtype, rate, "\n".join(row.notes))
    return table


class TrainProgress:
    """Show a run: where it stands, how fast it is, how long it takes yet."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), console=console
        )
        self._task = self._bar.add_task("preparing", total=1.0)
        self._recent: deque[tuple[float, float, Mapping[str, Any]]] = deque(maxlen=WINDOW)
        self._last_line = float("-inf")

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self._bar.stop()

    def begin(self, folder: Path, *, rows: Sequence[PartRow], notes: Sequence[str]) -> None:
        """Show what will train, and where the run is kept."""
        self.console.print(parts_as_table(rows))
        for note in notes:
            self.say(note)
        self.say(f"run: {folder}")

    def step(self, record: Mapping[str, Any], *, fraction: float) -> None:
        """Show a step; `fraction` of the run is done."""
        now = time.monotonic()
        self._recent.append((now - record["seconds"], fraction, record))
        text = self._describe(now, fraction)
        if self.console.is_terminal:
            self._bar.update(self._task, completed=fraction, description=text)
        elif now - self._last_line >= LINE_EVERY_S or fraction >= 1.0:
            self._last_line = now
            self.say(text)

    def validated(self, record: Mapping[str, Any]) -> None:
        """Show a validation."""
        text = f"step {record['step']}: validation loss {record['validation_loss']:.4f}"
        if record.get("exact_match") is not None:
            text += f", exact match {record['exact_match']:.1%}"
        self.say(text)

    def say(self, text: str) -> None:
        """Show a line."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _describe(self, now: float, fraction: float) -> str:
        record = self._recent[-1][2]
        elapsed = max(now - self._recent[0][0], 1e-9)
        samples, tokens = (sum(r[key] for _, _, r in self._recent) for key in ("samples", "supervised_tokens"))
        text = f"step {record['step']}  loss {record['loss']:.4f}  {samples / elapsed:.1f} samples/s"
        text += f"  {tokens / elapsed:.0f} supervised tokens/s"
        sources = record.get("sources", {})
        if len(sources) > 1:
            text += "  epochs: " + ", ".join(f"{name} {_epochs(seen)}" for name, seen in sources.items())
        gained = fraction - self._recent[0][1]
        if gained > 0:  # of the steps behind the first of the window
            since_first = max(now - self._recent[0][0] - self._recent[0][2]["seconds"], 0.0)
            text += f"  {_clock((1.0 - fraction) * since_first / gained)} left"
        return text


def make_progress(*, show: bool = True) -> TrainProgress:
    """Make the display for standard error; `show=False` (and every process but the first) shows nothing."""
    console = Console(stderr=True, quiet=not show)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    return TrainProgress(console)


def _epochs(seen: Mapping[str, Any]) -> str:
    return f"{seen['texts']:,} texts" if seen["epochs"] is None else f"{seen['epochs']:.2f}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
