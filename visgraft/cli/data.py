"""`visgraft data`: check, show and prepare the data of a recipe.

In: a recipe. Out: a table or JSON of what is there and what is bad; an HTML contact sheet; parquet shards.
Usage: `visgraft data check recipe.yaml --json`
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from visgraft.cli.hub import go_offline_without_network, names_of_recipe
from visgraft.cli.options import AsJson, shipped_names
from visgraft.cli.terminal import note, print_json, print_line, quiet_libraries
from visgraft.config import Recipe, load_recipe, recipe_to_yaml
from visgraft.reporting.progress import working

if TYPE_CHECKING:
    from visgraft.data.source_report import SourceReport
    from visgraft.data.sources import Sources
    from visgraft.data.windows import Streams
    from visgraft.processor import Processor

ANSWER_IS_NO = 1

RecipeFile = Annotated[
    str,
    typer.Argument(
        autocompletion=shipped_names,
        metavar="RECIPE",
        help="Recipe (a file or a shipped one's name), or a run folder.",
        show_default=False,
    ),
]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting.")]
Part = Annotated[Literal["train", "validation", "test"], typer.Option(help="Which list of sources.")]
Images = Annotated[
    bool,
    typer.Option(
        "--images/--no-images",
        help="Open every image, which is nearly all of the work: broken, blank, tiny and copied ones are found.",
    ),
]
Workers = Annotated[int | None, typer.Option(min=0, help="Processes that read.", show_default="as many as CPU cores")]

data = typer.Typer(help="Check, show and prepare the data of a recipe.", no_args_is_help=True)


@data.command(epilog="Example:\n\n  [bold]visgraft data check recipe.yaml[/bold]")
def check(
    recipe: RecipeFile,
    overrides: Overrides = None,
    workers: Workers = None,
    images: Images = True,
    as_json: AsJson = False,
) -> int | None:
    """Read all the data as training would, and print what is there, what is bad and what a colleague would ask about.

    Exit status 1: training would stop, or what it measures would say nothing; the errors on the page say why.
    """
    settings, processor = _load(recipe, overrides)
    from visgraft.cli.check_page import print_check
    from visgraft.data.check import check_sources, check_streams, is_within_budget
    from visgraft.data.findings import find

    reports: list[SourceReport] = []
    number = os.cpu_count() or 1 if workers is None else workers
    started = time.monotonic()
    for part in ("train", *(part for part in ("validation", "test") if getattr(settings.data, part))):
        streams = _open_streams(settings, part)
        if streams is not None:
            with working(f"reading {part}", total=None, unit="samples") as advance:
                reports += check_streams(streams, processor, num_workers=number, with_images=images, progress=advance)
            continue
        sources = _open(settings, part)
        with working(f"reading {part}", total=len(sources), unit="samples") as advance:
            reports += check_sources(sources, processor, num_workers=number, with_images=images, progress=advance)
    findings = find(reports, settings=settings.data)
    is_good = not any(finding.level == "error" for finding in findings)
    seconds, opened = time.monotonic() - started, sum(report.images for report in reports)
    if as_json:
        values = {"sources": [report.as_json() for report in reports]}
        found = [finding.as_json() for finding in findings]
        cost = {"images_opened": opened if images else None, "seconds": round(seconds, 3)}
        print_json({**values, "findings": found, "ok": is_good, "within_budget": is_within_budget(reports), **cost})
    else:
        print_check(reports, findings, num_images=opened if images else None, seconds=seconds)
    return None if is_good else ANSWER_IS_NO


@data.command(epilog="Example:\n\n  [bold]visgraft data show recipe.yaml -n 48 -o sheet.html[/bold]")
def show(
    recipe: RecipeFile,
    number: Annotated[int, typer.Option("-n", "--number", min=1, help="Samples to draw.")] = 24,
    output: Annotated[Path, typer.Option("-o", "--output", help="The page.")] = Path("data.html"),
    part: Part = "train",
    overrides: Overrides = None,
) -> None:
    """Draw samples on an offline HTML page: images as the model sees them, what it learns to say in colour."""
    settings, processor = _load(recipe, overrides)
    from visgraft.data.contact_sheet import write_contact_sheet

    streams = _open_streams(settings, part)  # of a stream, its first window
    sources = _open(settings, part) if streams is None else streams.window(seed=None, epoch=0, place=None).sources
    with working("drawing", total=min(number, len(sources)), unit="samples") as advance:
        write_contact_sheet(output, sources, processor, number=number, title=f"{recipe}: {part} data", progress=advance)
    print_line(str(output))


@data.command(epilog="Example:\n\n  [bold]visgraft data prepare recipe.yaml prepared[/bold]")
def prepare(
    recipe: RecipeFile,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder, or one to go on with.")],
    overrides: Overrides = None,
) -> None:
    """Write the data as parquet shards, grouped by image and each image once.

    `datasets` and the Hub's viewer open them; {source: parquet, path: DIR} reads them. Interrupted, it goes on where
    it stopped.
    """
    settings = load_recipe(recipe, overrides=overrides or [])
    settings = _with_folders(settings)
    from visgraft.data.prepare import prepare as write_shards

    for part in ("train", *(["validation"] if settings.data.validation else [])):
        sources = _open(settings, part)
        fingerprint = recipe_to_yaml(Recipe(data=settings.data))
        with working(f"writing {part}", total=len(sources), unit="samples") as advance:
            shards = write_shards(sources, folder, split=part, fingerprint=fingerprint, progress=advance)
        for shard in shards:
            print_line(str(shard))


def _load(recipe: str, overrides: Sequence[str] | None) -> "tuple[Recipe, Processor]":
    settings = load_recipe(recipe, overrides=overrides or [])
    go_offline_without_network(names_of_recipe(settings))
    note("loading transformers")
    settings = _with_folders(settings)
    from visgraft.builder.build import build_processor

    return settings, build_processor(settings)


def _with_folders(settings: Recipe) -> Recipe:
    quiet_libraries()
    from visgraft.starter import resolve

    return resolve(settings, say=note)


def _open(settings: Recipe, part: str) -> "Sources":
    from visgraft.data.sources import open_sources

    note(f"opening {part}")
    entries = getattr(settings.data, part)
    return open_sources(entries, key=f"data.{part}", settings=settings.data)


def _open_streams(settings: Recipe, part: str) -> "Streams | None":
    from visgraft.data.windows import open_streams

    entries = getattr(settings.data, part)
    return open_streams(entries, key=f"data.{part}", settings=settings.data)
