"""`visgraft evaluate`: score models on data, or answers that exist.

In: models and a recipe or benchmark, or a file of answers. Out: a table or JSON; a folder with answers and a page.
Usage: `visgraft evaluate runs/my-run --data easy-vqa`
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from visgraft.cli.hub import go_offline_without_network, names_of_model
from visgraft.cli.options import AsJson, Device, Precision
from visgraft.cli.terminal import note, print_json, print_line, print_rich, quiet_libraries, tell
from visgraft.errors import ConfigError

if TYPE_CHECKING:
    from visgraft.evaluation.running import EvaluatedModel, Evaluation
    from visgraft.evaluation.scoring import Scored


Models = Annotated[
    list[str] | None,
    typer.Argument(metavar="MODEL...", help="Run folders, model folders or Hub names.", show_default=False),
]
DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="RECIPE|BENCHMARK",
        help="What is asked: data.test of a recipe, else data.validation; or a benchmark that --list names.",
        show_default=False,
    ),
]
Files = Annotated[
    Path | None,
    typer.Option("--files", metavar="DIR", help="Where the data of the benchmark lie.", show_default=False),
]
Answers = Annotated[
    list[Path] | None,
    typer.Option("--answers", metavar="FILE", help="Score the answers of this file, no model.", show_default=False),
]
TextFile = Annotated[
    Path | None,
    typer.Option(
        "--text",
        metavar="FILE",
        help="Measure the loss of a text, by the bare language model and by what became of it.",
        show_default=False,
    ),
]
Metrics = Annotated[
    str | None,
    typer.Option(metavar="A,B,...", help="What to score; --list shows all.", show_default="those of the data"),
]
Language = Annotated[
    str | None, typer.Option(metavar="ja|zh|th", help="Split texts by character.", show_default="that of the data")
]
Limit = Annotated[
    int | None,
    typer.Option(min=1, help="Ask only so many questions, about images drawn at random.", show_default=False),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        metavar="DIR",
        help="Where answers, scores and page go.",
        show_default="evaluations/DATE-NAME",
    ),
]
ControlLimit = Annotated[
    int, typer.Option(min=1, help="Questions asked without the image and with another one, at most.")
]
Power = Annotated[
    float | None,
    typer.Option(metavar="D", help="Say how many images would show a difference of D.", show_default=False),
]
LongestAnswer = Annotated[
    int | None, typer.Option(min=1, help="Longest answer, in tokens.", show_default="that of the data")
]


def evaluate(
    context: typer.Context,
    models: Models = None,
    data: DataOption = None,
    files: Files = None,
    answers: Answers = None,
    text: TextFile = None,
    metrics: Metrics = None,
    language: Language = None,
    limit: Limit = None,
    output: Output = None,
    control_limit: ControlLimit = 500,
    no_controls: Annotated[bool, typer.Option("--no-controls", help="Ask no question another way.")] = False,
    bare: Annotated[bool, typer.Option("--bare", help="Ask the untouched language model too.")] = False,
    power: Power = None,
    max_new_tokens: LongestAnswer = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions that run at once.")] = 32,
    device: Device = None,
    precision: Precision = "auto",
    is_list: Annotated[bool, typer.Option("--list", help="List the metrics and the benchmarks.")] = False,
    as_json: AsJson = False,
) -> None:
    """Score models on a recipe's test data or a benchmark, or score answers that exist.

    Every score comes with a 95 % interval, from drawing images with all their questions, and with two controls: the
    same questions without the image, and with another image of the set. The folder holds the answers, the scores and a
    page that needs no network; a call that was stopped goes on where it was.
    """
    if is_list:
        _print_list(as_json=as_json)
        return
    if power is not None and power <= 0:
        raise ConfigError(f"--power: got {power:g}, need a difference above 0, such as 0.01")
    names = [name.strip() for name in (metrics or "").split(",") if name.strip()]
    if answers:
        if models or data:
            got = f"models ({', '.join(models)})" if models else f"--data {data}"
            raise ConfigError(f"got {got} and --answers; give one of the two")
        _refuse_others(context, "answers", {"metrics", "language", "power"}, why="scores answers that exist")
        settings = {"metrics": names, "language": language}
        _print_scored(_score_files(answers, names, language=language), settings, power=power, as_json=as_json)
        return
    if models and text:
        _refuse_others(context, "text", {"models", "device", "precision"}, why="measures the loss of a text")
        _print_text(models, text, device=device, precision=precision, as_json=as_json)
        return
    if not models or not data:
        missing = f"--data missing for {', '.join(models)}" if models else "nothing to score"
        raise ConfigError(f"{missing}: give models with --data RECIPE or BENCHMARK, or --answers FILE")
    found = _evaluate(
        models,
        data,
        files=files,
        output=output,
        settings={
            "metrics": names, "language": language, "limit": limit, "max_new_tokens": max_new_tokens,
            "batch_size": batch_size, "device": device, "precision": precision,
            "control_limit": 0 if no_controls else control_limit, "bare": bare,
        },
    )  # fmt: skip
    _print_evaluation(found, power=power, as_json=as_json)


def _refuse_others(context: typer.Context, name: str, follows: AbstractSet[str], *, why: str) -> None:
    """Refuse options that an evaluation of another kind follows; `name` is the option that says which kind this is.

    Raises:
        ConfigError: one was given.
    """
    for option in context.command.params:
        source = context.get_parameter_source(option.name or "")
        is_given = source is not None and source.name == "COMMANDLINE"
        if is_given and option.name not in {name, "as_json", *follows}:
            takes = ", ".join(f"--{each}" for each in (*sorted(follows - {"models"}), "json"))
            raise ConfigError(f"{option.opts[-1]}: means nothing with --{name}, which {why}; it takes {takes}")


def _evaluate(
    models: Sequence[str], data: str, *, files: Path | None, output: Path | None, settings: dict[str, Any]
) -> "Evaluation":
    """Ask the models, or what is left to ask of them."""
    go_offline_without_network([name for model in models for name in names_of_model(model)])
    note("loading PyTorch and transformers")
    quiet_libraries()
    from visgraft.evaluation.benchmarks import open_task
    from visgraft.evaluation.report import write_report
    from visgraft.evaluation.running import REPORT, Settings, evaluate_models, folder_of
    from visgraft.evaluation.scoring import check_metrics

    if settings["metrics"]:
        check_metrics(settings["metrics"])
    task = open_task(data, say=tell, files=files)
    chosen = Settings(**settings)
    folder = folder_of(models, task, chosen) if output is None else output.expanduser()
    try:
        found = evaluate_models(models, task, settings=chosen, folder=folder, say=tell)
        write_report(found, found.folder / REPORT)
        return found
    except KeyboardInterrupt:
        tell(f"stopped; the answers so far are in {folder}, and the same command goes on from there")
        raise


def _print_evaluation(found: "Evaluation", *, power: float | None, as_json: bool) -> None:
    """Print scores, sight and what differs; where the page is."""
    from visgraft.evaluation.comparing import not_compared, power_of
    from visgraft.evaluation.controls import sight_of
    from visgraft.evaluation.running import REPORT
    from visgraft.evaluation.scoring import warn_of_language, warn_of_references
    from visgraft.evaluation.seeds import seed_groups, seeds_in_words

    scored = [each.scored for each in found.models]
    settings = found.settings
    warning = warn_of_language(scored[0].answered, metrics=settings.metrics, language=settings.language)
    if warning:
        tell(warning)
    for warning in warn_of_references(scored[0].answered, metrics=settings.metrics):
        tell(warning)
    rows = [] if power is None else power_of(scored, difference=power)
    for each in found.models:
        for warning in each.warnings:
            tell(f"{each.name}: {warning}")
    if as_json:
        print_json({**found.as_json(), **({} if power is None else {"power": rows})})
    else:
        print_rich(_table(scored))
        print_line()
        for each in found.models:
            if each.controls:
                print_rich(_control_table(each))
                for sight in sight_of(each.controls):
                    print_line(f"{each.name}: {sight.words}")
                print_line()
        for row in found.compared:
            print_line(row.words)
        for group in seed_groups(scored):
            print_line(seeds_in_words(group))
        _print_power(rows)
    for model in not_compared(scored):
        tell(f"{model}: not compared with {scored[0].model}, as the two were not asked the same questions")
    (tell if as_json else print_line)(str(found.folder / REPORT))


WAYS = {"no image": "without the image", "another image": "with another image"}
CONTROL_COLUMNS = ("score", "value", "its own is higher by", "95 % interval", "same answer")


def _control_table(each: "EvaluatedModel") -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(f"{each.name}: asked")
    for heading in CONTROL_COLUMNS:
        table.add_column(heading, justify="left" if heading == "score" else "right")
    for control in each.controls:
        for name, interval in control.scored.intervals.items():
            gain, way = control.gain[name], WAYS.get(control.kind, control.kind)
            between = "-" if gain.low is None else f"{gain.low:+z.4f} to {gain.high:+z.4f}"
            table.add_row(
                way, name, f"{interval.value:.4f}", f"{gain.value:+z.4f}", between, f"{control.share_same:.0%}"
            )
    return table


def _print_power(rows: Sequence[dict[str, Any]]) -> None:
    for needed in rows:
        print_line(
            f"{needed['score']}: a difference of {needed['difference']:g} would show on {needed['images_needed']:,} "
            f"images, 8 times of 10; there are {needed['images']:,}"
        )


def _print_list(*, as_json: bool) -> None:
    """Print every metric (its scores, what it is, where it is from) and every benchmark."""
    from visgraft.config import read_yaml
    from visgraft.evaluation.benchmarks import shipped_benchmarks
    from visgraft.metrics import METRICS

    benchmarks = {name: read_yaml(path, what="benchmark", need="YAML") for name, path in shipped_benchmarks().items()}
    if as_json:
        rows = [
            {"name": name, "scores": metric.gives, "what": metric.what, "source": metric.source,
             "highest": metric.highest if metric.highest < float("inf") else None, "needs": metric.needs}
            for name, metric in METRICS.items()
        ]  # fmt: skip
        print_json({"metrics": rows, "benchmarks": [{"name": name, **of} for name, of in benchmarks.items()]})
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("metric", "scores", "what", "source"):
        table.add_column(heading, overflow="fold")
    for name, metric in METRICS.items():
        table.add_row(name, ", ".join(metric.gives), metric.what, metric.source)
    print_rich(table)
    print_line()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("benchmark", "metrics", "what"):
        table.add_column(heading, overflow="fold")
    for name, of in benchmarks.items():
        table.add_row(name, ", ".join(of["metrics"]), Text(of["what"]))
    print_rich(table)


def _print_text(models: Sequence[str], path: Path, *, device: str | None, precision: Precision, as_json: bool) -> None:
    """Print the loss of a text per character: of the bare language model, and of what it became."""
    go_offline_without_network([name for model in models for name in names_of_model(model)])
    note("loading PyTorch and transformers")
    quiet_libraries()
    from visgraft.evaluation.text_loss import measure_forgetting

    found = [measure_forgetting(name, path.expanduser(), device=device, precision=precision) for name in models]
    if as_json:
        print_json({"text": str(path), "models": [each.as_json() for each in found]})
        return
    for each in found:
        print_line(each.words)


def _score_files(files: Sequence[Path], metrics: Sequence[str], *, language: str | None) -> "list[Scored]":
    """Score the answers of files, each under its name."""
    from visgraft.evaluation.records import read_answers
    from visgraft.evaluation.scoring import check_metrics, score_answers, warn_of_language, warn_of_references

    check_metrics(metrics)
    scored: list[Scored] = []
    for path in files:
        for name, answered in read_answers(path.expanduser()).items():
            if any(each.model == name for each in scored):
                name = str(path)
            warning = warn_of_language(answered, metrics=metrics, language=language)
            if warning:
                tell(f"{name}: {warning}")
            for warning in warn_of_references(answered, metrics=metrics):
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
    _print_power(rows)


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
