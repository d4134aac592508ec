"""`visgraft recipes`: what is shipped, to be named as it is or to begin one's own with.

In: nothing, or a name. Out: the names, or the file. Usage: `visgraft recipes easy_vqa -o recipe.yaml`
"""

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from visgraft.atomic import write_whole
from visgraft.cli.options import AsJson, shipped_names
from visgraft.cli.terminal import print_json, print_line, print_rich
from visgraft.config.shipped import first_line, shipped_recipe, shipped_recipes
from visgraft.errors import ConfigError


def recipes(
    name: Annotated[
        str | None,
        typer.Argument(autocompletion=shipped_names, metavar="NAME", help="Print this one.", show_default="list all"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Copy it into a file.", show_default="print it"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the recipes, experiments and launch files that come with visgraft, or print or copy one.

    `visgraft train`, `show`, `estimate`, `data` and `experiment` take their names in place of a file.
    """
    if name is None:
        if output is not None:
            raise ConfigError(f"--output {output}: got no NAME to copy; `visgraft recipes` lists them")
        lines = {known: first_line(path) for known, path in shipped_recipes().items()}
        if as_json:
            print_json(lines)
        else:
            _print(lines)
        return
    path = shipped_recipe(name)
    if path is None:
        near = get_close_matches(name, shipped_recipes(), n=1)
        hint = f"did you mean {near[0]}?" if near else "`visgraft recipes` lists them"
        raise ConfigError(f"{name}: nothing is shipped under that name; {hint}")
    text = path.read_text(encoding="utf-8")
    if output is None:
        print_line(text.rstrip())
        return
    if output.exists() and not force:
        raise ConfigError(f"{output}: already there; name another with -o, or say --force")
    write_whole(output, text)
    print_line(str(output))


def _print(lines: dict[str, str]) -> None:
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, line in lines.items():
        table.add_row(Text(name, style="bold"), Text(line))
    print_rich(table)
