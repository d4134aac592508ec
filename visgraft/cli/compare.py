"""`visgraft compare`: put runs side by side in one offline HTML page.

In: experiments and runs. Out: a page, and where asked a picture, Markdown, JSON.
Usage: `visgraft compare runs/modules -o report.html`
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from visgraft.atomic import write_whole
from visgraft.cli.hub import go_offline_without_network, names_of_model
from visgraft.cli.options import AsJson, Device, MaxNewTokens
from visgraft.cli.terminal import note, print_json, print_line, print_rich, quiet_libraries, tell
from visgraft.errors import ConfigError

if TYPE_CHECKING:
    from visgraft.compare.answers import SamplePrompt
    from visgraft.compare.variants import Comparison

MAX_COLUMNS = 6  # of results in the terminal; the page has them all


def compare(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="EXPERIMENT|RUN...", help="Experiment folders and run folders.", show_default=False),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The page to write.")] = Path("compare.html"),
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only", metavar="VARIANT", help="Show only this variant; may be given often.", show_default=False
        ),
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option("--image", metavar="FILE", help="Put an image of your own to every model.", show_default=False),
    ] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option("--prompt", metavar="TEXT", help="What to ask about those images.", show_default="a caption"),
    ] = None,
    png: Annotated[
        Path | None, typer.Option("--png", metavar="FILE", help="Write the curves as a picture.", show_default=False)
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="Write the tables.", show_default=False)
    ] = None,
    max_new_tokens: MaxNewTokens = 64,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Put runs side by side: curves, what differs, results, answers to the same questions.

    Runs that differ only in their seed are one variant. The page is one file that needs no network. With --only the
    other variants are hidden in the page, where a click shows them again.
    """
    _check_outputs(output, png, markdown)
    if prompts and not images:
        raise ConfigError("--prompt: there is no image to ask about; add --image FILE")
    from visgraft.compare.collect import check_common_data, choose, collect

    note("reading the runs")
    comparison = collect(paths)
    shown = choose(comparison, only or [])
    if not images:
        check_common_data(comparison)
    own = _ask(comparison, shown, images or [], prompts or [""], max_new_tokens=max_new_tokens, device=device)
    quiet_libraries()
    from visgraft.compare.answers import gather
    from visgraft.compare.report import write_picture, write_report

    questions = gather(comparison.variants, note=note)
    note("drawing")
    written = [write_report(comparison, questions, output.expanduser(), own=own, shown=shown)]
    if png:
        written.append(write_picture(comparison, png.expanduser(), shown=shown))
    _print(comparison, [*own, *questions], shown, markdown=markdown, as_json=as_json)
    for path in [*written, *([markdown] if markdown else [])]:
        (tell if as_json else print_line)(str(path))


def _check_outputs(*paths: Path | None) -> None:
    for path in paths:
        if path and path.expanduser().is_dir():
            raise ConfigError(f"{path} is a folder: give the name of a file to write")


def _ask(
    comparison: "Comparison",
    shown: list[str],
    images: list[Path],
    prompts: list[str],
    *,
    max_new_tokens: int,
    device: str | None,
) -> "list[SamplePrompt]":
    """Put images of one's own to the models of the variants that are shown."""
    if not images:
        return []
    models = [run.folder / "model" for run in comparison.runs if (run.folder / "model").is_dir()]
    go_offline_without_network([name for model in models for name in names_of_model(str(model))])
    quiet_libraries()
    from visgraft.compare.own_images import ask_variants

    chosen = [variant for variant in comparison.variants if variant.name in shown]
    return ask_variants(chosen, images, prompts, max_new_tokens=max_new_tokens, device=device, note=note)


def _print(
    comparison: "Comparison",
    questions: "list[SamplePrompt]",
    shown: list[str],
    *,
    markdown: Path | None,
    as_json: bool,
) -> None:
    """Write the Markdown file; print JSON, or the first columns of the results."""
    from visgraft.compare.json_and_markdown import as_json as as_values
    from visgraft.compare.json_and_markdown import as_markdown, cell_text
    from visgraft.compare.results_table import results

    if markdown:
        write_whole(markdown.expanduser(), as_markdown(comparison, questions, shown=shown))
    if as_json:
        print_json(as_values(comparison, questions))
        return
    columns = results([variant for variant in comparison.variants if variant.name in shown])[:MAX_COLUMNS]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("variant")
    for column in columns:
        table.add_column(column.title, justify="right")
    for name in shown:
        table.add_row(Text(name), *(Text(cell_text(column, column.cells.get(name))) for column in columns))
    print_rich(table)
    print_line()
    for text in [*comparison.notes, *(column.note for column in columns if column.note)]:
        tell(text)
