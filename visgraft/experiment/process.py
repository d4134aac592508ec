"""One run in a process of its own: its memory is its own, and what ends it ends nothing else. Or in this one.

In: a run and its folder. Out: a job that `run_experiment` watches.

    job = launch_process(run, folder, "0", print)
    job = train_here(run, folder, None, print)         # over once it is there; for runs of seconds
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from visgraft.errors import VisgraftError
from visgraft.experiment.planned import PlannedRun
from visgraft.experiment.run_folders import action_for
from visgraft.reporting.progress import LOG_VARIABLE

NUM_LINES = 200  # of what a run said last, that are kept
PROGRAM = (sys.executable, "-m", "visgraft")


class ProcessJob:
    """A running `visgraft train`. It is in a session of its own: a terminal's Ctrl-C reaches it only through us."""

    def __init__(self, command: Sequence[str], *, recipe: Path, device: str | None, say: Callable[[str], None]) -> None:
        """Start it; the recipe's file goes away with it."""
        self._recipe = recipe
        self._is_told = False
        environment = {name: value for name, value in os.environ.items() if name != LOG_VARIABLE}  # lines, for `say`
        environment |= {} if device is None else {"CUDA_VISIBLE_DEVICES": device}
        self._lines: deque[str] = deque(maxlen=NUM_LINES)
        self._process = subprocess.Popen(
            list(command),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, args=(say,), daemon=True)
        self._reader.start()

    def _read(self, say: Callable[[str], None]) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._lines.append(line.rstrip())
                say(line.rstrip())

    def poll(self) -> int | None:
        """Return the exit status, None while it runs."""
        status = self._process.poll()
        if status is not None:
            self._reader.join(timeout=10.0)
            self._recipe.unlink(missing_ok=True)
        return status

    def interrupt(self) -> None:
        """Tell it to save and stop; a second time, to stop at once."""
        if self._is_told:
            self._process.kill()
        else:
            self._process.terminate()  # shells let what runs in the background ignore Ctrl-C, this never
        self._is_told = True

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()
        self._recipe.unlink(missing_ok=True)

    def failure(self) -> tuple[str, str]:
        """Say why it failed: in one line, and all that it said last."""
        status, lines = self._process.returncode, [line for line in self._lines if line.strip()]
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        if status is not None and status < 0:
            name = signal.Signals(-status).name
            reason = f"was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
        else:
            reason = (errors or lines or [f"exit status {status}"])[-1]
        return reason, "\n".join(self._lines)


def launch_process(
    run: PlannedRun,
    folder: Path,
    device: str | None,
    say: Callable[[str], None],
    *,
    program: Sequence[str] = PROGRAM,
    allow_changed: bool = False,
) -> ProcessJob:
    """Start a run in a folder, or go on with it where it was begun; `device` is the one GPU that it sees.

    With `allow_changed` it goes on even if data, models or libraries are not those that it began with.
    """
    with tempfile.NamedTemporaryFile("w", prefix="visgraft-", suffix=".yaml", delete=False, encoding="utf-8") as file:
        file.write(run.recipe.to_yaml())
    place = ["--resume" if action_for(folder) == "resume" else "--output", str(folder)]
    command = [*program, "train", file.name, *place, *(["--allow-changed"] if allow_changed else [])]
    return ProcessJob(command, recipe=Path(file.name), device=device, say=say)


class EndedJob:
    """A run that was over before anyone asked; `reason` is why it failed, None if it is finished."""

    def __init__(self, reason: str | None) -> None:
        self.reason = reason

    def poll(self) -> int:
        """Return the exit status."""
        return 0 if self.reason is None else 1

    def interrupt(self) -> None:
        """Nothing is left to stop."""

    def kill(self) -> None:
        """Nothing is left to end."""

    def failure(self) -> tuple[str, str]:
        """Say why it failed."""
        return self.reason or "", self.reason or ""


def train_here(run: PlannedRun, folder: Path, device: str | None, say: Callable[[str], None]) -> EndedJob:
    """Train a run in this process, on whatever is there, or go on with it where it was begun.

    Raises:
        Interrupted: Ctrl-C or another signal that stops; what was done is saved.
    """
    from visgraft.training.loop import train  # brings torch, which a process that only watches does not need
    from visgraft.training.progress import make_progress

    resume = folder if action_for(folder) == "resume" else None
    try:
        train(run.recipe, resume=resume, folder=None if resume else folder, progress=make_progress(show=False))
    except VisgraftError as error:
        return EndedJob(" ".join(str(error).split()))
    return EndedJob(None)
