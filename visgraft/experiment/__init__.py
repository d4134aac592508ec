"""Variants of a recipe, run under equal conditions: the same held-out data, sample prompts and seeds for each.

In: an experiment file (settings.py). Out: a folder of run folders (docs/runs.md says what is in it).

    experiment = load_experiment("experiments/modules", overrides=["train.max_steps=2"])
    outcomes = run_experiment(experiment, devices=[None], progress=progress)
"""

from visgraft.experiment.planned import Experiment as Experiment
from visgraft.experiment.planned import PlannedRun as PlannedRun
from visgraft.experiment.planned import load_experiment as load_experiment
from visgraft.experiment.running import Outcome as Outcome
from visgraft.experiment.running import run_experiment as run_experiment
