"""The article from beginning to end: look first, run the experiments, ask their models, reckon, write it down.

In: M3IT, a scale, a folder. Out: a `Reproduction`; the folder holds

    reproduction.json            what was run on what, every figure, a sum of every kept file; there once all is done
    report.html                  the figures as a page
    experiments/NAME.yaml        each experiment as it is run
    NAME/                        its runs (docs/runs.md), and compare.html
    evaluations/NAME/TASK/       answers, controls, scores, report.html

A call that was stopped goes on where it was.

    found = reproduce(data=Path("~/m3it").expanduser(), scale="hour", folder=Path("reproductions/hour"), say=print)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from visgraft.compare.answers import gather
from visgraft.compare.collect import collect
from visgraft.compare.report import write_report as write_comparison
from visgraft.config import DataSettings, Recipe, SourceSettings, effect_of
from visgraft.errors import ConfigError
from visgraft.estimate.gpus import Gpu, local_gpu, this_computer
from visgraft.evaluation.report import write_report as write_evaluation
from visgraft.evaluation.running import REPORT, Settings, evaluate_models
from visgraft.evaluation.task import Task, open_entries
from visgraft.experiment import Experiment, Outcome, load_experiment, run_experiment
from visgraft.experiment.display import ExperimentProgress
from visgraft.experiment.process import launch_process, train_here
from visgraft.experiment.running import Device, Launch
from visgraft.folder_lock import LOCK_FILE, FolderLock
from visgraft.model.precision import pick_device
from visgraft.model.storage.restoring import read_config
from visgraft.reporting.progress import error_console
from visgraft.reproduce.article import ARTICLE, SCALES, Asked, Scale, write_experiment_file
from visgraft.reproduce.conditions import Count, check_device, check_memory, count_rows, revision_of
from visgraft.reproduce.figures import EVALUATIONS, EXPERIMENTS, figures_of
from visgraft.reproduce.look_alikes import make_models, make_rows
from visgraft.reproduce.page import write_page_of
from visgraft.reproduce.record import LOOK_ALIKES, PAGE, RECORD, read_record, seal
from visgraft.runs import Run, environment

Say = Callable[[str], None]
KNOWN = {RECORD, PAGE, EXPERIMENTS, EVALUATIONS, LOOK_ALIKES, LOCK_FILE, *ARTICLE}


@dataclass(frozen=True)
class Reproduction:
    """What came of it.

    Attributes:
        folder: where it is.
        record: what `reproduction.json` holds.
    """

    folder: Path
    record: Mapping[str, Any]

    @property
    def failed(self) -> dict[str, str]:
        """Say which runs failed, and why; the same call runs them again."""
        return {
            f"{name}/{run}": values["failed"]
            for name, of in self.record["experiments"].items()
            for run, values in of["runs"].items()
            if values.get("failed")
        }


def reproduce(
    *,
    data: Path | None,
    scale: Scale,
    folder: Path,
    only: Sequence[str] = (),
    overrides: Sequence[str] = (),
    devices: Sequence[Device] = (None,),
    allow_changed: bool = False,
    gpu: Gpu | None = None,
    say: Say,
) -> Reproduction:
    """Run the article's experiments, or what is left of them.

    Args:
        data: of M3IT; None, at the scale `smoke` alone: rows in its form, made in the folder.
        scale: how much is run.
        folder: where everything goes; one that a stopped call left is gone on with.
        only: names of experiments; empty: all three.
        overrides: settings of every run, as `--set` takes them; the folder says that it is not as written.
        devices: one run at a time on each.
        allow_changed: whether runs go on though data, models or libraries changed.
        gpu: what each run has to fit into; None: the one that is here.
        say: tells the user.

    Raises:
        ConfigError: an unknown experiment; no GPU, or too small a one; the folder holds something else.
        DataError: the data are not M3IT's.
        ExperimentInterrupted: Ctrl-C or another signal that stops; the same call goes on.
    """
    chosen = _chosen(only)
    if data is None and scale != "smoke":
        raise ConfigError(f"--data: missing; --scale {scale} needs M3IT, exported as docs/data.md says")
    check_device(scale, device=pick_device(None))
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with FolderLock() as lock:
        lock.take(folder, say=say, work="reproducing the article in it")
        done = _finished(folder, chosen, scale=scale, overrides=overrides)
        if done is not None:
            say(f"{folder}: is finished; `visgraft reproduce --verify` checks it")
            return done
        data = make_rows(folder / LOOK_ALIKES / "m3it") if data is None else data
        counts = count_rows(data)
        experiments = _plan(folder, chosen, data=data, scale=scale, overrides=overrides)
        runs = [(each.name, run) for each in experiments for run in each.runs[-1 if scale == "smoke" else 0 :]]
        estimates = check_memory(runs, gpu=gpu or local_gpu(), computer=this_computer())
        _say_how_long(estimates, say=say)
        (folder / RECORD).unlink(missing_ok=True)  # it is there once everything is whole
        outcomes: dict[str, list[Outcome]] = {}
        for number, experiment in enumerate(experiments, start=1):
            say(f"experiment {number} of {len(experiments)}: {experiment.name}, {ARTICLE[experiment.name].what}")
            outcomes[experiment.name] = _run(experiment, scale, devices=devices, allow_changed=allow_changed)
        for experiment in experiments:
            finished = [each for each in outcomes[experiment.name] if each.reason is None]
            for asked in ARTICLE[experiment.name].asked if finished else ():
                _ask(experiment, finished, asked, folder=folder, data=data, scale=scale, say=say)
            if finished:
                _draw(experiment, say=say)
        record = {
            **_facts(data, counts, estimates, scale=scale, overrides=overrides),
            "models": _revisions([each for of in outcomes.values() for each in of]),
            "experiments": figures_of(folder),
        }
        write_page_of(record, folder / PAGE)
        return Reproduction(folder, seal(folder, record))


def _chosen(only: Sequence[str]) -> list[str]:
    unknown = [name for name in only if name not in ARTICLE]
    if unknown:
        raise ConfigError(f"--only {unknown[0]}: no experiment of the article; there are {', '.join(ARTICLE)}")
    return [name for name in ARTICLE if name in only or not only]


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds anything but a reproduction.

    Raises:
        ConfigError: it does, or is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; give a folder with -o")
    held = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    strange = [name for name in held if name not in KNOWN and not name.startswith(".")]
    if strange:
        raise ConfigError(f"{folder}: holds {strange[0]}, no part of a reproduction; give a new folder with -o")


def _finished(folder: Path, chosen: Sequence[str], *, scale: Scale, overrides: Sequence[str]) -> Reproduction | None:
    """Give what is there, if it is all that was asked for.

    Raises:
        ConfigError: it is of another scale, or of other settings.
    """
    if not (folder / RECORD).is_file():
        return None
    record = read_record(folder)
    if record["scale"] != scale or record["changed"] != list(overrides):
        was = " ".join([f"--scale {record['scale']}", *(f"--set {change}" for change in record["changed"])])
        raise ConfigError(f"{folder}: is of {was}; name another --output")
    found = Reproduction(folder, record)
    return None if found.failed or set(chosen) - set(record["experiments"]) else found


def _plan(
    folder: Path, chosen: Sequence[str], *, data: Path, scale: Scale, overrides: Sequence[str]
) -> list[Experiment]:
    in_place_of = make_models(folder / LOOK_ALIKES) if scale == "smoke" else None
    experiments = []
    for name in chosen:
        path = write_experiment_file(ARTICLE[name], folder, data=data.absolute(), scale=scale, in_place_of=in_place_of)
        experiments.append(load_experiment(path, overrides=overrides, output=folder / name))
    return experiments


def _say_how_long(estimates: Sequence[Mapping[str, Any]], *, say: Say) -> None:
    known = [each["seconds"] for each in estimates if each["seconds"] is not None]
    if known and len(known) == len(estimates):
        say(f"{len(known)} runs fit; their steps take about {sum(known) / 3600:.1f} hours here, reckoned, not measured")


def _run(experiment: Experiment, scale: Scale, *, devices: Sequence[Device], allow_changed: bool) -> list[Outcome]:
    launch: Launch = train_here if scale == "smoke" else partial(launch_process, allow_changed=allow_changed)
    with ExperimentProgress(error_console()) as progress:
        return run_experiment(experiment, devices=devices, progress=progress, launch=launch)


def _ask(
    experiment: Experiment,
    finished: Sequence[Outcome],
    asked: Asked,
    *,
    folder: Path,
    data: Path,
    scale: Scale,
    say: Say,
) -> None:
    """Ask the models of an experiment one task, with its controls, and write the page."""
    entry = SourceSettings(source="m3it", path=str(data), split=asked.split, options={"tasks": asked.task})
    name = f"M3IT {asked.task} {asked.split}"
    questions = open_entries([entry], key="data.test", settings=DataSettings(), name=name, say=say)
    amount = SCALES[scale]
    evaluation = evaluate_models(
        [str(outcome.folder) for outcome in finished],
        Task(name, questions, asked.metrics),
        settings=Settings(
            limit=amount.questions, control_limit=amount.control_questions, max_new_tokens=amount.max_new_tokens
        ),
        folder=folder / EVALUATIONS / experiment.name / asked.task,
        say=say,
    )
    write_evaluation(evaluation, evaluation.folder / REPORT)


def _draw(experiment: Experiment, *, say: Say) -> None:
    """Write the page of an experiment's runs side by side."""
    comparison = collect([experiment.folder])
    names = [variant.name for variant in comparison.variants]
    questions = gather(comparison.variants, note=say)
    write_comparison(comparison, questions, experiment.folder / "compare.html", own=[], shown=names)


def _facts(
    data: Path,
    counts: Mapping[str, Mapping[str, Count]],
    estimates: Sequence[Mapping[str, Any]],
    *,
    scale: Scale,
    overrides: Sequence[str],
) -> dict[str, Any]:
    """Say what no kept file can prove: on what it was run, and with which data."""
    return {
        "scale": scale,
        "as_written": scale == "full" and not any(map(_changes_the_result, overrides)),
        "changed": list(overrides),
        "environment": environment(),
        "data": {"path": str(data), "revision": revision_of(data), "rows": counts},
        "estimated": list(estimates),
    }


def _changes_the_result(override: str) -> bool:
    return effect_of(Recipe, override.partition("=")[0].strip()).affects == "result"


def _revisions(outcomes: Sequence[Outcome]) -> dict[str, str | None]:
    """Give the commit of each model that the runs loaded; None: it lay in a folder."""
    found: dict[str, str | None] = {}
    for outcome in outcomes:
        run = Run(outcome.folder)
        if outcome.reason is None and run.model_path.is_dir():
            parts = read_config(run.model_path).parts
            found |= {str(part["name"]): part.get("revision") for part in parts.values() if part.get("name")}
    return dict(sorted(found.items()))
