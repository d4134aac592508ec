"""The page of a reproduction: its figures in tables, with the way to the curves and the answers.

In: what `reproduction.json` will hold. Out: one HTML file; its words are in `reporting/templates/reproduction.html`.
Usage: `write_page_of(record, folder / "report.html")`
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visgraft.compare.results_table import written
from visgraft.reporting.page import Table, make_table, write_page
from visgraft.reproduce.article import ARTICLE
from visgraft.reproduce.figures import EVALUATIONS

NOTHING = "-"
JOULES_PER_KWH = 3.6e6
RUN_COLUMNS = (
    *("run", "trained", "steps", "samples", "loss", "validation loss", "per character", "exact match"),
    *("hours", "peak memory", "kWh", "on"),
)
SCORE_COLUMNS = ("run", "score", "value", "without", "seen", "another", "seen", "questions")


@dataclass(frozen=True)
class Link:
    """A page of the folder, by a name."""

    name: str
    address: str


def write_page_of(record: Mapping[str, Any], path: Path) -> Path:
    """Write the page and give its path."""
    runs = [run for of in record["experiments"].values() for run in _finished(of).values()]
    return write_page(
        path,
        "reproduction.html",
        title=f"The article at the scale {record['scale']}",
        subtitle=", ".join(sorted({str(run["device"]) for run in runs})),
        large_numbers=_large_numbers(runs),
        warnings=_warnings(record),
        experiments=[_experiment(name, of) for name, of in record["experiments"].items()],
        facts=_facts(record),
        rows=_rows(record["data"]["rows"]),
        command=f"visgraft reproduce --verify {path.parent.name}",
    )


def _finished(of: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {name: run for name, run in of["runs"].items() if "failed" not in run}


def _large_numbers(runs: list[Mapping[str, Any]]) -> dict[str, str]:
    joules = [run["joules"] for run in runs]
    numbers = {
        "runs": f"{len(runs):,}",
        "hours, all runs together": f"{sum(run['hours'] for run in runs):.2f}",
        "peak memory": written(max((run["peak_memory_bytes"] for run in runs), default=0), "memory"),
    }
    if joules and all(each is not None for each in joules):
        numbers["kWh"] = f"{sum(joules) / JOULES_PER_KWH:.3g}"
    return numbers


def _warnings(record: Mapping[str, Any]) -> list[str]:
    said = []
    if record["scale"] == "smoke":
        said.append("A rehearsal on tiny random models: that everything runs, and nothing else, is what it shows.")
    elif record["scale"] != "full":
        said.append("Much shorter than what the author ran, so no figure here is one of the article.")
    said += [f"Changed: {change}" for change in record["changed"]]
    missing = [name for name in ARTICLE if name not in record["experiments"]]
    return said + ([f"Left out: {', '.join(missing)}"] if missing else [])


def _experiment(name: str, of: Mapping[str, Any]) -> dict[str, Any]:
    links = [Link("Curves, settings and answers side by side", f"{name}/compare.html")] if _finished(of) else []
    links += [Link(f"answers on {task}", f"{EVALUATIONS}/{name}/{task}/report.html") for task in of["evaluations"]]
    scores = [row for task, models in of["evaluations"].items() for row in _score_rows(task, models)]
    return {
        "title": name,
        "what": ARTICLE[name].what if name in ARTICLE else name,
        "links": links,
        "runs": make_table(RUN_COLUMNS, [_run_row(run, values) for run, values in _finished(of).items()]),
        "failed": [f"{run} failed: {values['failed']}" for run, values in of["runs"].items() if "failed" in values],
        "scores": make_table(SCORE_COLUMNS, scores) if scores else None,
        "answers": _answers(_finished(of)),
    }


def _run_row(name: str, run: Mapping[str, Any]) -> list[Any]:
    joules = run["joules"]
    return [
        name,
        written(run["trained_parameters"], "count"),
        run["steps"],
        run["samples"],
        *(_number(run[key]) for key in ("loss", "validation_loss", "validation_loss_per_character")),
        _number(run["scores"].get("exact_match")),
        f"{run['hours']:.2f}",
        written(run["peak_memory_bytes"], "memory"),
        NOTHING if joules is None else f"{joules / JOULES_PER_KWH:.3g}",
        run["device"],
    ]


def _score_rows(task: str, models: Mapping[str, Any]) -> Iterator[list[Any]]:
    for model, values in models.items():
        controls = values.get("controls", {})
        for score, interval in values["scores"].items():
            row = [model, f"{task}: {score}", _interval(interval)]
            for way in ("without_image", "another_image"):
                control = controls.get(way)
                row += [NOTHING, NOTHING] if control is None else [
                    _number(control["scores"][score]["value"]), _interval(control["gain"][score], sign="+")
                ]  # fmt: skip
            yield [*row, interval["n"]]


def _interval(values: Mapping[str, Any], *, sign: str = "") -> str:
    if values["value"] is None or values["low"] is None:
        return _number(values["value"], sign=sign)
    value, low, high = (_number(values[key], sign=sign) for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def _number(value: float | None, *, sign: str = "") -> str:
    return NOTHING if value is None else f"{value:{sign}.4f}"


def _answers(runs: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """Put what the runs answered last to the same prompts side by side."""
    asked: dict[tuple[str, str], dict[str, str]] = {}
    for name, run in runs.items():
        for answer in run["answers"]:
            key = (answer["prompt"] or "(a caption)", " / ".join(answer["expected"] or ()))
            asked.setdefault(key, {})[name] = answer["answer"] or "(nothing)"
    if not asked:
        return None
    rows = [[prompt, truth, *(said.get(name, NOTHING) for name in runs)] for (prompt, truth), said in asked.items()]
    return make_table(["asked", "truth", *runs], rows)


def _facts(record: Mapping[str, Any]) -> Table:
    environment = record["environment"]
    facts = {
        "scale": record["scale"],
        "as the author wrote it": "yes" if record["as_written"] else "no",
        "date": environment["date"],
        "platform": environment["platform"],
        "Python": environment["python"],
        **{name: version for name, version in environment["versions"].items() if version is not None},
        "commit of the working directory": environment["git_commit"] or NOTHING,
        "M3IT, commit": record["data"]["revision"] or "not known",
        **{name: commit or "not known" for name, commit in record["models"].items()},
    }
    return make_table(["what", "which"], [[name, str(value)] for name, value in facts.items()])


def _rows(counts: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = [
        [task, split, count["found"], NOTHING if count["card"] is None else f"{count['card']:,}"]
        for task, splits in counts.items()
        for split, count in splits.items()
    ]
    return make_table(["task", "split", "found", "the card counts"], rows)
