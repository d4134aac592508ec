"""What the user sees of long work, on standard error: a bar in a terminal or notebook, now and then a line elsewhere.

In: what happens, as it happens. Out: text. Every bar of the program is drawn here.

    with working("reading train", total=5000, unit="samples") as advance:
        advance(1)
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, Self, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from visgraft.notebook import is_notebook
from visgraft.reporting.notebook_bars import NotebookBars

LINE_EVERY_S = 10.0  # between two plain lines about the same work
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # of ASCII and Latin-1, without \t and \n
PLAIN_WIDTH = 120  # characters, where no terminal says how wide it is
LOG_WIDTH = 10_000  # of a line of the log, which nothing wraps
LOG_VARIABLE = "VISGRAFT_LOG"  # quiet: nothing but errors; json: one object a line. `--quiet`, `--log-json` set it


def error_console(*, is_shown: bool = True, level: Literal["info", "error"] = "info") -> Console:
    """Make a console of standard error; one that is not shown takes everything and prints nothing."""
    form = os.environ.get(LOG_VARIABLE)
    if form == "json" and is_shown:
        return Console(file=_JsonLines(sys.stderr, level=level), force_terminal=False, width=LOG_WIDTH)
    is_quiet = not is_shown or (form == "quiet" and level == "info")
    if is_notebook():  # plain lines in the cell's output; bars are drawn apart
        return Console(file=sys.stdout, quiet=is_quiet, width=PLAIN_WIDTH, force_terminal=False, force_jupyter=False)
    console = Console(stderr=True, quiet=is_quiet)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    return console


@dataclass(frozen=True)
class Fitting:
    """Something to print where it fits whole, and what says the same in its place where it does not."""

    wide: RenderableType
    narrow: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        fits = Measurement.get(console, options.update(max_width=LOG_WIDTH), self.wide).maximum <= options.max_width
        yield self.wide if fits else self.narrow


def visible(text: str, *, form: str = "\\x{:02x}") -> str:
    """Show characters that would steer a terminal as Python writes them, new lines and tabs apart."""
    return CONTROL.sub(lambda found: form.format(ord(found[0])), text)


class _JsonLines(io.StringIO):
    """A file whose lines are written on as objects of time, level and message."""

    def __init__(self, file: TextIO, *, level: str) -> None:
        super().__init__()
        self._file, self._level, self._begun = file, level, ""

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            if line.strip():
                now = datetime.now(UTC).isoformat(timespec="milliseconds")
                record = {"time": now, "level": self._level, "message": line.rstrip()}
                self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._file.flush()
        return len(text)


class Display:
    """A console with bars, which live while the context lasts, and lines above them.

    Attributes:
        console: where everything is written.
        bar_width: in columns; narrow terminals have short bars, so that the words stay whole.
        is_live: whether bars are drawn: in a terminal and in a notebook.
        bars: one task for each piece of work, with its `unit` (None: a share of 1, shown in per cent).
    """

    def __init__(self, console: Console, *, is_kept: bool = False) -> None:
        self.console = console
        self.bar_width = min(40, max(8, console.width // 6))
        columns = (TextColumn("{task.description}"), BarColumn(self.bar_width), _Amount(), _TimeLeft())
        in_notebook = is_notebook() and not console.quiet
        self.is_live = console.is_terminal or in_notebook
        self.bars = NotebookBars(console) if in_notebook else Progress(*columns, console=console, transient=not is_kept)

    def __enter__(self) -> Self:
        if self.is_live:
            self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_live:
            self.bars.stop()

    def say(self, text: str) -> None:
        """Show a line."""
        self.console.print(visible(text), markup=False, highlight=False, soft_wrap=True)

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
            if not self.is_live and time.monotonic() - shown_at >= LINE_EVERY_S:
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
