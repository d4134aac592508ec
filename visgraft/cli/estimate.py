"""`visgraft estimate`: whether a recipe fits a GPU, how long it takes there, and what to change where it does not fit.

In: a recipe. Out: a table of memory by part and the time, or JSON. Usage: `visgraft estimate recipe.yaml --gpu 24GB`
"""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from visgraft.cli.hub import go_offline_without_network, names_of_recipe
from visgraft.cli.options import AsJson, shipped_names
from visgraft.cli.terminal import labelled, note, print_json, print_line, print_rich, quiet_libraries
from visgraft.config import load_recipe
from visgraft.errors import names_needed_for
from visgraft.wording import counted

GIB = 2**30
TIGHT = 0.87  # of the memory: above it, an estimate that is 15 % off decides


def estimate(
    recipe: Annotated[
        Path,
        typer.Argument(
            autocompletion=shipped_names,
            metavar="RECIPE",
            help="Recipe (a file or a shipped one's name), or a run folder.",
            show_default=False,
        ),
    ],
    gpu: Annotated[
        str | None,
        typer.Option(metavar="GPU", help="24GB, rtx4090, a100-80gb, h100, ...", show_default="what is here"),
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, metavar="N", help="How many of them, over all machines.")] = 1,
    nodes: Annotated[
        int | None, typer.Option(min=1, metavar="M", help="In how many machines.", show_default="eight GPUs in each")
    ] = None,
    network: Annotated[
        float, typer.Option(metavar="GBIT", help="Gbit/s that a machine sends to the others: an assumption.")
    ] = 400.0,
    utilisation: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Of the dense rate, over a step: an assumption.",
            show_default="0.4 of a GPU's, 0.55 of this computer's",
        ),
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

    With --gpus, which of the shipped launch configs fits: what each GPU holds, and how long the run takes.

    Only configurations are read, no weights: one step runs without numbers. Of a part that is not here its config.json
    is enough: put it into a folder and give --set model.vision=FOLDER or --set model.language.name=FOLDER.

    The exit status is 1 where the recipe does not fit.
    """
    loaded = load_recipe(recipe, overrides=overrides or [])
    go_offline_without_network(names_of_recipe(loaded))
    note(f"reading {recipe}")
    quiet_libraries()
    with names_needed_for("visgraft estimate"):
        from visgraft.estimate.estimate import estimate as estimate_recipe

    found = estimate_recipe(
        loaded,
        gpu=gpu,
        gpus=gpus,
        nodes=nodes,
        network_gbit=network,
        utilisation=utilisation,
        measure=measure,
        say=note,
    )
    values = {"recipe": str(recipe), **found.as_json()}
    if as_json:
        print_json(values)
    else:
        _print(values)
    return 0 if found.fits else 1


def _print(values: dict[str, Any]) -> None:
    labels = [("recipe", values["recipe"]), ("gpu", f"{values['gpu']}, {_gib(values['memory_bytes'])}")]
    if values["gpus"] > 1:
        labels.append(("gpus", f"{values['gpus']} in {values['nodes']} machine{'s'[: values['nodes'] > 1]}"))
    print_rich(labelled(labels))
    print_line()
    if values["shardings"]:
        print_rich(_sharding_table(values))
        print_line()
    print_rich(_memory_table(values))
    print_line()
    facts = [("verdict", _verdict(values)), ("time", _time_in_words(values["time"]))]
    if values["measured"] is not None and values["measured"]["peak_bytes"] is not None:
        facts.append(("measured", f"{_gib(values['measured']['peak_bytes'])} without what the framework holds"))
    facts.append(("loading", f"{_gib(values['loading_bytes'])} of the computer's memory while the weights are read"))
    facts += [("assumed", text) for text in values["assumptions"]]
    facts += [("hint", text) for text in values["hints"]]
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


def _sharding_table(values: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("config")
    for name in ("memory a GPU", "a step", "the run"):
        table.add_column(name, justify="right")
    table.add_column("")
    for each in values["shardings"]:
        step, run = each["seconds_per_step"], each["seconds"]
        times = ("" if step is None else f"{step:.3g} s", "" if run is None else _duration(run))
        is_best = each["name"] == values["sharding"]
        words = "fits, the best" if is_best else "fits" if each["fits"] else "does not fit"
        table.add_row(each["name"], _gib(each["total_bytes"]), *times, words, style="bold" if is_best else None)
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
        words += f", {counted(time['steps'], 'step')} in {_duration(time['seconds'])}"
    return f"{words} ({time['basis']})"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{max(1, minutes)} min"


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"
