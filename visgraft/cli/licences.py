"""`visgraft licences`: under which terms the parts and the data of a recipe or a model are.

In: a recipe, run, model folder, Hub name or benchmark. Out: a table, or JSON. Usage: `visgraft licences recipe.yaml`
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from visgraft.cli.hub import go_offline_without_network, names_of_model, names_of_recipe
from visgraft.cli.options import AsJson, shipped_names
from visgraft.cli.terminal import note, print_json, print_line, print_rich
from visgraft.config import find_recipe, load_recipe
from visgraft.errors import CheckpointError, ConfigError
from visgraft.licences import Licence, licences_of_benchmark, licences_of_model, licences_of_recipe

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def licences(
    target: Annotated[
        str,
        typer.Argument(
            autocompletion=shipped_names,
            metavar="RECIPE|MODEL",
            help="Recipe, run, model folder, Hub name or benchmark.",
            show_default=False,
        ),
    ],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of a recipe.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say licence, revision and terms of every part and every source of data.

    They are read from the cards of models and data sets: in their folders, on the Hub, or in its cache. What no card
    says is unknown, and no advice of a lawyer is meant.
    """
    found = _look_up(target, overrides or [])
    if as_json:
        print_json([licence.as_json() for licence in found])
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("of", "name", "licence", "asks", "revision", "terms"):
        table.add_column(column, overflow="fold")
    for each in found:
        cells = (each.what, each.name, each.licence, each.kind, each.revision or "", each.terms)
        table.add_row(*(Text(cell) for cell in cells))
    print_rich(table)
    worrying = sum(each.is_worrying for each in found)
    if worrying:
        print_line()
        print_line(f"{worrying} of {len(found)} have no known terms, or forbid commercial use: look them up")


def _look_up(target: str, overrides: list[str]) -> list[Licence]:
    path = find_recipe(target)
    is_recipe = path.is_file() or path.suffix in (".yaml", ".yml")
    benchmark = BENCHMARKS / f"{target}.yaml"
    if not is_recipe and overrides:
        raise ConfigError(f"--set: {target} is no recipe, so there is nothing to change; leave --set out")
    if not is_recipe and not path.exists() and benchmark.is_file():
        go_offline_without_network([target])
        return licences_of_benchmark(benchmark)
    has_model = any((path / name).is_file() for name in ("config.json", "model/config.json"))
    if is_recipe or ((path / "recipe.yaml").is_file() and not has_model):  # a run that is not yet finished
        recipe = load_recipe(path, overrides=overrides)
        go_offline_without_network(names_of_recipe(recipe))
        note(f"reading {target}")
        return licences_of_recipe(recipe)
    if path.exists() and not has_model:
        raise CheckpointError(f"{target}: holds no config.json; need a recipe, a run or a model folder")
    go_offline_without_network(names_of_model(target))
    note(f"reading {target}")
    return licences_of_model(target)
