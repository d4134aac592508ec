"""What the user sees of an experiment: which runs go on and how far they are; plain lines where there is no terminal.

In: what happens, as it happens. Out: text on standard error.
Usage: `with ExperimentProgress(error_console()) as progress: run_experiment(experiment, progress=progress)`
"""

from __future__ import annotations

from rich.console import Console

from visgraft.experiment.planned import PlannedRun
from visgraft.experiment.running import Device, Outcome
from visgraft.reporting.progress import Display
from visgraft.wording import counted

SHOWN = ("step ", "error: ", "stopping ")  # how the lines of a run begin that are worth the user's time


class ExperimentProgress(Display):
    """Show how far an experiment is: a bar of runs and the latest line of each that runs."""

    def __init__(self, console: Console) -> None:
        super().__init__(console, is_kept=True)
        self._all = self.bars.add_task("", total=None, unit="runs")

    def begin(self, *, total: int, finished: int) -> None:
        """Show how many runs there are."""
        self.bars.update(self._all, total=total, completed=finished)
        self.say(counted(total, "run") + (f", {finished} of them finished already" if finished else ""))

    def started(self, run: PlannedRun, *, device: Device, is_resumed: bool) -> None:
        """Show that a run starts."""
        where = "" if device is None else f" on GPU {device}"
        self.say(f"{run.folder_name}: {'goes on' if is_resumed else 'starts'}{where}")

    def said(self, run: PlannedRun, text: str) -> None:
        """Show a line of a run, if it says how far it is."""
        if not text.startswith(SHOWN):
            return
        if self.console.is_terminal and text.startswith("step ") and "loss" in text:
            self.bars.update(self._all, description=f"{run.folder_name}: {text}")
        else:
            self.say(f"{run.folder_name}: {text}")

    def ended(self, outcome: Outcome) -> None:
        """Show what became of a run."""
        self.bars.advance(self._all)
        words = "finished" if outcome.reason is None else f"failed: {outcome.reason}"
        self.say(f"{outcome.run.folder_name}: {words}")
