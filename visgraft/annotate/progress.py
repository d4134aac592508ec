"""How far a job is, all processes together: in the terminal, and as `progress.json` beside the parts.

In: what the workers of this call have done. Out: images a second, time left. What other calls have done, on this
machine or another, shows by the parts that are there.

    with Progress(job, is_shown=True) as progress:
        progress.advance(16, worker=0)
        progress.unit_done(labelled, worker=0)
"""

from __future__ import annotations

import datetime
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

from visgraft.annotate.folder import PROGRESS, Done
from visgraft.annotate.job import Job
from visgraft.annotate.labelling import Labelled
from visgraft.reporting.progress import LINE_EVERY_S, Display, error_console

WRITE_EVERY_S = 5.0


@dataclass(frozen=True)
class Standing:
    """How far a job is.

    Attributes:
        images: rows of the input that are done.
        total: rows of the input; None where nothing is known yet.
        is_estimate: the total is reckoned from the shards that are known.
        images_per_second: since the first one of this call, all processes together.
        seconds_left: at that rate.
        errors: rows of the output with an error, of this call.
        is_finished: nothing is left to do.
    """

    images: int
    total: int | None
    is_estimate: bool
    images_per_second: float
    seconds_left: float | None
    errors: int
    is_finished: bool = False

    def as_json(self) -> dict[str, Any]:
        """Give it as `progress.json` holds it."""
        return {
            "images": self.images,
            "total": self.total,
            "total_is_estimate": self.is_estimate,
            "images_per_second": round(self.images_per_second, 3),
            "seconds_left": None if self.seconds_left is None else round(self.seconds_left, 1),
            "errors": self.errors,
            "finished": self.is_finished,
            "updated": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }

    def __str__(self) -> str:
        """Say it in a line."""
        total = "" if self.total is None else f" of {'about ' if self.is_estimate else ''}{self.total:,}"
        rate = f", {self.images_per_second:.1f} a second" if self.images_per_second else ""
        left = "" if self.seconds_left is None or self.is_finished else f", {in_words(self.seconds_left)} left"
        return f"{self.images:,}{total} images{rate}{left}"


class Progress:
    """Keep count while a job is worked on, and show it."""

    def __init__(self, job: Job, *, is_shown: bool) -> None:
        """Begin; `is_shown`: in the terminal too."""
        self.job = job
        self.errors = 0
        self._display = Display(error_console(is_shown=is_shown))
        self._open: dict[int, int] = {}  # rows of the units that are worked on, by worker
        self._done = self._first = job.output.done()
        self._started: float | None = None  # when the first row was done: loading a model is not labelling
        self._shown = self._written = time.monotonic()
        self._redone = 0  # rows of units that were there before
        self._task: Any = None

    def __enter__(self) -> Self:
        self._display.__enter__()
        self._task = self._display.bars.add_task("labelling", total=None, unit="images")
        self._show(self.standing())
        return self

    def __exit__(self, *_: object) -> None:
        """Write how it ended, whatever ended it."""
        self._display.__exit__()
        with suppress(OSError):
            self.refresh()
        self._display.say(f"labelled: {self.standing()}")

    def say(self, text: str) -> None:
        """Show a line above the bar."""
        self._display.say(text)

    def advance(self, number: int, *, worker: int = 0) -> None:
        """Note that a worker has done some more rows of its unit."""
        self._started = self._started or time.monotonic()
        self._open[worker] = self._open.get(worker, 0) + number
        self.tick()

    def unit_done(self, labelled: Labelled, *, worker: int = 0, is_new: bool = True) -> None:
        """Note that a worker's unit is written."""
        self._started = self._started or time.monotonic()
        self._open[worker] = 0
        self.errors += labelled.num_errors
        self._redone += 0 if is_new else labelled.num_rows
        self._done = self.job.output.done()
        self.tick()

    def worker_lost(self, worker: int) -> None:
        """Forget what a worker that died had begun."""
        self._open[worker] = 0

    def tick(self) -> None:
        """Show and write it, if it is time."""
        now = time.monotonic()
        console = self._display.console
        if console.is_terminal or now - self._shown >= LINE_EVERY_S:
            self._show(self.standing())
        if now - self._written >= WRITE_EVERY_S:
            self.refresh()

    def refresh(self) -> None:
        """Look at what all have done, and write it; if another process has just written it, not again."""
        self._written = time.monotonic()
        self._done = self.job.output.done()
        standing = self.standing()
        path = self.job.output.folder / PROGRESS
        with suppress(FileNotFoundError):
            if not standing.is_finished and time.time() - path.stat().st_mtime < WRITE_EVERY_S / 2:
                return
        self.job.output.write_progress(standing.as_json())

    def standing(self) -> Standing:
        """Say how far it is."""
        total, is_estimate = total_of(self.job, self._done)
        images = self._done.num_rows + sum(self._open.values())
        new = images - self._first.num_rows + self._redone
        rate = 0.0 if self._started is None else max(0, new) / max(time.monotonic() - self._started, 1e-3)
        is_finished = not is_estimate and total is not None and self._done.num_rows >= total
        left = None if total is None or rate <= 0 else max(0, total - images) / rate
        return Standing(
            images=images if total is None or is_estimate else min(images, total),
            total=total,
            is_estimate=is_estimate,
            images_per_second=rate,
            seconds_left=0.0 if is_finished else left,
            errors=self.errors,
            is_finished=is_finished,
        )

    def _show(self, standing: Standing) -> None:
        self._shown = time.monotonic()
        if self._display.console.is_terminal:
            words = f"labelling, {standing.images_per_second:.1f} a second"
            self._display.bars.update(
                self._task, description=words, completed=standing.images, total=standing.total, refresh=True
            )
        else:
            self._display.say(f"labelling: {standing}")


def total_of(job: Job, done: Done) -> tuple[int | None, bool]:
    """Say how many rows there are, and whether that is reckoned from the shards whose number of rows is known."""
    counts = [job.total_of(shard, done) for shard in range(len(job.collection.shards))]
    known = [count for count in counts if count is not None]
    if len(known) == len(counts):
        return sum(known), False
    return (round(sum(known) * len(counts) / len(known)) if known else None), True


def in_words(seconds: float) -> str:
    """Say a time as a user reckons: 40 s, 12 min, 3.5 h, 2.1 days."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
