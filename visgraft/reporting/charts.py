"""The look that all charts share, and the two places where a chart ends up: a page, or a PNG file.

In: Altair charts. Out: `Figure`, which a page's template draws; PNG files.

    figure(chart, alt="loss over samples")
    write_png(chart, Path("curves.png"))

Rows that a chart calls by name (`altair.NamedData`) are given apart: Altair checks rows that it holds one by one, which
takes seconds for a few thousand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair

from visgraft.atomic import write_whole
from visgraft.errors import ConfigError

# Distinct on white and on dark, and for the colour-blind (Okabe and Ito's palette, its yellow and black replaced).
COLORS = ("#0072b2", "#e0791b", "#009e73", "#cc79a7", "#56a5d8", "#d5502a", "#8a6fd1", "#8c8c3c")
DASHES: tuple[tuple[int, ...], ...] = ((1, 0), (6, 3), (2, 2), (9, 3, 2, 3))  # one for each time the colours are used

Chart = altair.Chart | altair.LayerChart | altair.HConcatChart | altair.VConcatChart
Rows = Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class Figure:
    """A chart as a page holds it: its Vega-Lite specification, and what it shows in words."""

    spec: dict[str, Any]
    alt: str


@dataclass(frozen=True)
class LineStyles:
    """The line of each name: a colour, and a dash pattern once the colours are used up."""

    names: tuple[str, ...]

    def color(self, name: str) -> str:
        """Give a name's colour."""
        return COLORS[self.names.index(name) % len(COLORS)]

    def dash(self, name: str) -> list[int]:
        """Give a name's dash pattern."""
        return list(DASHES[self.names.index(name) // len(COLORS) % len(DASHES)])

    def encodings(self, field: str, *, legend: altair.Legend | None) -> dict[str, Any]:
        """Give the encodings that draw every name in its own style, in every chart the same."""
        names = list(self.names)
        colors, dashes = [self.color(name) for name in names], [self.dash(name) for name in names]
        return {
            "color": altair.Color(
                f"{field}:N", scale=altair.Scale(domain=names, range=colors), legend=legend, title=None
            ),
            "strokeDash": altair.StrokeDash(
                f"{field}:N", scale=altair.Scale(domain=names, range=dashes), legend=legend, title=None
            ),
        }


def figure(chart: Chart, *, alt: str, data: Rows | None = None) -> Figure:
    """Make a chart ready for a page; it fills the width it gets if its own width is `container`."""
    return Figure(spec_of(chart, data=data), alt)


def write_png(chart: Chart, path: Path, *, data: Rows | None = None, scale: float = 2.0) -> Path:
    """Write a chart in the common look as a PNG file on white, `scale` times as large as its own pixels; give its path.

    Raises:
        ConfigError: the path is a folder.
    """
    if path.is_dir():
        raise ConfigError(f"{path} is a folder: give the name of a .png file")
    import vl_convert  # slow to load, and only pictures need it

    spec = spec_of(chart, data=data)
    spec["config"] |= {"background": "white", "font": "DejaVu Sans, sans-serif"}
    path.parent.mkdir(parents=True, exist_ok=True)
    # a control character, which SVG cannot hold, would abort the whole process
    text = re.sub(r"(\\\\)|\\u(?:00[01][0-9a-f]|fff[ef])", lambda found: found[1] or "?", json.dumps(spec))
    write_whole(path, vl_convert.vegalite_to_png(text, scale=scale))
    return path


def themed(chart: Chart) -> Chart:
    """Give a chart the common look: no background, lines and words that read on light and dark."""
    grey, line = "#7d8896", "rgba(125, 136, 150, 0.28)"
    return (
        chart.configure(background="transparent", font="system-ui, sans-serif", padding=8)  # for marks at the edge
        .configure_view(stroke=None)
        .configure_mark(color=COLORS[0])
        .configure_axis(
            labelColor=grey, titleColor=grey, gridColor=line, domainColor=line, tickColor=line, labelFontSize=12,
            titleFontSize=12, titleFontWeight="normal",
        )
        .configure_legend(
            orient="top", title=None, labelColor=grey, labelFontSize=12, labelLimit=340, symbolStrokeWidth=3,
            columnPadding=16,
        )
        .configure_range(category=list(COLORS))
    )  # fmt: skip


def spec_of(chart: Chart, *, data: Rows | None = None) -> dict[str, Any]:
    """Give a chart in the common look as Vega-Lite takes it, with the rows that it calls by name."""
    spec: dict[str, Any] = themed(chart).to_dict()
    return {**spec, "datasets": {**spec.get("datasets", {}), **data}} if data else spec


def loss_scale(**settings: Any) -> altair.Scale:
    """Give a loss's scale: logarithmic, ending where the losses end."""
    return altair.Scale(type="log", nice=False, **settings)


def loss_axis(*, is_horizontal: bool = False) -> altair.Axis:
    """Give a loss's axis: as many ticks as there is room for, written as they are read; labels never touch."""
    overlap: Any = "greedy" if is_horizontal else True
    return altair.Axis(format="~g", labelOverlap=overlap, labelSeparation=8 if is_horizontal else 0, tickCount=8)
