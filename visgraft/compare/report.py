"""The report: one offline page with curves, differences, results and answers; and a picture of the curves.

In: a comparison, and what its models answered. Out: an HTML file, a PNG file.

    comparison = collect(["runs/modules"])
    write_report(comparison, gather(comparison.variants), Path("report.html"))

Here is what the page shows, as values; its words and tables are in `reporting/templates/compare.html`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from visgraft.compare.answers import Given, SamplePrompt, text_quality
from visgraft.compare.charts import AXIS_WORDS, Panel, live_chart, panels, rows_of, still_chart
from visgraft.compare.differences import ABSENT, as_text, differences, what_trains
from visgraft.compare.results_table import Column, Kind, results, written
from visgraft.compare.variants import Comparison, Variant
from visgraft.reporting.charts import LineStyles, figure, write_png
from visgraft.reporting.page import embed_image, write_page
from visgraft.runs import read_experiment_record
from visgraft.wording import counted

TEXT_QUALITY_COLUMNS: tuple[tuple[str, str, Kind], ...] = (
    ("mean_words", "words an answer", "speed"),
    ("repeated_4grams", "repeated 4-grams", "share"),
    ("distinct_words", "distinct words", "share"),
    ("never_stopped", "never stopped", "share"),
    ("num_answers", "answers", "count"),
)
# What a heading says, where a column's own title is long; its unit stands below it.
SHORT = {
    "validation_loss": "val. loss",
    "training_loss": "train loss",
    "trainable": "trained",
    "minutes": "train time",
    "wall_minutes": "wall time",
    "samples_per_second": "samples",
    "tokens_per_second": "tokens",
    "energy": "energy",
    "peak_memory": "memory",
}
FIXED_UNITS = {"samples_per_second": "/s", "tokens_per_second": "/s"}
UNITS: dict[Kind, tuple[tuple[float, str], ...]] = {
    "count": ((1e9, "B"), (1e6, "M"), (1e3, "k")),
    "minutes": ((60.0, "h"), (1.0, "min"), (1 / 60, "s")),
    "energy": ((3.6e6, "kWh"), (3.6e3, "Wh"), (1.0, "J")),
    "memory": ((2.0**30, "GiB"), (2.0**20, "MiB")),
    "share": ((0.01, "%"),),
}
DIGITS: dict[Kind, int] = {"loss": 4, "score": 4}  # significant ones; three elsewhere
ALIKE: tuple[Kind, ...] = ("loss", "score", "share")  # of about one size: all have the decimals of the middle one


@dataclass(frozen=True)
class Heading:
    """The head of a column: a short name, its unit below it, and its full title under the pointer."""

    name: str
    unit: str = ""
    title: str = ""


@dataclass(frozen=True)
class ShownCell:
    """A value as it is written: the spread of its seeds below it, their range under the pointer."""

    text: str
    spread: str = ""
    range: str = ""
    is_best: bool = False


@dataclass(frozen=True)
class ShownTable:
    """A table with a row for each variant: headings, and one cell for each of them in every row."""

    headings: list[Heading]
    rows: list[list[ShownCell]]
    notes: list[str]


@dataclass(frozen=True)
class LegendEntry:
    """A variant in the legend: its number, its line, and in a few words what it trains and how its runs are."""

    number: int
    name: str
    color: str
    dash: str
    details: tuple[str, ...]
    is_shown: bool


def write_report(
    comparison: Comparison,
    questions: Sequence[SamplePrompt],
    path: Path,
    *,
    own: Sequence[SamplePrompt] = (),
    shown: Sequence[str] | None = None,
) -> Path:
    """Write the page and give its path.

    Args:
        comparison: the variants.
        questions: the questions that all runs answered on the way.
        path: the file to write.
        own: questions about images of one's own, put to the finished models.
        shown: names of the variants that are shown at first; None = all.

    Raises:
        ConfigError: the path is a folder.
    """
    variants = comparison.variants
    names = [variant.name for variant in variants]
    shown = list(names if shown is None else shown)
    styles = LineStyles(tuple(names))
    found = panels(variants)
    return write_page(
        path,
        "compare.html",
        title=_title(comparison, names),
        subtitle=_subtitle(variants),
        legend=_legend(variants, styles, shown),
        axes=AXIS_WORDS,
        panels=[_drawn(panel, styles, shown) for panel in found],
        is_per_character=any(panel.unit == "character" for panel in found),
        has_different_data=len({panel.data for panel in found if panel.split == "training"}) > 1,
        differences=_differences(variants),
        results=_results(variants),
        text_quality=_text_quality([*questions, *own], variants) if questions or own else None,
        own=[_question(question, names) for question in own],
        questions=[_question(question, names) for question in questions],
        notes=comparison.notes,
    )


def write_picture(comparison: Comparison, path: Path, *, shown: Sequence[str]) -> Path:
    """Write the curves as a PNG file.

    Raises:
        ConfigError: the path is a folder.
    """
    styles = LineStyles(tuple(variant.name for variant in comparison.variants))
    chart, rows = still_chart(panels(comparison.variants), styles, shown=shown)
    return write_png(chart, path, data=rows)


def _title(comparison: Comparison, names: Sequence[str]) -> str:
    """Name the page by the experiment that its runs are of, else by its variants."""
    of = {run.folder.parent for run in comparison.runs}
    record = read_experiment_record(folder := of.pop()) if len(of) == 1 else None
    if record is not None and len(names) > 1:
        return str(record.get("name") or folder.name)
    return " · ".join(names) if len(names) <= 3 else f"{len(names)} variants side by side"


def _subtitle(variants: Sequence[Variant]) -> str:
    counts = {len(variant.runs) for variant in variants}
    seeds = f", {counts.pop()} seeds each" if len(counts) == 1 and counts != {1} else ""
    return f"{counted(len(variants), 'variant')}, {counted(sum(len(v.runs) for v in variants), 'run')}{seeds}"


def _legend(variants: Sequence[Variant], styles: LineStyles, shown: Sequence[str]) -> list[LegendEntry]:
    is_uneven = len({len(variant.runs) for variant in variants}) > 1
    return [
        LegendEntry(
            number,
            variant.name,
            styles.color(variant.name),
            ",".join(map(str, styles.dash(variant.name))),
            (
                what_trains(variant.runs[0].recipe),
                *([f"{len(variant.runs)} seeds"] if is_uneven and len(variant.runs) > 1 else []),
                *([] if variant.is_finished else [variant.runs[0].status]),
            ),
            is_shown=variant.name in shown,
        )
        for number, variant in enumerate(variants)
    ]


def _drawn(panel: Panel, styles: LineStyles, shown: Sequence[str]) -> dict[str, Any]:
    """Give a panel with its chart, and the numbers of the variants that it holds."""
    chart = live_chart(panel, styles, shown=shown)
    return {
        "panel": panel,
        "figure": figure(chart, alt=f"{panel.title}, {panel.data}", data=rows_of(panel)),
        "numbers": [styles.names.index(variant.name) for variant in panel.variants],
        "notes": panel.notes if panel.split == "training" else (),
    }


# --- The tables


def _differences(variants: Sequence[Variant]) -> ShownTable:
    found = differences(variants)
    rows = [[ShownCell(as_text(values[variant.name])) for values in found.values()] for variant in variants]
    return ShownTable([Heading(key) for key in found], rows, notes=[])


def _results(variants: Sequence[Variant]) -> ShownTable:
    columns = [ShownColumn(column) for column in results(variants)]
    return ShownTable(
        [column.heading for column in columns],
        [[column.cell(variant.name) for column in columns] for variant in variants],
        notes=[f"{shown.column.note}." for shown in columns if shown.column.note],
    )


def _text_quality(questions: Sequence[SamplePrompt], variants: Sequence[Variant]) -> ShownTable:
    found = text_quality(questions, variants)
    rows = []
    for variant in variants:
        values = [(getattr(found.get(variant.name), key, None), kind) for key, _, kind in TEXT_QUALITY_COLUMNS]
        rows.append([ShownCell(ABSENT if value is None else written(value, kind)) for value, kind in values])
    return ShownTable([Heading(title) for _, title, _ in TEXT_QUALITY_COLUMNS], rows, notes=[])


class ShownColumn:
    """A column of the results, all cells in the unit in which the middle one of its values reads best."""

    def __init__(self, column: Column) -> None:
        """Choose the unit."""
        self.column = column
        middle = median([abs(cell.mean) for cell in column.cells.values() if cell.mean] or [0.0])
        units = UNITS.get(column.kind, ((1.0, ""),))
        smallest = (1.0, "") if column.kind == "count" else units[-1]
        self.size, self.unit = next((unit for unit in units if middle >= unit[0]), smallest)
        self.middle = middle / self.size

    @property
    def heading(self) -> Heading:
        """The short heading with its unit."""
        column = self.column
        part = column.key.removeprefix("trainable.") if column.key.startswith("trainable.") else ""
        name = f"in {part}" if part else SHORT.get(column.key, column.title)
        unit = FIXED_UNITS.get(column.key, self.unit)
        if column.kind == "loss":
            unit = f"/{column.title.rsplit(' ', 1)[-1]}"  # per token or per character
        return Heading(name, unit, column.title)

    def cell(self, variant: str) -> ShownCell:
        """Give a variant's value, mean ± half of the way from the lowest to the highest seed."""
        cell = self.column.cells.get(variant)
        if cell is None:
            return ShownCell(ABSENT)
        low, high = written(cell.low, self.column.kind), written(cell.high, self.column.kind)
        mean, half = cell.mean / self.size, (cell.high - cell.low) / 2 / self.size
        decimals = self._decimals(mean)
        spread = f"{half:,.{decimals}f}"
        return ShownCell(
            f"{mean:,.{decimals}f}",
            spread=f"± {spread}" if float(spread.replace(",", "")) else "",
            range="" if low == high else f"{low} to {high}, {cell.num_seeds} seeds",
            is_best=cell.is_best,
        )

    def _decimals(self, value: float) -> int:
        """Count the decimals that leave a value its significant digits; a whole number needs none."""
        value = self.middle if self.column.kind in ALIKE else value
        if not value or (self.column.kind == "count" and self.size == 1):
            return 0
        return max(0, DIGITS.get(self.column.kind, 3) - 1 - math.floor(math.log10(abs(value))))


# --- The answers


def _question(question: SamplePrompt, names: Sequence[str]) -> dict[str, Any]:
    """Give a question with the answers of each variant, in their order."""
    histories = [question.history(name) for name in names]
    return {
        "prompt": question.prompt,
        "truth": " / ".join(question.expected),
        "image": None if question.image is None else embed_image(question.image, alt=question.prompt or "image"),
        "missing": question.missing or "no image",
        "answers": [_by_text(question.final(name)) for name in names],
        "histories": histories if any(len(history) > 1 for history in histories) else None,
    }


def _by_text(given: Sequence[Given]) -> list[Mapping[str, Any]]:
    """Give each different answer of a variant's seeds once, with the seeds that gave it where they disagree."""
    texts: dict[str, list[Given]] = {}
    for answer in given:
        texts.setdefault(answer.text, []).append(answer)
    return [
        {"given": same[0], "seeds": [answer.seed for answer in same] if len(texts) > 1 else []}
        for same in texts.values()
    ]
