"""Send a run's numbers to trackers beside `metrics.jsonl`, which stays what everything else reads.

In: names of `train.report_to`, and each record of the metrics. Out: the same numbers in TensorBoard, wandb, ...

    trackers = Trackers(recipe, run.folder)
    trackers.log({"step": 1, "loss": 2.3, "learning_rate": {"projection": 1e-4}})

They are those of accelerate; your own class takes part once it is in `accelerate.tracking.LOGGER_TYPE_TO_CLASS`.
Trackers that write files write them into the run folder, under `trackers/`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from accelerate.utils import LoggerType

from visgraft.config import Recipe, flatten, recipe_to_dict
from visgraft.errors import ConfigError

PACKAGES = {"comet_ml": "comet-ml"}  # of trackers whose package is not called as they are
PROJECT = "visgraft"  # under which trackers that have projects file their runs


class Trackers:
    """The trackers of one run."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        """Start them and hand them the recipe.

        Raises:
            ConfigError: what `check_trackers` raises.
        """
        check_trackers(recipe.train.report_to)
        self.trackers: list[GeneralTracker] = []
        for name in recipe.train.report_to:
            make = LOGGER_TYPE_TO_CLASS[name]
            to_disk = make.requires_logging_directory
            self.trackers.append(make(folder.name, folder / "trackers") if to_disk else make(PROJECT))
        settings = {key: _plain(value) for key, value in flatten(recipe_to_dict(recipe)).items()}
        for tracker in self.trackers:
            tracker.start()
            tracker.store_init_configuration({"run": str(folder), **settings})

    def log(self, record: Mapping[str, Any]) -> None:
        """Send the numbers of a record; `learning_rate: {projection: ...}` becomes `learning_rate.projection`."""
        values = {
            key: value
            for key, value in flatten(record).items()
            if isinstance(value, (int, float)) and not isinstance(value, bool) and key != "step"
        }
        for tracker in self.trackers:
            tracker.log(values, step=record["step"])

    def finish(self) -> None:
        """Close them."""
        for tracker in self.trackers:
            tracker.finish()


def check_trackers(names: Iterable[str]) -> None:
    """See that trackers exist and can be used.

    Raises:
        ConfigError: there is no such tracker, or its package is not installed.
    """
    known = sorted(map(str, LOGGER_TYPE_TO_CLASS))
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"allowed are {', '.join(known)}"
            raise ConfigError(f"train.report_to: got {name!r}, which is no tracker; {hint}")
        if name in map(str, LoggerType) and name not in map(str, get_available_trackers()):
            raise ConfigError(
                f"train.report_to: {name} is not installed; pip install {PACKAGES.get(name, name)}, or take it out"
            )


def _plain(value: Any) -> Any:
    return value if isinstance(value, (int, float, str, bool)) else str(value)
