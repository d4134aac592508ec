"""What the user sees of an experiment: which runs go on and how far they are; plain lines where there is no terminal.

In: what happens, as it happens. Out: text on standard error.
Usage: `with ExperimentProgress(Console(stderr=True)) as progress: run_experiment(experiment, progress=progress)`
"""

from __future__ import annotations

from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from visgraft.experiment.planned import PlannedRun
from visgraft.experiment.running import Device, Outcome

SHOWN = ("step ", "error: ", "stopping ")  # how the lines of a run begin that are worth the user's time


class ExperimentProgress:
    """Show how far an experiment is: a bar of runs and the latest line of each that runs."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), console=console)
        self._all = self._bar.add_task("runs")

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self._bar.stop()

    def begin(self, *, total: int, finished: int) -> None:
        """Show how many runs there are."""
        self._bar.update(self._all, total=total, completed=finished)
        self.say(f"{total} runs" + (f", {finished} of them finished already" if finished else ""))

    def started(self, run: PlannedRun, *, device: Device, is_resumed: bool) -> None:
        """Show that a run starts."""
        where = "" if device is None else f" on GPU {device}"
        self.say(f"{run.folder_name}: {'goes on' if is_resumed else 'starts'}{where}")

    def said(self, run: PlannedRun, text: str) -> None:
        """Show a line of a run, if it says how far it is."""
        if not text.startswith(SHOWN):
            return
        if self.console.is_terminal and text.startswith("step ") and "loss" in text:
            self._bar.update(self._all, description=f"{run.folder_name}: {text}")
        else:
            self.say(f"{run.folder_name}: {text}")

    def ended(self, outcome: Outcome) -> None:
        """Show what became of a run."""
        self._bar.advance(self._all)
        words = "finished" if outcome.reason is None else f"failed: {outcome.reason}"
        self.say(f"{outcome.run.folder_name}: {words}")

    def say(self, text: str) -> None:
        """Show a line."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
