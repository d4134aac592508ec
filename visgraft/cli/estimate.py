"""`visgraft estimate`: whether a recipe fits a GPU, how long it takes there, and what to change where it does not fit.

In: a recipe. Out: a table of memory by part and the time, or JSON. Usage: `visgraft estimate recipe.yaml --gpu 24GB`
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from visgraft.cli.hub import go_offline_without_network, names_of_recipe
from visgraft.cli.options import AsJson
from visgraft.cli.terminal import labelled, note, print_json, print_line, print_rich, quiet_libraries
from visgraft.config import Recipe, load_recipe

if TYPE_CHECKING:
    from visgraft.estimate.advice import Change
    from visgraft.estimate.estimate import Estimate
    from visgraft.estimate.gpus import Gpu
    from visgraft.estimate.outline import Outline
    from visgraft.estimate.trial import Trial

GIB = 2**30
TIGHT = 0.87  # of the memory: above it, an estimate that is 15 % off decides


def estimate(
    recipe: Annotated[
        Path,
        typer.Argument(
            metavar="RECIPE", help="Recipe (a file or a shipped one's name), or a run folder.", show_default=False
        ),
    ],
    gpu: Annotated[
        str | None,
        typer.Option(metavar="GPU", help="24GB, rtx4090, a100-80gb, h100, ...", show_default="what is here"),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the recipe.")
    ] = None,
    measure: Annotated[
        bool | None,
        typer.Option(
            "--measure/--no-measure",
            help="Measure two steps on this machine.",
            show_default="without --gpu, where a GPU, the weights and the data are here",
        ),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Say whether a recipe fits a GPU, how long it takes there, and what to change where it does not fit.

    Only configurations are read, no weights: one step runs without numbers. Of a part that is not here its config.json
    is enough: put it into a folder and give --set model.vision=FOLDER or --set model.language.name=FOLDER.

    The exit status is 1 where the recipe does not fit.
    """
    loaded = load_recipe(recipe, overrides=overrides or [])
    go_offline_without_network(names_of_recipe(loaded))
    note(f"reading {recipe}")
    quiet_libraries()
    from visgraft.estimate.advice import advise
    from visgraft.estimate.gpus import find_gpu, local_gpu

    wanted = local_gpu() if gpu is None else find_gpu(gpu)
    outline, found = _estimate(loaded, wanted)
    changes: list[Change] = []
    for change in advise(loaded, found, gpu=wanted, estimate_of=lambda changed: _estimate(changed, wanted)[1]):
        note(f"with {change.setting} {_gib(change.total_bytes)}")
        changes.append(change)
    is_wanted = measure if measure is not None else gpu is None and wanted.is_gpu and found.fits(wanted)
    trial = _try_out(outline, is_asked=bool(measure)) if is_wanted else None
    values = _as_values(str(recipe), wanted, outline, found, changes, trial)
    if as_json:
        print_json(values)
    else:
        _print(values)
    return 0 if values["fits"] else 1


def _estimate(recipe: Recipe, gpu: "Gpu") -> "tuple[Outline, Estimate]":
    import torch

    from visgraft.estimate.estimate import estimate_run
    from visgraft.estimate.outline import outline_run
    from visgraft.model.precision import DTYPES

    precision = recipe.train.precision
    dtype = gpu.dtype if precision == "auto" else DTYPES[precision]
    device = torch.device("cuda" if gpu.is_gpu else "cpu")
    outline = outline_run(recipe, dtype=dtype, device=device, progress=note)
    note("running a step without numbers")
    estimate = estimate_run(
        outline.model,
        outline.micro_batches,
        dtype=dtype,
        on_gpu=gpu.is_gpu,
        has_block_masks=outline.has_block_masks,
        quantization=outline.quantization,
    )
    return outline, estimate


def _try_out(outline: "Outline", *, is_asked: bool) -> "Trial | None":
    """Measure, if a person asked for it or if nothing has to be fetched for it."""
    from visgraft.estimate.trial import has_weights, try_out

    is_ready = outline.num_steps is not None and has_weights(outline.recipe)
    return try_out(outline.recipe, progress=note) if is_asked or is_ready else None


def _as_values(
    name: str,
    gpu: "Gpu",
    outline: "Outline",
    estimate: "Estimate",
    changes: Sequence["Change"],
    trial: "Trial | None",
) -> dict[str, Any]:
    """Gather what is printed."""
    seconds, basis = _seconds_per_step(gpu, outline, estimate, trial)
    run = None if seconds is None or outline.num_steps is None else round(seconds * outline.num_steps, 1)
    return {
        "recipe": name,
        "gpu": gpu.name,
        "memory_bytes": gpu.memory_bytes,
        "total_bytes": estimate.total_bytes,
        "loading_bytes": estimate.loading_bytes,
        "fits": estimate.fits(gpu),
        "parts": dict(estimate.sizes),
        "weights": dict(estimate.weights),
        "time": {"seconds_per_step": seconds, "steps": outline.num_steps, "seconds": run, "basis": basis},
        "measured": None if trial is None else asdict(trial),
        "changes": [asdict(change) for change in changes],
        "assumptions": list(outline.assumptions),
    }


def _seconds_per_step(
    gpu: "Gpu", outline: "Outline", estimate: "Estimate", trial: "Trial | None"
) -> tuple[float | None, str]:
    """Say how long a step takes, and by what that is known."""
    from visgraft.estimate.estimate import UTILISATION

    if trial is not None:
        return median(trial.seconds), f"measured here, {len(trial.seconds)} steps on {trial.device}"
    if gpu.tflops is None:
        return None, "unknown: name a GPU, such as --gpu rtx4090, or measure here with --measure"
    seconds = estimate.seconds_per_step(num_positions=outline.num_positions, tflops=gpu.tflops)
    return round(seconds, 4), f"from its arithmetic, at {UTILISATION:.0%} of {gpu.tflops:g} TFLOP/s"


def _print(values: dict[str, Any]) -> None:
    labels = [("recipe", values["recipe"]), ("gpu", f"{values['gpu']}, {_gib(values['memory_bytes'])}")]
    print_rich(labelled(labels))
    print_line()
    print_rich(_memory_table(values))
    print_line()
    facts = [("verdict", _verdict(values)), ("time", _time_in_words(values["time"]))]
    if values["measured"] is not None and values["measured"]["peak_bytes"] is not None:
        facts.append(("measured", f"{_gib(values['measured']['peak_bytes'])} without what the framework holds"))
    facts.append(("loading", f"{_gib(values['loading_bytes'])} of the computer's memory while the weights are read"))
    facts += [("assumed", text) for text in values["assumptions"]]
    print_rich(labelled(facts))
    if values["changes"]:
        print_line()
        print_rich(_changes_table(values))


def _memory_table(values: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("part")
    table.add_column("memory", justify="right")
    table.add_column("")
    weights = ", ".join(f"{part} {_gib(size)}" for part, size in values["weights"].items() if size)
    for part, size in values["parts"].items():
        table.add_row(part, _gib(size), Text(weights if part == "weights" else ""))
    table.add_row("all", _gib(values["total_bytes"]), "at the fullest instant of a step", style="bold")
    return table


def _changes_table(values: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name, justify in (("change, each on top of the last", "left"), ("saves", "right"), ("then", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    table.add_column("")
    for change in values["changes"]:
        sizes = (_gib(change["saved_bytes"]), _gib(change["total_bytes"]))
        table.add_row(Text(f"--set {change['setting']}"), *sizes, Text(change["costs"]))
    return table


def _verdict(values: dict[str, Any]) -> str:
    share = values["total_bytes"] / values["memory_bytes"]
    if values["fits"]:
        return f"it fits, in {share:.0%}" + ("; that is tight, the estimate may be 15 % off" if share > TIGHT else "")
    if values["total_bytes"] <= values["memory_bytes"]:
        return f"it does not fit: reading the weights takes {_gib(values['loading_bytes'])}"
    last = values["changes"][-1]["total_bytes"] if values["changes"] else values["total_bytes"]
    with_changes = "with the changes below it does" if last <= values["memory_bytes"] else "nor with any change below"
    return f"it does not fit: it takes {share:.0%}; {with_changes if values['changes'] else 'no change would do'}"


def _time_in_words(time: dict[str, Any]) -> str:
    if time["seconds_per_step"] is None:
        return time["basis"]
    words = f"{time['seconds_per_step']:.3g} s a step"
    if time["seconds"] is not None:
        words += f", {time['steps']:,} steps in {_duration(time['seconds'])}"
    return f"{words} ({time['basis']})"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{max(1, minutes)} min"


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"
