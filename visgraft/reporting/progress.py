"""What the user sees of long work, on standard error: a bar in a terminal, a plain line now and then elsewhere.

In: what happens, as it happens. Out: text. Every bar of the program is drawn here.

    with working("reading train", total=5000, unit="samples") as advance:
        advance(1)
    with make_progress() as progress:               # of a training
        progress.say("a line above the bar")
        progress.step(record, fraction=0.4)
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

LINE_EVERY_S = 10.0  # between two plain lines about the same work
PLAIN_WIDTH = 120  # characters, where no terminal says how wide it is
WINDOW = 20  # steps over which speeds are averaged


def error_console(*, is_shown: bool = True) -> Console:
    """Make a console of standard error; one that is not shown takes everything and prints nothing."""
    console = Console(stderr=True, quiet=not is_shown)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    return console


class Display:
    """A console with bars, which live while the context lasts, and lines above them.

    Attributes:
        console: where everything is written.
        bars: one task for each piece of work, with its `unit` (None: a share of 1, shown in per cent).
    """

    def __init__(self, console: Console, *, is_kept: bool = False) -> None:
        self.console = console
        columns = (TextColumn("{task.description}"), BarColumn(), _Amount(), _TimeLeft())
        self.bars = Progress(*columns, console=console, transient=not is_kept)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self.bars.stop()

    def say(self, text: str) -> None:
        """Show a line."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def work(
        self, what: str, *, total: int | None, unit: str, is_shown: bool = True
    ) -> Iterator[Callable[[int], None]]:
        """Show how much of long work is done: a bar in a terminal, elsewhere a line every 10 seconds.

        Args:
            what: is done (reading train).
            total: of the work; None where it is not known.
            unit: of what is counted (samples).
            is_shown: False where another process, or the work itself, shows it.

        Yields:
            A function that is called with the number of units done since its last call.
        """
        if not is_shown:
            yield lambda number: None
            return
        task = self.bars.add_task(what, total=total, unit=unit)
        done, shown_at = 0, time.monotonic()

        def advance(number: int) -> None:
            nonlocal done, shown_at
            done += number
            self.bars.advance(task, number)
            if not self.console.is_terminal and time.monotonic() - shown_at >= LINE_EVERY_S:
                shown_at = time.monotonic()
                self.say(f"{what}: {done:,}{'' if total is None else f' of {total:,}'} {unit}")

        try:
            yield advance
        finally:
            self.bars.remove_task(task)


@contextmanager
def working(what: str, *, total: int | None, unit: str, is_shown: bool = True) -> Iterator[Callable[[int], None]]:
    """Show long work that nothing else is shown beside; see `Display.work`."""
    with Display(error_console()) as display, display.work(what, total=total, unit=unit, is_shown=is_shown) as advance:
        yield advance


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
        if self.console.is_terminal:
            self.bars.update(self._task, completed=fraction, description=text)
        elif now - self._shown_at >= LINE_EVERY_S or fraction >= 1.0:
            self._shown_at = now
            self.say(text)

    def validated(self, record: Mapping[str, Any]) -> None:
        """Show a validation."""
        text = f"step {record['step']}: validation loss {record['validation_loss']:.4f}"
        if record.get("exact_match") is not None:
            text += f", exact match {record['exact_match']:.1%}"
        self.say(text)

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
    """Make the display of a training for standard error; `show=False` shows nothing."""
    return TrainProgress(error_console(is_shown=show))


class _Amount(ProgressColumn):
    """How much is done: 3/8 images, or 40%."""

    def render(self, task: Task) -> Text:
        unit = task.fields["unit"]
        if unit is None:
            return Text(f"{task.percentage:>3.0f}%")
        return Text(f"{int(task.completed):,}{'' if task.total is None else f'/{int(task.total):,}'} {unit}")


class _TimeLeft(TimeRemainingColumn):
    """The time left; nothing of a training, whose steps say it."""

    def render(self, task: Task) -> Text:
        return Text() if task.fields["unit"] is None else super().render(task)


def _epochs(seen: Mapping[str, Any]) -> str:
    return f"{seen['texts']:,} texts" if seen["epochs"] is None else f"{seen['epochs']:.2f}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
