"""Experiments on tiny parts, and a way to run them in this process.

In: an empty folder. Out: an experiment file; `run_here` for `run_experiment(launch=...)`; what was reported.
Usage: `outcomes = run_experiment(experiment, launch=run_here, progress=Reports())`
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tests.training.tiny import tiny_recipe
from visgraft.errors import VisgraftError
from visgraft.experiment import Outcome, PlannedRun
from visgraft.experiment.run_folders import action_for
from visgraft.training.loop import train
from visgraft.training.progress import make_progress


def write_experiment(folder: Path, *, num_images: int = 4, train: dict[str, Any] | None = None, **values: Any) -> Path:
    """Write an experiment on tiny parts and data."""
    recipe = tiny_recipe(folder, num_images=num_images, max_steps=2, max_new_tokens=2, **(train or {}))
    path = folder / "tiny.yaml"
    variants = {"projection": {"train.language": "frozen"}, "lora": {}}
    path.write_text(yaml.safe_dump({"recipe": recipe, "variants": variants, **values}, sort_keys=False))
    return path


class Reports:
    """Note what an experiment reports."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def begin(self, *, total: int, finished: int) -> None:
        self.lines.append(f"{finished} of {total} finished")

    def started(self, run: PlannedRun, *, device: str | None, is_resumed: bool) -> None:
        self.lines.append(f"{run.folder_name} {'resumed' if is_resumed else 'started'} on {device}")

    def said(self, run: PlannedRun, text: str) -> None:
        pass

    def ended(self, outcome: Outcome) -> None:
        self.lines.append(f"{outcome.run.folder_name} {'ended' if outcome.reason is None else 'failed'}")


class Done:
    """A job that was over before it was asked."""

    def __init__(self, status: int, reason: str) -> None:
        self.status, self.reason = status, reason

    def poll(self) -> int:
        return self.status

    def interrupt(self) -> None:
        pass

    def kill(self) -> None:
        pass

    def failure(self) -> tuple[str, str]:
        return self.reason, self.reason


def run_here(run: PlannedRun, folder: Path, device: str | None, say: Callable[[str], None]) -> Done:
    """Train in this process, as the program would in another."""
    resume = folder if action_for(folder) == "resume" else None
    try:
        train(run.recipe, resume=resume, folder=None if resume else folder, progress=make_progress(show=False))
    except VisgraftError as error:
        return Done(2, str(error))
    return Done(0, "")
