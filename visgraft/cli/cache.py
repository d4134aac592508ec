"""`visgraft cache`: what is kept between runs, how large it is, and away with it.

In: nothing, or the names of kinds to clear. Out: a line a kind. Usage: `visgraft cache --clear vision`
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from visgraft.atomic import remove_folder
from visgraft.cli.options import AsJson
from visgraft.cli.terminal import print_json, print_line, print_rich
from visgraft.errors import ConfigError
from visgraft.listing import listing

EVERYTHING = "all"


def cache(
    clear: Annotated[
        list[str] | None,
        typer.Option("--clear", metavar="KIND", help="Remove this kind, or all; may be given often."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what is kept between runs and how large it is, or clear it.

    Everything in it can be made or fetched again; no run, model or answer of yours is in there. Models from the Hugging
    Face Hub are in the Hub's own cache (`hf cache scan`).
    """
    from visgraft.disk_cache import KINDS, cache_folder

    folder = cache_folder()
    for kind in clear or []:
        _clear(folder, kind)
    found = {kind: _size([folder / name for name in names]) for kind, (names, _) in KINDS.items()}
    if as_json:
        kinds = {
            kind: {"what": KINDS[kind][1], "size_bytes": size, "files": files} for kind, (size, files) in found.items()
        }
        print_json({"folder": str(folder), "size_bytes": sum(size for size, _ in found.values()), "kinds": kinds})
        return
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for kind, (size, _) in found.items():
        table.add_row(kind, _in_words(size), KINDS[kind][1])
    print_line(str(folder))
    print_rich(table)


def _clear(folder: Path, kind: str) -> None:
    from visgraft.disk_cache import KINDS

    if kind not in (*KINDS, EVERYTHING):
        raise ConfigError(f"--clear {kind}: no such kind; need one of {', '.join(KINDS)}, or {EVERYTHING}")
    kinds = list(KINDS) if kind == EVERYTHING else [kind]
    for place in (folder / name for each in kinds for name in KINDS[each][0]):
        if place.is_symlink():
            raise ConfigError(f"{place}: is a link to somewhere else, where nothing is removed; remove the link itself")
        if place.is_dir():
            remove_folder(place)


def _size(folders: Sequence[Path]) -> tuple[int, int]:
    """Return bytes and number of the files in folders that may not be there."""
    sizes = [found.state.st_size for folder in folders for found in listing(folder, "**/*") if found.is_file]
    return sum(sizes), len(sizes)


def _in_words(size: int) -> str:
    for unit, worth in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= worth:
            return f"{size / worth:.1f} {unit}"
    return f"{size} B"
