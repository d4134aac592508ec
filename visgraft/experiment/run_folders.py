"""The folder of an experiment: what is left to do for each of its runs, and the record of the whole.

In: an experiment. Out: `experiment.yaml`, and of each run whether it is skipped, resumed or started.

    check_folder(experiment)              # or say which run there was made with other settings
    action_for(experiment.folder_of(run))
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

import yaml

from visgraft.atomic import write_whole
from visgraft.config import Recipe, effect_of, flatten, load_recipe, recipe_to_dict
from visgraft.errors import CheckpointError, ConfigError
from visgraft.experiment.planned import Experiment, PlannedRun
from visgraft.folder_lock import find_holder
from visgraft.listing import listing
from visgraft.runs import EXPERIMENT_FILE, OF_NO_RUN_YET, Run, read_experiment_record

Action = Literal["skip", "resume", "start"]
OF_A_FAILED_RUN = {"failure.txt", *OF_NO_RUN_YET}  # what may be there although no recipe is


def action_for(folder: Path) -> Action:
    """Say what an experiment does with a run: others may start from its model, so it is skipped only if that is there.

    A run is resumed from its newest checkpoint; without one it starts again. Whether a process of another machine that
    holds it is alive, is found out as it is resumed.
    """
    run = Run(folder)
    if run.status() == "finished" and run.model_path.is_dir():
        return "skip"
    is_begun = (folder / "recipe.yaml").is_file() and (run.checkpoints() or find_holder(folder) is not None)
    return "resume" if is_begun else "start"


def check_folder(experiment: Experiment) -> None:
    """Check that the runs that are there are those of this experiment.

    Raises:
        ConfigError: one was made with another setting that affects its result.
        CheckpointError: something else is in a run's place.
    """
    for run in experiment.runs:
        folder = experiment.folder_of(run)
        if action_for(folder) != "start":
            _check_same(run, folder)
        elif _is_something_else(folder):
            raise CheckpointError(f"{folder}: is in the way of the run of that name and no run; move it elsewhere")


def _is_something_else(path: Path) -> bool:
    if not path.exists() or (path / "recipe.yaml").is_file():
        return False
    return not path.is_dir() or bool({inside.path.name for inside in listing(path)} - OF_A_FAILED_RUN)


def _check_same(run: PlannedRun, folder: Path) -> None:
    there, now = (flatten(recipe_to_dict(recipe)) for recipe in (load_recipe(folder), run.recipe))
    for key in sorted(there.keys() | now.keys()):
        if there.get(key) != now.get(key) and effect_of(Recipe, key).affects == "result":
            raise ConfigError(
                f"{folder}: was run with {key} {there.get(key, 'at its default')}, but now it is "
                f"{now.get(key, 'at its default')}; name another --output, or remove that folder to run it again"
            )


def clear_failed_run(folder: Path) -> None:
    """Remove what a run left that failed or was stopped before its first checkpoint; there is nothing to go on with."""
    if folder.exists():
        shutil.rmtree(folder)


def write_record(experiment: Experiment) -> None:
    """Write `experiment.yaml`; runs that an earlier call made and this one leaves out keep their place in it."""
    listed = (read_experiment_record(experiment.folder) or {"runs": []})["runs"]
    own = [
        {"folder": run.folder_name, "variant": run.variant, "seed": run.seed, "changes": dict(run.changes)}
        for run in experiment.runs
    ]
    names = {entry["folder"]: entry for entry in own}
    kept = [names.pop(entry["folder"], entry) for entry in listed]
    record = {"name": experiment.name, "runs": [*kept, *names.values()]}
    write_whole(
        experiment.folder / EXPERIMENT_FILE, yaml.safe_dump(record, sort_keys=False, allow_unicode=True, width=120)
    )
