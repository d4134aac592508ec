"""`visgraft experiment`: run variants of a recipe under equal conditions, or say what they would be.

In: an experiment file. Out: a folder of runs and a table of what came out. Usage: `visgraft experiment modules.yaml`
"""

import os
from functools import partial
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from visgraft.cli.hub import go_offline_without_network, names_of_recipe
from visgraft.cli.options import AsJson, shipped_names
from visgraft.cli.terminal import end_stopped, note, print_json, print_line, print_rich, quiet_libraries
from visgraft.errors import ConfigError
from visgraft.reporting.progress import error_console
from visgraft.wording import counted

if TYPE_CHECKING:
    from visgraft.experiment import Experiment, Outcome
    from visgraft.experiment.preview import Preview

FAILED = 1


def experiment(
    file: Annotated[
        str,
        typer.Argument(
            autocompletion=shipped_names,
            metavar="FILE",
            help="Experiment: a YAML file, or a shipped one's name.",
            show_default=False,
        ),
    ],
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Run this variant alone, or those of a pattern; may be given often."),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Runs of each variant.", show_default="as the file says")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run, and run nothing.")] = False,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of every run; may be given often."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Folder of the experiment.", show_default="runs/NAME"),
    ] = None,
    gpus: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Run side by side, one on each: 0,1 or all.", show_default="one by one"),
    ] = None,
    allow_changed: Annotated[
        bool,
        typer.Option(
            "--allow-changed", help="Go on with runs even if data, models or libraries changed; writes it down."
        ),
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Run variants of a recipe under equal conditions and put them beside one another.

    Each run has a folder of a fixed name, so that the same command goes on where it was stopped: what is finished is
    skipped, what was begun is resumed. A run that fails does not stop the others; the exit status is then 1.
    """
    from visgraft.experiment.planned import load_experiment

    planned = load_experiment(file, only=only or [], seeds=seeds, overrides=overrides or [], output=output)
    go_offline_without_network(name for run in planned.runs for name in names_of_recipe(run.recipe))
    if dry_run:
        _preview(planned, as_json=as_json)
        return 0
    return _run(planned, gpus=gpus, allow_changed=allow_changed, as_json=as_json)


def _preview(planned: "Experiment", *, as_json: bool) -> None:
    note("reading configurations and data")
    quiet_libraries()
    from visgraft.experiment.preview import preview_experiment

    previews = preview_experiment(planned, progress=note)
    if as_json:
        print_json([preview.as_json() for preview in previews])
        return
    print_rich(_preview_table(previews))
    reasons = dict.fromkeys(reason for preview in previews for reason in preview.unknown)
    if reasons:
        print_line()
        for reason in reasons:
            print_line(f"unknown: {reason}")
    print_line()
    print_line(f"{counted(len(planned.runs), 'run')}, which would be in {planned.folder}")


def _preview_table(previews: "list[Preview]") -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("variant")
    table.add_column("trains")
    for name in ("trained", "parameters", "steps", "text tokens", "supervised", "seeds"):
        table.add_column(name, justify="right")
    for preview in previews:
        trained = None if preview.parameters is None else sum(preview.parameters.values())
        length = preview.length
        about = "" if length is None or length.is_exact else "about "
        counts = [None] * 3 if length is None else [length.steps, length.text_tokens, length.supervised_tokens]
        trains = ", ".join(f"{part} {mode}" for part, mode in preview.trains.items())
        table.add_row(
            Text(preview.variant),
            Text(trains),
            *(_number(value) for value in (trained, preview.num_parameters)),
            *(_number(value, about=about) for value in counts),
            ", ".join(map(str, preview.seeds)),
        )
    return table


def _number(value: int | None, *, about: str = "") -> str:
    return "unknown" if value is None else f"{about}{value:,}"


def _run(planned: "Experiment", *, gpus: str | None, allow_changed: bool, as_json: bool) -> int:
    from visgraft.experiment.display import ExperimentProgress
    from visgraft.experiment.process import launch_process
    from visgraft.experiment.running import run_experiment
    from visgraft.experiment.variant_results import as_table, as_values, results_of

    try:
        with ExperimentProgress(error_console()) as progress:
            launch = partial(launch_process, allow_changed=allow_changed)
            outcomes = run_experiment(planned, devices=devices_of(gpus), progress=progress, launch=launch)
    except KeyboardInterrupt as error:
        return end_stopped(error)
    if as_json:
        print_json(as_values(outcomes))
    else:
        print_rich(as_table(results_of(outcomes)))
        _print_failures(outcomes)
        print_line()
        print_line(f"visgraft compare {quote(str(planned.folder))} -o report.html")
    return FAILED if any(outcome.reason is not None for outcome in outcomes) else 0


def _print_failures(outcomes: "list[Outcome]") -> None:
    failed = [outcome for outcome in outcomes if outcome.reason is not None]
    if failed:
        print_line()
    for outcome in failed:
        print_line(f"failed: {outcome.run.folder_name}: {outcome.reason}")


def devices_of(gpus: str | None) -> list[str | None]:
    """List the GPUs to use as CUDA_VISIBLE_DEVICES names them; [None] runs one by one on whatever is there."""
    if gpus is None:
        return [None]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = [name.strip() for name in visible.split(",") if name.strip()] if visible is not None else _count_gpus()
    if gpus == "all":
        if not there:
            raise ConfigError("--gpus all: this machine has no GPU that is visible; leave --gpus out")
        return [*there]
    chosen = [name.strip() for name in gpus.split(",")]
    wrong = [name for name in chosen if name not in there]
    if wrong or len(set(chosen)) < len(chosen):
        raise ConfigError(f"--gpus {gpus}: visible are {', '.join(there) or 'none'}; name each once, or say all")
    return [*chosen]


def _count_gpus() -> list[str]:
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]
