"""The page of an evaluation: scores as dots with their intervals, what is sight, and every answer with its picture.

In: an `Evaluation`. Out: one HTML file that needs no network, with up to 5,000 answers.

    write_report(evaluation, folder / "report.html")

Here is what the page shows, as values; its words are in `reporting/templates/evaluation.html`, what its controls do in
`evaluation.js` there.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import altair

from visgraft.data.images.opening import open_image
from visgraft.errors import BadSampleError
from visgraft.evaluation.controls import Control, sight_of
from visgraft.evaluation.questions import Question
from visgraft.evaluation.running import EvaluatedModel, Evaluation
from visgraft.evaluation.seeds import seed_groups, seeds_in_words
from visgraft.metrics.intervals import Interval
from visgraft.metrics.score_names import better_of, highest_of
from visgraft.reporting.charts import COLORS, figure
from visgraft.reporting.page import Table, embed_image, make_table, write_page
from visgraft.reporting.progress import working

MOST_SHOWN = 5_000  # questions
PICTURE_SIDE = 128  # pixels
PICTURE_BLOCK = 100  # pictures that are read at once
ROW_HEIGHT = 24  # pixels


def write_report(evaluation: Evaluation, path: Path) -> Path:
    """Write the page and give its path."""
    models = evaluation.models
    names = short_names([each.name for each in models])
    questions = evaluation.task.questions
    shown = questions.limited(MOST_SHOWN)
    values = evaluation.as_json()["models"][0]["settings"]
    items, pictures = _answers(evaluation, shown.all, names=names)
    kinds = sorted({question.kind for question in shown.all if question.kind})
    words = [row.words for row in evaluation.compared]
    words += [seeds_in_words(group) for group in seed_groups([each.scored for each in models])]
    return write_page(
        path,
        "evaluation.html",
        title=f"{names[0] if len(models) == 1 else f'{len(models)} models'} on {evaluation.task.name}",
        subtitle=", ".join(each.name for each in models),
        large_numbers=_large_numbers(evaluation),
        score_charts=_score_charts(models, names),
        kind_charts=_kind_charts(models, names),
        warnings=[
            f"{name}: {warning}" if len(models) > 1 else warning
            for each, name in zip(models, names, strict=True)
            for warning in each.warnings
        ],
        scores=_score_table(models, names),
        words=_with_names(words, models, names),
        controls=_control_table(models, names) if any(each.controls for each in models) else None,
        sight=[
            f"{name}: {sight.words}" if len(models) > 1 else sight.words
            for each, name in zip(models, names, strict=True)
            for sight in sight_of(each.controls)
        ],
        quality=_quality_table(models, names),
        num_shown=len(shown.all),
        num_left_out=len(questions.all) - len(shown.all),
        models=names,
        score_names=list(models[0].scored.scores),
        kinds=kinds if len(kinds) > 1 else [],
        has_other_image=any(control.kind == "another image" for each in models for control in each.controls),
        items=items,
        pictures=pictures,
        settings=_settings_table(values),
    )


def short_names(names: Sequence[str]) -> list[str]:
    """Name models by their folders, with as much of the path in front as tells them apart."""
    parts = [Path(name).parts or (name,) for name in names]
    for size in range(1, max(map(len, parts)) + 1):
        short = ["/".join(own[-size:]) for own in parts]
        if len(set(short)) == len(names):
            return short
    return list(names)


def _with_names(texts: Sequence[str], models: Sequence[EvaluatedModel], names: Sequence[str]) -> list[str]:
    """Put short names in the place of long ones."""
    pairs = sorted(zip((each.name for each in models), names, strict=True), key=lambda pair: -len(pair[0]))
    for long, short in pairs:
        texts = [text.replace(long, short) for text in texts]
    return [re.sub(r"(?<=[\s(])-(?=\d)", "\u2212", text) for text in texts]  # a hyphen would end a line


def _large_numbers(evaluation: Evaluation) -> dict[str, str]:
    [(name, interval), *_] = evaluation.models[0].scored.intervals.items()
    between = "" if interval.low is None else f", {_number(interval.low, name)} to {_number(interval.high, name)}"
    numbers = {f"{name}{between}": _number(interval.value, name)}
    for sight in sight_of(evaluation.models[0].controls)[:1]:
        between = "" if sight.gain.low is None else f", {sight.gain.low:+.3f} to {sight.gain.high:+.3f}"
        numbers[f"of {sight.score} gained by sight{between}"] = f"{sight.gain.value:+.3f}"
    return numbers | {"questions": f"{interval.n:,}", "images": f"{interval.images:,}"}


def _number(value: float | None, score: str) -> str:
    return "-" if value is None else f"{value:.1%}" if highest_of(score) == 1.0 else f"{value:.3f}"


# --- Scores


def _way(control: Control) -> str:
    return {"no image": "without the image", "another image": "with another image"}.get(control.kind, control.kind)


def _score_charts(models: Sequence[EvaluatedModel], names: Sequence[str]) -> list[dict[str, Any]]:
    """Draw each score: a line for each model, and below it those of its controls."""
    charts = []
    for score in models[0].scored.intervals:
        rows = [
            {"label": name, "how": how, **_edges(interval)}
            for each, name in zip(models, names, strict=True)
            for how, interval in (
                ("its own image", each.scored.intervals.get(score)),
                *((_way(control), control.scored.intervals.get(score)) for control in each.controls),
            )
            if interval is not None
        ]
        said = "; ".join(f"{row['label']}, {row['how']} {row['value']:.3f}" for row in rows)
        chart = _dots(rows, order=names, score=score)
        charts.append({"name": score, "figure": figure(chart, alt=f"{score}: {said}")})
    return charts


def _kind_charts(models: Sequence[EvaluatedModel], names: Sequence[str]) -> list[dict[str, Any]]:
    charts = []
    for score in models[0].scored.intervals:
        rows = [
            {"label": f"{kind} ({intervals[score].n:,})", "how": name, **_edges(intervals[score])}
            for each, name in zip(models, names, strict=True)
            for kind, intervals in each.scored.by_kind.items()
            if score in intervals
        ]
        if rows:
            chart = _dots(rows, order=sorted({str(row["label"]) for row in rows}), score=score)
            charts.append({"name": score, "figure": figure(chart, alt=f"{score} by kind of question")})
    return charts


def _edges(interval: Interval) -> dict[str, float]:
    value = interval.value if math.isfinite(interval.value) else 0.0
    low, high = (value if edge is None else edge for edge in (interval.low, interval.high))
    return {"value": value, "low": low, "high": high}


def _dots(rows: Sequence[Mapping[str, Any]], *, order: Sequence[str], score: str) -> altair.LayerChart:
    """Draw a dot with its interval for each row: its `label` on the left, its `how` as a colour."""
    highest = highest_of(score)
    top = max((float(row["high"]) for row in rows), default=0.0)
    end = 1.0 if highest == 1.0 else min(highest or top * 1.15, top * 1.15) or 1.0
    names = list(dict.fromkeys(str(row["how"]) for row in rows))
    colors = [COLORS[number % len(COLORS)] for number in range(len(names))]
    legend = None
    if len(names) > 1:  # below one another where they are sentences: a phone cuts off what stands on the right
        legend = altair.Legend(columns=1 if max(map(len, names)) > 16 else 2)
    axis = altair.Axis(labelLimit=170, ticks=False, domain=False)
    numbers = [altair.Tooltip(f"{key}:Q", format=".4f") for key in ("value", "low", "high")]
    base = altair.Chart(altair.Data(values=[dict(row) for row in rows])).encode(
        y=altair.Y("label:N", sort=list(order), title=None, axis=axis),
        yOffset=altair.YOffset("how:N", sort=names),
        color=altair.Color("how:N", scale=altair.Scale(domain=names, range=colors), legend=legend),
        tooltip=[altair.Tooltip("label:N"), altair.Tooltip("how:N"), *numbers],
    )
    x = altair.X("low:Q", title=None, scale=altair.Scale(domain=[0, end]), axis=altair.Axis(tickCount=5))
    lines = base.mark_rule(strokeWidth=2.5).encode(x=x, x2="high:Q")
    dots = base.mark_circle(size=75, opacity=1).encode(x=altair.X("value:Q", title=None))
    height = len(order) * (ROW_HEIGHT + 14 * (len(names) - 1))
    return altair.LayerChart(layer=[lines, dots], width="container", height=height)


def _score_table(models: Sequence[EvaluatedModel], names: Sequence[str]) -> Table:
    rows = [
        [score, name, f"{interval.value:.4f}", _between(interval.low, interval.high), interval.n, interval.images]
        for score in models[0].scored.intervals
        for each, name in zip(models, names, strict=True)
        if (interval := each.scored.intervals.get(score)) is not None
    ]
    return make_table(["score", "model", "value", "95 % interval", "questions", "images"], rows)


def _between(low: float | None, high: float | None, form: str = ".4f") -> str:
    return "-" if low is None or high is None else f"{low:{form}} to {high:{form}}"


def _control_table(models: Sequence[EvaluatedModel], names: Sequence[str]) -> Table:
    rows = []
    for each, name in zip(models, names, strict=True):
        for control in each.controls:
            for score, interval in control.scored.intervals.items():
                gain = control.gain[score]
                own = control.seeing.intervals[score].value
                rows.append(
                    [name, _way(control), score, f"{interval.value:.4f}", f"{own:.4f}", f"{gain.value:+z.4f}",
                     _between(gain.low, gain.high, "+.4f"), f"{control.share_same:.0%}", interval.n]
                )  # fmt: skip
    header = ["model", "asked", "score", "value", "with its image", "gain", "95 % interval", "same answer", "questions"]
    return make_table(header, rows)


def _quality_table(models: Sequence[EvaluatedModel], names: Sequence[str]) -> Table:
    rows = []
    for each, name in zip(models, names, strict=True):
        quality = each.scored.quality
        assert quality is not None
        cut = "-" if quality.never_stopped is None else f"{quality.never_stopped:.1%}"
        rows.append([name, f"{quality.mean_words:.1f}", f"{quality.repeated_4grams:.1%}",
                     f"{quality.distinct_words:.1%}", cut])  # fmt: skip
    return make_table(["model", "words an answer", "repeated 4-grams", "distinct words", "never stopped"], rows)


def _settings_table(settings: Mapping[str, Any]) -> Table:
    settings = dict(settings)
    if settings.get("loaded"):
        settings["loaded"] = ", ".join(
            f"{each['path']} at {each['commit'] or each['revision'] + ' (which commit is not known)'}"
            for each in settings["loaded"]
        )
    rows = [
        [
            name.replace("_", " "),
            value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str),
        ]
        for name, value in settings.items()
        if value not in (None, [], {}, "")
    ]
    return make_table(["setting", "value"], rows)


# --- Answers


def _answers(
    evaluation: Evaluation, questions: Sequence[Question], *, names: Sequence[str]
) -> tuple[dict[str, Any], list[list[str | None]]]:
    """Give the answers as the page's script takes them, and the pictures in blocks."""
    scores = list(evaluation.models[0].scored.scores)
    said = [_said(each, scores) for each in evaluation.models]
    places: dict[str, int] = {}
    first: list[Question] = []
    items: list[dict[str, Any]] = []
    for question in questions:
        if question.image and question.image not in places:
            places[question.image] = len(first)
            first.append(question)
        items.append(
            {
                "id": question.id,
                "kind": question.kind,
                "prompt": question.prompt,
                "references": list(dict.fromkeys(question.references)),
                "picture": places.get(question.image, -1),
                "said": [of_model.get(question.id) for of_model in said],
            }
        )
    data = {
        "models": list(names),
        "right": [_right_from(evaluation.models, score) for score in scores],
        "lower_is_better": [better_of(score) == "lower" for score in scores],
        "block": PICTURE_BLOCK,
        "items": [item for item in items if any(item["said"])],
    }
    pictures = _pictures(evaluation, first)
    return data, [pictures[start : start + PICTURE_BLOCK] for start in range(0, len(pictures), PICTURE_BLOCK)]


def _said(each: EvaluatedModel, scores: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Give what a model said to each question, by id."""
    others = {control.kind: {said.id: said.answer for said in control.scored.answered} for control in each.controls}
    same = next((control.same_answers for control in each.controls if control.kind == "another image"), frozenset())
    found: dict[str, dict[str, Any]] = {}
    for place, answered in enumerate(each.scored.answered):
        values = [_finite(each.scored.scores[score].per_sample[place]) for score in scores]
        entry: dict[str, Any] = {"answer": answered.answer, "values": values}
        entry |= {"none": answered.no_answer} if answered.no_answer else {}
        if answered.id in others.get("no image", {}):
            entry["blind"] = others["no image"][answered.id]
        if answered.id in others.get("another image", {}):
            entry |= {"other": others["another image"][answered.id], "unmoved": answered.id in same}
        found[answered.id] = entry
    return found


def _finite(value: float) -> float:
    return round(value, 4) if math.isfinite(value) else 1e9


def _right_from(models: Sequence[EvaluatedModel], score: str) -> float:
    """Say from which value on an answer counts as right: half of a share, else what the first model has on average."""
    values = models[0].scored.scores[score].per_sample
    if highest_of(score) == 1.0 and max(values) >= 1.0:
        return 0.5
    return sum(values) / len(values)


def _pictures(evaluation: Evaluation, questions: Sequence[Question]) -> list[str | None]:
    """Make a small picture of the images of each question; none of what cannot be opened."""
    pictures: list[str | None] = []
    with working("drawing", total=len(questions), unit="pictures") as advance:
        for question in questions:
            try:
                opened = open_image(evaluation.task.questions.images(question)[0])
                pictures.append(embed_image(opened, alt="", max_side=PICTURE_SIDE, quality=75).address)
            except BadSampleError:
                pictures.append(None)
            advance(1)
    return pictures
