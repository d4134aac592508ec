"""What the user sees of a training: where it stands, how fast it is, how long it still takes.

In: what happens, as it happens. Out: text on standard error, a bar in a terminal.

    with make_progress() as progress:
        progress.begin(run.folder, table=parts_as_table(rows), notes=[])
        progress.step(record, fraction=0.4)
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType

from visgraft.metrics.score_names import score_in_words
from visgraft.reporting.progress import LINE_EVERY_S, Display, error_console

VALIDATION_KEYS = ("step", "validation_loss", "validation_loss_per_character")  # every other key is a score
BESIDE_BAR = 10  # columns of the share and what is between
WINDOW = 20  # steps over which speeds are averaged


class TrainProgress(Display):
    """Show a training: where it stands, how fast it is, how long it still takes."""

    def __init__(self, console: Console) -> None:
        super().__init__(console, is_kept=True)
        self._task = self.bars.add_task("preparing", total=1.0, unit=None)
        self._recent: deque[tuple[float, float, Mapping[str, Any]]] = deque(maxlen=WINDOW)
        self._shown_at = float("-inf")

    def begin(self, folder: Path, *, table: RenderableType, notes: Sequence[str]) -> None:
        """Show what will train, and where the run is kept."""
        self.console.print(table)
        for note in notes:
            self.say(note)
        self.say(f"run: {folder}")

    def step(self, record: Mapping[str, Any], *, fraction: float) -> None:
        """Show a step; `fraction` of the run is done."""
        now = time.monotonic()
        self._recent.append((now - record["seconds"], fraction, record))
        text = self._describe(now, fraction)
        if self.is_live:
            self.bars.update(self._task, completed=fraction, description=text)
        elif now - self._shown_at >= LINE_EVERY_S or fraction >= 1.0:
            self._shown_at = now
            self.say(text)

    def validated(self, record: Mapping[str, Any]) -> None:
        """Show a validation."""
        loss = record["validation_loss"]
        measured = "not measured, as no sample can be used" if loss is None else f"{loss:.4f}"
        text = f"step {record['step']}: validation loss {measured}"
        for name, value in record.items():
            if name not in VALIDATION_KEYS and value is not None:
                text += f", {name.replace('_', ' ')} {score_in_words(name, value)}"
        self.say(text)

    def _describe(self, now: float, fraction: float) -> str:
        record = self._recent[-1][2]
        elapsed = max(now - self._recent[0][0], 1e-9)
        samples, tokens = (sum(r[key] for _, _, r in self._recent) for key in ("samples", "supervised_tokens"))
        parts = [f"step {record['step']}", f"loss {record['loss']:.4f}", f"{samples / elapsed:.1f} samples/s"]
        parts.append(f"{tokens / elapsed:.0f} supervised tokens/s")
        sources = record.get("sources", {})
        if len(sources) > 1:
            parts.append("epochs: " + ", ".join(f"{name} {_epochs(seen)}" for name, seen in sources.items()))
        gained = fraction - self._recent[0][1]
        left = []
        if gained > 0:  # of the steps behind the first of the window
            since_first = max(now - self._recent[0][0] - self._recent[0][2]["seconds"], 0.0)
            left = [f"{_clock((1.0 - fraction) * since_first / gained)} left"]
        if self.console.is_terminal:  # a narrow one shows less of how fast, but when it ends
            room = self.console.width - self.bar_width - BESIDE_BAR
            while len(parts) > 2 and len("  ".join([*parts, *left])) > room:
                parts.pop()
        return "  ".join([*parts, *left])


def make_progress(*, show: bool = True) -> TrainProgress:
    """Make the display of a training for standard error; `show=False` shows nothing."""
    return TrainProgress(error_console(is_shown=show))


def _epochs(seen: Mapping[str, Any]) -> str:
    return f"{seen['texts']:,} texts" if seen["epochs"] is None else f"{seen['epochs']:.2f}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
