"""Run an experiment: one run after the other, or side by side, one on each GPU of this machine.

In: an experiment and the devices. Out: what became of each run; one that fails does not stop the rest.

    outcomes = run_experiment(experiment, devices=[None], progress=progress)         # one after the other
    outcomes = run_experiment(experiment, devices=["0", "1"], progress=progress)     # two at a time

What is finished is left as it is, what was begun is gone on with: calling it again is how one goes on after Ctrl-C.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Protocol

from visgraft.atomic import write_whole
from visgraft.experiment.planned import Experiment, PlannedRun
from visgraft.experiment.process import launch_process
from visgraft.experiment.run_folders import action_for, check_folder, clear_failed_run, write_record
from visgraft.folder_lock import find_holder
from visgraft.runs import Run
from visgraft.training.interrupt import catch_signals, release_signals

POLL_S = 0.2
Device = str | None  # as CUDA_VISIBLE_DEVICES names a GPU; None: whatever is there


class Job(Protocol):
    """A run on its way."""

    def poll(self) -> int | None:
        """Return the exit status, None while it runs."""

    def interrupt(self) -> None:
        """Tell it to save and stop; a second time, to stop at once."""

    def kill(self) -> None:
        """End it at once."""

    def failure(self) -> tuple[str, str]:
        """Say why it failed: in one line, and all that it said last."""


class Watcher(Protocol):
    """What everything that happens is reported to."""

    def begin(self, *, total: int, finished: int) -> None:
        """Hear how many runs there are, and how many of them are finished already."""

    def started(self, run: PlannedRun, *, device: Device, is_resumed: bool) -> None:
        """Hear that a run starts."""

    def said(self, run: PlannedRun, text: str) -> None:
        """Hear a line that a run says."""

    def ended(self, outcome: Outcome) -> None:
        """Hear what became of a run."""


@dataclass(frozen=True)
class Outcome:
    """What became of a run; `reason` is why it failed, None if it is finished."""

    run: PlannedRun
    folder: Path
    reason: str | None = None


class ExperimentInterrupted(KeyboardInterrupt):
    """An experiment was stopped by the signal `number`; what its runs had saved is kept."""

    def __init__(self, *, number: int) -> None:
        super().__init__("stopped; what was done is kept, and the same command goes on")
        self.number = number


Launch = Callable[[PlannedRun, Path, Device, Callable[[str], None]], Job]


def run_experiment(
    experiment: Experiment, *, devices: Sequence[Device] = (None,), progress: Watcher, launch: Launch = launch_process
) -> list[Outcome]:
    """Run what is not finished, and return what became of every run, in their order.

    Args:
        experiment: its folder may hold finished and begun runs.
        devices: one run at a time on each.
        progress: what happens is reported to it.
        launch: starts a run in a folder, on a device, and passes on what it says.

    Raises:
        ConfigError: a run that is there was made with other settings.
        CheckpointError: something else is in a run's place.
        ExperimentInterrupted: Ctrl-C or another signal that stops; the same call goes on.
    """
    check_folder(experiment)
    write_record(experiment)
    schedule = _Schedule(experiment, devices=devices, progress=progress, launch=launch)
    num_passed_on = 0
    with _interrupts() as signals:
        try:
            while schedule.is_busy:
                if not signals:
                    schedule.start()
                elif not schedule.running:
                    raise ExperimentInterrupted(number=signals[0])
                for _ in range(len(signals) - num_passed_on):
                    num_passed_on += 1
                    schedule.interrupt()
                time.sleep(POLL_S)
                schedule.collect(is_interrupted=bool(signals))
        finally:
            schedule.kill()
    return [schedule.outcomes[run.folder_name] for run in experiment.runs]


class _Schedule:
    """What waits, what runs where, and what became of the rest."""

    def __init__(self, experiment: Experiment, *, devices: Sequence[Device], progress: Watcher, launch: Launch) -> None:
        self.experiment, self.progress, self.launch = experiment, progress, launch
        self.free = list(devices)
        self.waiting: list[PlannedRun] = []
        self.running: dict[str, tuple[PlannedRun, Job, Device]] = {}
        self.outcomes: dict[str, Outcome] = {}
        for run in experiment.runs:
            if action_for(experiment.folder_of(run)) == "skip":
                self.outcomes[run.folder_name] = Outcome(run, experiment.folder_of(run))
            else:
                self.waiting.append(run)
        progress.begin(total=len(experiment.runs), finished=len(self.outcomes))

    @property
    def is_busy(self) -> bool:
        return bool(self.waiting or self.running)

    def start(self) -> None:
        """Start what can start: a device is free, and what the run starts from is finished."""
        for run in list(self.waiting):
            source = None if run.starts_from is None else self.outcomes.get(run.starts_from)
            if source is not None and source.reason is not None:
                self.waiting.remove(run)
                self._end(run, reason=f"not run: it starts from {run.starts_from}, which failed")
            elif self.free and (run.starts_from is None or source is not None):
                self.waiting.remove(run)
                self._start(run, self.free.pop(0))

    def _start(self, run: PlannedRun, device: Device) -> None:
        folder = self.experiment.folder_of(run)
        holder = find_holder(folder)
        if holder is not None and holder.is_here:
            self.free.append(device)
            self._end(run, reason=f"not run: {holder} is training it")
            return
        is_resumed = action_for(folder) == "resume"
        if is_resumed:
            Run(folder).failure_path.unlink(missing_ok=True)
        else:
            clear_failed_run(folder)
        self.progress.started(run, device=device, is_resumed=is_resumed)
        job = self.launch(run, folder, device, lambda text: self.progress.said(run, text))
        self.running[run.folder_name] = (run, job, device)

    def collect(self, *, is_interrupted: bool) -> None:
        """Take note of what has ended since."""
        for name, (run, job, device) in list(self.running.items()):
            status = job.poll()
            if status is None:
                continue
            del self.running[name]
            self.free.append(device)
            if status == 0:
                self._end(run, reason=None)
            elif is_interrupted:
                self.waiting.append(run)
            else:
                reason, text = job.failure()
                write_whole(Run(self.experiment.folder_of(run)).failure_path, f"{reason}\n\n{text}\n")
                self._end(run, reason=reason)

    def _end(self, run: PlannedRun, *, reason: str | None) -> None:
        outcome = Outcome(run, self.experiment.folder_of(run), reason)
        self.outcomes[run.folder_name] = outcome
        self.progress.ended(outcome)

    def interrupt(self) -> None:
        """Tell what runs to save and stop."""
        for _, job, _ in self.running.values():
            job.interrupt()

    def kill(self) -> None:
        """End what still runs, where the experiment ends out of turn."""
        for _, job, _ in self.running.values():
            job.kill()


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """List the signals that stop, which end nothing by themselves meanwhile: each Ctrl-C, of all others the first."""
    came: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT or not came:
            came.append(number)

    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield came
        return
    before = catch_signals(note)
    try:
        yield came
    finally:
        release_signals(before)
