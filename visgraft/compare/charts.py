"""The charts: training and validation loss of all variants, one panel for each set of data.

In: variants. Out: Altair charts: live ones whose signals the page sets (which variants are shown, which axis, raw lines
or not; scales follow what is shown), and a still one for a picture.

    for panel in panels(comparison.variants): figure(live_chart(panel, styles, shown=names), alt=panel.title)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any, Literal

import altair

from visgraft.compare.curves import AXES, Axis, Curve, Unit, average, thin
from visgraft.compare.differences import data_key, data_name
from visgraft.compare.results_table import loss_unit
from visgraft.compare.variants import RunData, Variant
from visgraft.reporting.charts import LineStyles, Rows, loss_axis, loss_scale
from visgraft.wording import counted

Split = Literal["training", "validation"]
MIN_LOSS = 1e-6  # what a logarithmic axis can show of a loss that is 0
MAX_LENGTH_DIFFERENCE = 0.05  # runs whose numbers of texts differ by more than this share are of different length
MAX_TITLE_LENGTH = 110  # characters of a line above a picture's panel
CROSS: dict[str, Any] = {"shape": "cross", "size": 150, "angle": 45, "filled": True}
AXIS_WORDS: dict[Axis, str] = {
    "steps": "optimizer steps",
    "samples": "samples (an image with its texts) learned from",
    "minutes": "minutes of training",
}


@dataclass(frozen=True)
class Panel:
    """Curves that may stand beside one another, as they are on the same data.

    Attributes:
        split: `training` or `validation`.
        data: what the data is, in words.
        unit: the losses are per token or per character of answer.
        variants: those with such a curve.
        notes: curves of different length, runs that are not finished.
    """

    split: Split
    data: str
    unit: Unit
    variants: tuple[Variant, ...]
    notes: tuple[str, ...]

    @property
    def is_single(self) -> bool:
        """Whether every run was measured once, so that there is no curve to draw."""
        return all(len(curve_of(run, self.split)) < 2 for variant in self.variants for run in variant.runs)

    @property
    def title(self) -> str:
        """What is drawn, in words."""
        unit = "character of answer" if self.unit == "character" else "supervised token"
        return f"{self.split.capitalize()} loss per {unit}"


def curve_of(run: RunData, split: Split) -> Curve:
    """Give a run's curve of the training or of the validation data."""
    return run.training if split == "training" else run.validation


def panels(variants: Sequence[Variant]) -> list[Panel]:
    """Sort the variants' curves into panels: one for each set of training data, one for each of validation data."""
    found = []
    splits: tuple[Split, ...] = ("training", "validation")
    for split in splits:
        groups: dict[str, list[Variant]] = {}
        for variant in variants:
            if any(len(curve_of(run, split)) for run in variant.runs):
                groups.setdefault(data_key(variant.runs[0], split), []).append(variant)
        for group in groups.values():
            name = data_name(group[0].runs[0], split)
            found.append(Panel(split, name, loss_unit(variants), tuple(group), tuple(_length_notes(group))))
    return found


def _length_notes(variants: Sequence[Variant]) -> list[str]:
    """Say which runs are not finished, and which finished ones learned from fewer texts."""
    notes = []
    longest = max(_num_texts(run) for variant in variants for run in variant.runs)
    for variant in variants:
        for run in variant.runs:
            name = variant.name if len(variant.runs) == 1 else f"{variant.name}, seed {run.seed}"
            number = _num_texts(run)
            if run.status != "finished":
                notes.append(f"{name} is {run.status}: it stopped after {counted(number, 'text')}")
            elif number < longest * (1 - MAX_LENGTH_DIFFERENCE):
                notes.append(f"{name} is shorter: {counted(number, 'text')} where the longest has {longest:,.0f}")
    return notes


def _num_texts(run: RunData) -> float:
    return float(run.training.texts[-1])


def is_short(run: RunData, panel: Panel) -> bool:
    """Say whether a run's curve ends before the longest of its panel, or before its own end."""
    longest = max(_num_texts(other) for variant in panel.variants for other in variant.runs)
    return run.status != "finished" or _num_texts(run) < longest * (1 - MAX_LENGTH_DIFFERENCE)


# --- Rows


def mean_rows(panel: Panel, *, axes: Sequence[Axis] = AXES) -> list[dict[str, Any]]:
    """Give the mean of each variant's seeds, with lowest and highest, along each axis."""
    rows = []
    for variant in panel.variants:
        curves = [curve for run in variant.counted if len(curve := curve_of(run, panel.split))]
        for axis in axes:
            mean = average(curves, axis=axis, unit=panel.unit, is_smooth=panel.split == "training")
            if mean is None:
                continue
            columns = (mean.x, mean.mean, mean.low, mean.high)
            for x, y, low, high in zip(*columns, strict=True):
                losses = {"loss": _loss(y), "low": _loss(low), "high": _loss(high)}
                rows.append({"variant": variant.name, "axis": axis, "x": _round(x), **losses})
    return rows


def raw_rows(panel: Panel) -> list[dict[str, Any]]:
    """Give the values of every run as they were measured, thinned out."""
    return [
        _raw_row(variant, run, curve, place, panel.unit)
        for variant in panel.variants
        for run in variant.runs
        if len(curve := curve_of(run, panel.split))
        for place in thin(curve, unit=panel.unit)
    ]


def end_rows(panel: Panel) -> list[dict[str, Any]]:
    """Give the last point of each curve that ends early."""
    return [
        {**_raw_row(variant, run, curve, places[-1], panel.unit), "what": f"{run.status}, ends here"}
        for variant in panel.variants
        for run in variant.runs
        if is_short(run, panel) and len(curve := curve_of(run, panel.split))
        if (places := thin(curve, unit=panel.unit))
    ]


def _raw_row(variant: Variant, run: RunData, curve: Curve, place: int, unit: Unit) -> dict[str, Any]:
    along: dict[str, float] = {axis: _round(curve.along(axis)[place]) for axis in AXES}
    return {
        "variant": variant.name,
        "run": f"{variant.name} {run.seed}",
        **along,
        "loss": _loss(curve.loss(unit)[place]),
    }


def _round(value: float) -> float:
    return float(f"{value:.5g}")


def _loss(value: float) -> float:
    return max(_round(value), MIN_LOSS)


def rows_of(panel: Panel) -> Rows:
    """Give the rows that `live_chart` calls by name."""
    return {"means": mean_rows(panel), "raw": raw_rows(panel), "ends": end_rows(panel)}


# --- Charts


def _y() -> altair.Y:
    return altair.Y("loss:Q", title=None, scale=loss_scale(), axis=loss_axis())


def _x(field: str, *, title: str | None = None, min_step: Any = None) -> altair.X:
    return altair.X(
        f"{field}:Q",
        title=title,
        scale=altair.Scale(nice=False, zero=False),
        axis=altair.Axis(
            format="~s", labelOverlap="greedy", labelSeparation=6, tickCount=6, tickMinStep=min_step or altair.Undefined
        ),
    )


def live_chart(panel: Panel, styles: LineStyles, *, shown: Sequence[str], height: int = 330) -> altair.LayerChart:
    """Draw a panel whose signals `shown` (names), `axis` and `raw` the page may set; scales follow what is shown."""
    means, raw, ends = (
        altair.Chart(altair.NamedData(name)).transform_filter("indexof(shown, datum.variant) >= 0")
        for name in ("means", "raw", "ends")
    )
    if panel.is_single:
        layers = _dots(means.transform_filter("datum.axis == 'steps'"), raw, styles)
    else:
        layers = _live_lines(means, raw, ends, styles)
    return altair.LayerChart(layer=layers, width="container", height=height).add_params(
        altair.param(name="shown", value=list(shown)),
        altair.param(name="axis", value="steps"),
        altair.param(name="raw", value=True),
    )


def _dots(means: altair.Chart, raw: altair.Chart, styles: LineStyles) -> list[altair.Chart]:
    """Draw what was measured once: a line a variant, a dot a run, a tick at the mean of the seeds."""
    loss = altair.X("loss:Q", title=None, scale=loss_scale(padding=14), axis=loss_axis(is_horizontal=True))
    name = altair.Y("variant:N", title=None, sort=list(styles.names), axis=altair.Axis(labelLimit=240, grid=True))
    color = styles.encodings("variant", legend=None)["color"]
    hover = [altair.Tooltip("run:N"), altair.Tooltip("loss:Q", format=".4~g")]
    return [
        means.mark_tick(thickness=3, size=16).encode(x=loss, y=name, color=color),
        raw.mark_circle(size=80, opacity=0.75).encode(x=loss, y=name, color=color, tooltip=hover),
    ]


def _live_lines(means: altair.Chart, raw: altair.Chart, ends: altair.Chart, styles: LineStyles) -> list[altair.Chart]:
    """Draw curves: means over seeds with their spread, each run as measured, crosses where one ends early."""
    means = means.transform_filter("datum.axis == axis")
    raw = raw.transform_filter("raw").transform_calculate(x="datum[axis]")
    ends = ends.transform_calculate(x="datum[axis]")
    style = styles.encodings("variant", legend=None)
    color = style["color"]
    x = _x("x", min_step=altair.ExprRef("axis === 'minutes' ? 0.01 : 1"))  # there is no half step
    y, low = _y(), altair.Y("low:Q", title=None)
    hover = [
        altair.Tooltip("variant:N"),
        altair.Tooltip("x:Q", format=",.4~g"),
        altair.Tooltip("loss:Q", format=".4~g"),
    ]
    return [
        means.mark_area(opacity=0.16).encode(x=x, y=low, y2="high:Q", color=color),
        raw.mark_line(opacity=0.35, strokeWidth=1).encode(x=x, y=y, detail="run:N", color=color),
        means.mark_line(strokeWidth=2.5).encode(x=x, y=y, **style),
        ends.mark_point(**CROSS).encode(x=x, y=y, color=color, tooltip=["run:N", "what:N"]),
        means.mark_circle(size=90, opacity=0).encode(x=x, y=y, color=color, tooltip=hover),
    ]


def still_chart(
    found: Sequence[Panel], styles: LineStyles, *, shown: Sequence[str]
) -> tuple[altair.VConcatChart, Rows]:
    """Draw all panels below one another for a picture, with a legend, over samples; give its rows too."""
    charts: list[altair.LayerChart] = []
    rows: dict[str, list[dict[str, Any]]] = {}
    for panel in found:
        axis: Axis = "steps" if panel.is_single else "samples"
        named = {"means": mean_rows(panel, axes=[axis]), "raw": raw_rows(panel), "ends": end_rows(panel)}
        named = {name: [row for row in held if row["variant"] in shown] for name, held in named.items()}
        if not named["raw"]:
            continue
        number = len(charts)
        rows |= {f"{name}-{number}": held for name, held in named.items()}
        means, raw, ends = (altair.Chart(altair.NamedData(f"{name}-{number}")) for name in named)
        if panel.is_single:
            layers = _dots(means, raw, styles)
        else:
            layers = _still_lines(means, raw, ends, styles, has_legend=number == 0)
        title = altair.TitleParams(
            panel.title, subtitle=wrap(panel.data, width=MAX_TITLE_LENGTH), anchor="start", frame="group"
        )
        charts.append(altair.LayerChart(layer=layers, width=760, height=300, title=title))
    return altair.VConcatChart(vconcat=charts), rows


def _still_lines(
    means: altair.Chart, raw: altair.Chart, ends: altair.Chart, styles: LineStyles, *, has_legend: bool
) -> list[altair.Chart]:
    """Draw curves over samples, as `_live_lines` does over what the page chooses."""
    legend = None
    if has_legend:
        legend = altair.Legend(symbolType="stroke", symbolSize=400, symbolOpacity=1, columns=4)
    style = styles.encodings("variant", legend=legend)
    y, title = _y(), AXIS_WORDS["samples"]
    x, x_samples = _x("x", title=title, min_step=1), _x("samples", title=title, min_step=1)
    low = altair.Y("low:Q", title=None)
    return [
        raw.mark_line(opacity=0.3, strokeWidth=1).encode(x=x_samples, y=y, detail="run:N", color=style["color"]),
        means.mark_area(opacity=0.16).encode(x=x, y=low, y2="high:Q", color=style["color"]),
        means.mark_line(strokeWidth=2.5).encode(x=x, y=y, **style),
        ends.mark_point(**CROSS).encode(x=x_samples, y=y, color=style["color"]),
    ]
