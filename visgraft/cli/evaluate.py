"""`visgraft evaluate`: score models on data, or answers that exist.

In: models and a recipe or benchmark, or a file of answers. Out: a table or JSON; a folder with answers and a page.
Usage: `visgraft evaluate runs/my-run --data easy-vqa`
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from visgraft.cli.options import AsJson
from visgraft.cli.terminal import note, print_json, print_line, print_rich, tell
from visgraft.errors import ConfigError

if TYPE_CHECKING:
    from visgraft.evaluation.scoring import Scored


def evaluate(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL...", help="Run folders, model folders or Hub names.", show_default=False),
    ] = None,
    answers: Annotated[
        list[Path] | None,
        typer.Option("--answers", metavar="FILE", help="Score the answers of this file.", show_default=False),
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="What to score; --list shows all.", show_default=False)
    ] = None,
    language: Annotated[
        str | None, typer.Option(metavar="ja|zh|th", help="Split texts by character.", show_default=False)
    ] = None,
    power: Annotated[
        float | None,
        typer.Option(metavar="D", help="Say how many images would show a difference of D.", show_default=False),
    ] = None,
    is_list: Annotated[bool, typer.Option("--list", help="List the metrics and the benchmarks.")] = False,
    as_json: AsJson = False,
) -> None:
    """Score models on a recipe's test data or a benchmark, or score answers that exist.

    Every score comes with a 95 % interval, from drawing images with all their questions.
    """
    if is_list:
        _print_list(as_json=as_json)
        return
    if power is not None and power <= 0:
        raise ConfigError(f"--power: got {power:g}, need a difference above 0, such as 0.01")
    names = [name.strip() for name in (metrics or "").split(",") if name.strip()]
    if not answers:
        raise ConfigError("nothing to score: give models with --data RECIPE, or --answers FILE")
    if models:
        raise ConfigError(f"got models ({', '.join(models)}) and --answers; give one of the two")
    scored = _score_files(answers, names, language=language)
    _print_scored(scored, {"metrics": names, "language": language}, power=power, as_json=as_json)


def _print_list(*, as_json: bool) -> None:
    """Print every metric: its scores, what it is, where it is from."""
    from visgraft.metrics import METRICS

    if as_json:
        rows = [
            {"name": name, "scores": metric.gives, "what": metric.what, "source": metric.source,
             "highest": metric.highest if metric.highest < float("inf") else None, "needs": metric.needs}
            for name, metric in METRICS.items()
        ]  # fmt: skip
        print_json({"metrics": rows})
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("metric", "scores", "what", "source"):
        table.add_column(heading, overflow="fold")
    for name, metric in METRICS.items():
        table.add_row(name, ", ".join(metric.gives), metric.what, metric.source)
    print_rich(table)


def _score_files(files: Sequence[Path], metrics: Sequence[str], *, language: str | None) -> "list[Scored]":
    """Score the answers of files, each under its name."""
    from visgraft.evaluation.records import read_answers
    from visgraft.evaluation.scoring import check_metrics, score_answers, warn_of_language

    check_metrics(metrics)
    scored: list[Scored] = []
    for path in files:
        for name, answered in read_answers(path.expanduser()).items():
            if any(each.model == name for each in scored):
                name = str(path)
            warning = warn_of_language(answered, metrics=metrics, language=language)
            if warning:
                tell(f"{name}: {warning}")
            note(f"scoring {name}")
            scored.append(score_answers(name, answered, metrics=metrics, language=language))
    return scored


def _print_scored(scored: "Sequence[Scored]", settings: dict[str, Any], *, power: float | None, as_json: bool) -> None:
    """Print scores, what differs, and what it would take to see a difference."""
    from visgraft.evaluation.comparing import compare_models, not_compared, power_of
    from visgraft.evaluation.scoring import scored_as_json

    compared = compare_models(scored)
    rows = [] if power is None else power_of(scored, difference=power)
    if as_json:
        values: dict[str, Any] = {"models": [{**scored_as_json(each), "settings": settings} for each in scored]}
        if len(scored) > 1:
            values["comparisons"] = [row.as_json() for row in compared]
        if power is not None:
            values["power"] = rows
        print_json(values)
        return
    print_rich(_table(scored))
    print_line()
    for row in compared:
        print_line(row.words)
    for model in not_compared(scored):
        tell(f"{model}: not compared with {scored[0].model}, as the two were not asked the same questions")
    for needed in rows:
        print_line(
            f"{needed['score']}: a difference of {needed['difference']:g} would show on {needed['images_needed']:,} "
            f"images, 8 times of 10; there are {needed['images']:,}"
        )


def _table(scored: "Sequence[Scored]") -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading, justify in (("score", "left"), ("model", "left"), ("value", "right"), ("95 % interval", "right"),
                             ("questions", "right"), ("images", "right")):  # fmt: skip
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for name in dict.fromkeys(name for each in scored for name in each.intervals):
        for each in scored:
            interval = each.intervals.get(name)
            if interval is None:
                continue
            between = "-" if interval.low is None else f"{interval.low:.4f} to {interval.high:.4f}"
            table.add_row(
                name, Text(each.model), f"{interval.value:.4f}", between, f"{interval.n:,}", f"{interval.images:,}"
            )
    return table
