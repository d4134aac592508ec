"""The comparison without a page: plain values for programs, Markdown for a pull request or a notebook.

In: a comparison and its answers. Out: a dict that JSON takes; Markdown text.
Usage: `as_markdown(comparison, questions, shown=["lora"])`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from visgraft.compare.answers import SamplePrompt, text_quality
from visgraft.compare.charts import panels
from visgraft.compare.differences import ABSENT, as_text, differences, what_trains
from visgraft.compare.report import TEXT_QUALITY_COLUMNS
from visgraft.compare.results_table import Cell, Column, results, written
from visgraft.compare.variants import Comparison, Variant


def as_json(comparison: Comparison, questions: Sequence[SamplePrompt]) -> dict[str, Any]:
    """Give all that the report shows but the curves and the pictures; scores and speeds are plain numbers.

    Returns:
        variants (name, trains, runs), panels (which variants' curves may stand beside one another), differences
        (setting -> variant -> value), results (measure -> variant -> mean, low, high, num_seeds, is_best), habits
        (variant -> measure), answers (one object a question), notes.
    """
    variants = comparison.variants
    return {
        "variants": [
            {
                "name": variant.name,
                "trains": what_trains(variant.runs[0].recipe),
                "runs": [{"folder": str(run.folder), "seed": run.seed, "status": run.status} for run in variant.runs],
            }
            for variant in variants
        ],
        "panels": [
            {
                "split": panel.split,
                "data": panel.data,
                "loss_per": panel.unit,
                "variants": [variant.name for variant in panel.variants],
                "notes": list(panel.notes),
            }
            for panel in panels(variants)
        ],
        "differences": differences(variants),
        "results": {
            column.key: {name: asdict(cell) for name, cell in column.cells.items()} for column in results(variants)
        },
        "habits": {name: asdict(found) for name, found in text_quality(questions, variants).items()},
        "answers": [
            {
                "prompt": question.prompt,
                "expected": list(question.expected),
                "answers": {variant.name: [asdict(a) for a in question.final(variant.name)] for variant in variants},
            }
            for question in questions
        ],
        "notes": list(comparison.notes),
    }  # fmt: skip


def as_markdown(comparison: Comparison, questions: Sequence[SamplePrompt], *, shown: Sequence[str]) -> str:
    """Write the tables of the report as Markdown, for the variants that are shown."""
    variants = [variant for variant in comparison.variants if variant.name in shown]
    columns = results(variants)
    found = differences(variants)
    names = [variant.name for variant in variants]
    rows = [
        [variant.name, *(cell_text(column, column.cells.get(variant.name)) for column in columns)]
        for variant in variants
    ]
    parts = [
        _section("Results", _table(["variant", *(column.title for column in columns)], rows)),
        *(f"{column.note}.\n" for column in columns if column.note),
        _section(
            "What differs",
            _table(
                ["variant", *(f"`{key}`" for key in found)],
                [[name, *(as_text(values[name]) for values in found.values())] for name in names],
            )
            if found
            else "The recipes do not differ, but for seeds.\n",
        ),
    ]  # fmt: skip
    if questions:
        parts.append(_section("How they answer", _text_quality_table(questions, variants)))
        header = ["question", "truth", *names]
        parts.append(_section("Answers", _table(header, [_answers_row(question, names) for question in questions])))
    notes = [
        *comparison.notes,
        *(note for panel in panels(variants) if panel.split == "training" for note in panel.notes),
    ]
    if notes:
        parts.append(_section("Notes", "".join(f"- {note}\n" for note in notes)))
    return "\n".join(parts)


def cell_text(column: Column, cell: Cell | None) -> str:
    """Write a result in one line: the mean, in brackets lowest and highest, a star on the best."""
    if cell is None:
        return ABSENT
    mean, low, high = (written(value, column.kind) for value in (cell.mean, cell.low, cell.high))
    spread = f" ({low} to {high})" if low != high else ""
    return f"{'★ ' if cell.is_best else ''}{mean}{spread}"


def _text_quality_table(questions: Sequence[SamplePrompt], variants: Sequence[Variant]) -> str:
    found = text_quality(questions, variants)
    rows = []
    for name, measured in found.items():
        values = [(getattr(measured, key), kind) for key, _, kind in TEXT_QUALITY_COLUMNS]
        rows.append([name, *(ABSENT if value is None else written(value, kind) for value, kind in values)])
    return _table(["variant", *(title for _, title, _ in TEXT_QUALITY_COLUMNS)], rows)


def _answers_row(question: SamplePrompt, names: Sequence[str]) -> list[str]:
    answers = []
    for name in names:
        texts = dict.fromkeys(f"{'✓ ' if a.is_right else ''}{a.text or '(nothing)'}" for a in question.final(name))
        answers.append(" / ".join(texts) or ABSENT)
    return [question.prompt or "(a caption)", " / ".join(question.expected) or ABSENT, *answers]


def _section(heading: str, text: str) -> str:
    return f"## {heading}\n\n{text}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |\n"

    return line(header) + line(["---"] * len(header)) + "".join(map(line, rows))
