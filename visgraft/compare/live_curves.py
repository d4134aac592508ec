"""The live curves of runs in a terminal: training loss of each as a line of dots, below it where each run stands.

In: run and experiment folders, read again whenever their files change. Out: a drawing for rich, plain lines elsewhere.

    watched = Watch(["runs/modules"]); watched.read(); console.print(watched.drawing(width=100, height=16))
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from visgraft.compare.collect import find_runs, num_waiting, read_run
from visgraft.compare.curves import Array, smooth
from visgraft.compare.variants import RunData
from visgraft.listing import changed_at
from visgraft.runs import Run

COLORS = ("bright_blue", "yellow", "green", "magenta", "cyan", "red", "bright_magenta", "bright_green")
QUIET_AFTER_S = 300  # a run that wrote nothing for so long may have died
# The dots of a braille character, by column and row from the top.
DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))


class Watch:
    """Runs that are watched while they train."""

    def __init__(self, paths: Sequence[str | Path]) -> None:
        """Name the runs; experiments may gain runs later. Raises CheckpointError where a path is neither."""
        self.paths = list(paths)
        self.runs: list[RunData] = []
        self._read: dict[Path, tuple[tuple[float, ...], RunData]] = {}
        find_runs(self.paths)

    def read(self) -> None:
        """Read what is new."""
        self.runs = []
        for found in find_runs(self.paths):
            stamp = Run(found.folder).last_changes()
            if self._read.get(found.folder, ((),))[0] != stamp:
                self._read[found.folder] = (stamp, read_run(found.folder, variant=found.variant))
            self.runs.append(self._read[found.folder][1])

    @property
    def is_over(self) -> bool:
        """Whether every run has come to its end, those too that an experiment has yet to begin."""
        return not num_waiting(self.paths) and all(run.status != "unfinished" for run in self.runs)

    def lines(self) -> list[str]:
        """Say in a line for each run where it stands."""
        return [f"{run.folder.name}: {describe(run)}" for run in self.runs]

    def drawing(self, *, width: int, height: int) -> Group:
        """Draw the curves, and a legend that says where each run stands."""
        legend = Table(box=None, pad_edge=False, show_header=False)
        legend.add_column(width=2)
        legend.add_column(overflow="fold")
        legend.add_column(overflow="fold")
        numbers = {name: number for number, name in enumerate(dict.fromkeys(map(_kin, self.runs)))}
        for run in self.runs:
            color = COLORS[numbers[_kin(run)] % len(COLORS)]
            legend.add_row(Text("──", style=color), Text(run.folder.name), Text(describe(run), style="dim"))
        with_curve = [run for run in self.runs if len(run.training)]
        if not with_curve:
            return Group(Text("no run has taken a step yet", style="dim"), legend)
        curves = [(numbers[_kin(run)], run.training.steps, smooth(run.training.token)) for run in with_curve]
        return Group(*plot(curves, width=width, height=height), legend)


def _kin(run: RunData) -> str:
    """Give what is equal for the seeds of one variant, which share a colour."""
    return run.variant or str(run.folder)


def describe(run: RunData) -> str:
    """Say where a run stands: step, loss, validation loss, speed, and how it is."""
    training = run.training
    if not len(training):
        return "no step yet"
    text = f"step {training.steps[-1]:.0f}  loss {smooth(training.token)[-1]:.4f}"
    if len(run.validation):
        text += f"  validation loss {run.validation.token[-1]:.4f}"
    seconds = float(training.minutes[-1]) * 60
    if seconds > 0:
        text += f"  {training.samples[-1] / seconds:.1f} samples/s"
    if run.status != "unfinished":
        return f"{text}  {run.status}"
    silent = time.time() - changed_at(run.folder / "metrics.jsonl")
    return f"{text}  no news for {silent / 60:.0f} min" if silent > QUIET_AFTER_S else text


def plot(curves: Sequence[tuple[int, Array, Array]], *, width: int, height: int) -> list[Text]:
    """Plot curves as lines of dots: x over steps, y the logarithm of the loss; two by four dots a character.

    Args:
        curves: number of its colour, places and losses of each; empty ones and losses that are no numbers are left out.
        width: characters of a line, the labels of the axis included.
        height: lines, the axis of steps apart.
    """
    kept = []
    for number, x, y in curves:
        is_good = np.isfinite(y) & (y > 0)
        if is_good.any():
            kept.append((number, x[is_good], np.log(y[is_good])))
    if not kept:
        return [Text("no loss that can be drawn", style="dim")]
    low, high = min(y.min() for _, _, y in kept), max(y.max() for _, _, y in kept)
    last = max(float(x[-1]) for _, x, _ in kept)
    if high - low < 1e-9:
        low, high = low - 0.05, high + 0.05
    labels = [f"{math.exp(high - (high - low) * row / max(1, height - 1)):.3g}" for row in range(height)]
    margin = max(map(len, labels)) + 1
    columns = max(10, width - margin)
    cells = np.zeros((height, columns), dtype=int)
    owner = np.full((height, columns), -1)
    for number, x, y in kept:
        places = np.arange(columns * 2) / (columns * 2 - 1) * last
        reached = places[(places <= x[-1]) & (places >= min(x[0], places[1]))]
        heights = (high - np.interp(reached, x, y)) / (high - low) * (height * 4 - 1)
        for column, row in zip(np.searchsorted(places, reached), heights.round().astype(int), strict=True):
            cells[row // 4, column // 2] |= DOTS[column % 2][row % 4]
            owner[row // 4, column // 2] = number
    lines = []
    for row in range(height):
        label = labels[row] if row % 4 == 0 or row == height - 1 else ""
        line = Text(f"{label:>{margin - 1}} ", style="dim")
        for dots, number in zip(cells[row], owner[row], strict=True):
            line.append(chr(0x2800 + int(dots)), style=COLORS[number % len(COLORS)] if number >= 0 else "")
        lines.append(line)
    end = f"step {last:.0f}"
    lines.append(Text(" " * margin + "0" + " " * max(1, columns - 1 - len(end)) + end, style="dim"))
    return lines
