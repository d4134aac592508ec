"""`visgraft show`: what a recipe would train, or what a run or a model is, without loading any weights.

In: a recipe, run, model folder or Hub name. Out: the joined model drawn, a table of the parts, facts; or JSON.
Usage: `visgraft show runs/my-run --json`
"""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from visgraft.cli.drawing import draw_model
from visgraft.cli.hub import go_offline_without_network, names_of_model, names_of_recipe
from visgraft.cli.options import AsJson, shipped_names
from visgraft.cli.terminal import labelled, note, print_json, print_line, print_rich, quiet_libraries
from visgraft.config import find_recipe, load_recipe
from visgraft.errors import ConfigError
from visgraft.reporting.progress import Fitting
from visgraft.runs import Run

if TYPE_CHECKING:
    from visgraft.builder.describe import Description


def show(
    target: Annotated[
        str,
        typer.Argument(
            autocompletion=shipped_names,
            metavar="RECIPE|MODEL",
            help="Recipe, run, model folder or Hub name.",
            show_default=False,
        ),
    ],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of a recipe.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Draw the joined model of a recipe, a run or a folder: its parts, their shapes and sizes, and what trains.

    Only configurations are read, no weights, so that a model of any size is shown on any machine.
    """
    path = find_recipe(target)
    is_recipe = path.is_file() or path.suffix in (".yaml", ".yml") or (path / "recipe.yaml").is_file()
    if is_recipe:
        recipe = load_recipe(path, overrides=overrides or [])
        names = names_of_recipe(recipe)
    elif overrides:
        raise ConfigError(f"--set: {target} is no recipe, so there is nothing to change; leave --set out")
    else:
        names = names_of_model(target)
    go_offline_without_network(names)
    note(f"reading {target}")
    quiet_libraries()
    from visgraft.builder.describe import describe_model, describe_recipe

    if is_recipe:
        run = Run.open(path) if path.is_dir() else None
        described = describe_recipe(recipe, name=target, run=run, say=note)
    else:
        described = describe_model(target)
    if as_json:
        print_json(described.as_json())
    else:
        _print(described)


def _print(described: "Description") -> None:
    print_rich(labelled(described.heading))
    print_line()
    print_rich(draw_model(described))
    print_line()
    print_rich(Fitting(_parts_table(described), _parts_in_lines(described)))
    print_line()
    notes = [(row.part, "; ".join(row.notes)) for row in described.rows if row.notes]
    if notes:
        print_rich(labelled(notes))
        print_line()
    print_rich(labelled(described.facts))


def _parts_in_lines(described: "Description") -> Table:
    """Tell the same as the table in words, each part behind its name: every number whole at any width."""
    is_model = described.values["kind"] == "model"
    facts: list[tuple[str, str]] = []
    for row in described.rows:
        rate = "" if is_model or row.learning_rate is None else f", learning rate {row.learning_rate:g}"
        counts = f"{row.num_parameters:,} parameters, {row.num_trainable:,} {'stored' if is_model else 'trained'}"
        facts.append((row.part, f"{row.mode}: {counts}, {_short(row.dtype)}{rate}"))
    totals = described.as_json()
    kept = "stored" if is_model else "trained"
    facts.append(("all", f"{totals['num_parameters']:,} parameters, {totals['num_trainable']:,} {kept}"))
    return labelled(facts)


def _short(dtype: str) -> str:
    return dtype.replace("bfloat", "bf").replace("float", "fp")


def _parts_table(described: "Description") -> Table:
    """Draw the parts: of a recipe or run what trains, of a model what its folder holds."""
    is_model = described.values["kind"] == "model"
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("part")
    table.add_column("kept" if is_model else "trains")
    table.add_column("parameters", justify="right")
    table.add_column("stored" if is_model else "trained", justify="right")
    table.add_column("format")
    if not is_model:
        table.add_column("learning rate", justify="right")
    for row in described.rows:
        rate = "" if row.learning_rate is None else f"{row.learning_rate:g}"
        counts = (f"{row.num_parameters:,}", f"{row.num_trainable:,}")
        cells = [row.part, row.mode, *counts, _short(row.dtype), *([] if is_model else [rate])]
        table.add_row(*(Text(cell) for cell in cells))
    totals = described.as_json()
    table.add_row("all", "", f"{totals['num_parameters']:,}", f"{totals['num_trainable']:,}", style="bold")
    return table
