"""Draw the measured ladder and the growth of cost as pictures for docs/performance.md.

    python bench/plot.py                         # bench/results/*.json -> docs/ladder.png, docs/growth.png

In: the results of ladder.py and, where they are there, train_step.py (drawn below the ladder) and growth.py. Out: one
or two PNG files. Nothing is measured here.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import altair
import vl_convert
from harness import console, ratio

from visgraft.reporting.charts import COLORS, spec_of

BENCH = Path(__file__).parent
RUNGS = {
    "ancestor": "GIT-LLM's recipe",
    "bf16": "+ bfloat16",
    "supervised": "+ logits only where supervised",
    "unpadded": "+ no padding",
    "shared": "+ one prefix for all texts",
    "filled": "+ filled rows",
    "compile": "+ compiled",
    "cached": "(+ cached vision, apart)",
}
VARIANTS = {
    "ancestor": "GIT-LLM's recipe",
    "llava": "transformers' LLaVA + peft",
    "nano": "a script with full logits, as nanoVLM",
    "rows": "visgraft, a row a text",
    "shared": "visgraft, one prefix for all texts",
    "filled": "visgraft, filled rows (default)",
}
OTHER_WAYS = ("ancestor", "llava", "nano")
MIXES = {"captions": "5 captions an image", "vqa": "9.6 questions an image (easy-VQA)"}
AXES = {"image_tokens": "tokens of an image", "texts": "texts about an image", "images": "images a step"}
LAYOUTS = {"rows": "a row a text", "shared": "visgraft's default"}
WIDTH, BAR = 300, 24
INK, OTHERS, APART = "#333d49", "#8f9aa6", 0.4
TICKS = [digit * 10**power for power in range(-2, 4) for digit in (1, 2, 5)]


def bars(
    variants: Mapping[str, Any],
    words: Mapping[str, str],
    *,
    title: str,
    first: str,
    per_s: str,
    with_names: bool = True,
    others: Sequence[str] = (),
) -> altair.LayerChart:
    """Draw a bar a variant, how many times as fast as `first` written at each; `others` are not of this project."""
    names = [name for name in words if name in variants]
    speeds = {name: variants[name][per_s] for name in names}
    rows = [
        {
            "name": words[name],
            "speed": speeds[name],
            "label": f"{ratio(variants, slow=first, fast=name):.1f} x",
            "color": OTHERS if name in others else COLORS[0],
            "opacity": APART if name == "cached" else 1,
        }
        for name in names
    ]
    labels = altair.Axis(labelLimit=300, ticks=False, domain=False, labelColor=INK) if with_names else None
    base = altair.Chart(altair.Data(values=rows)).encode(
        y=altair.Y("name:N", sort=[words[name] for name in names], title=None, axis=labels)
    )
    x = altair.X(
        "speed:Q",
        title=f"{per_s.removesuffix('_per_s')} per second",
        scale=altair.Scale(domain=[0, 1.2 * max(speeds.values())], nice=False),
        axis=altair.Axis(tickCount=5, grid=False),
    )
    drawn = base.mark_bar(height=0.66 * BAR).encode(
        x=x, color=altair.Color("color:N", scale=None), opacity=altair.Opacity("opacity:Q", scale=None)
    )
    written = base.mark_text(align="left", dx=6, color=INK, fontSize=12).encode(x=x, text="label:N")
    height = BAR * len(rows)
    return altair.LayerChart(layer=[drawn, written], width=WIDTH, height=height, title=heading(title))


def heading(text: str) -> altair.TitleParams:
    """Give the title of a panel."""
    return altair.TitleParams(text, anchor="start", frame="group", color=INK, fontSize=14, fontWeight=600)


def ladder_chart(ladder: Mapping[str, Any], train_step: Mapping[str, Any] | None) -> altair.VConcatChart:
    """Draw both mixes side by side and, below, what a user would pick instead."""
    mixes = [(mix, ladder["mixes"][mix]) for mix in MIXES if mix in ladder["mixes"]]
    side_by_side = [
        bars(
            measured["variants"],
            RUNGS,
            title=MIXES[mix],
            first=next(iter(measured["variants"])),
            per_s="texts_per_s",
            with_names=number == 0,
        )
        for number, (mix, measured) in enumerate(mixes)
    ]
    parts: list[Any] = [altair.HConcatChart(hconcat=side_by_side, spacing=20)]
    if train_step is not None:
        variants = train_step["variants"]
        title = f"Beside what one would pick instead: {train_step['captions_per_image']} captions an image"
        first = next(iter(variants))
        parts.append(bars(variants, VARIANTS, title=title, first=first, per_s="captions_per_s", others=OTHER_WAYS))
    return altair.VConcatChart(vconcat=parts, spacing=28)


def growth_chart(growth: Mapping[str, Any]) -> altair.HConcatChart:
    """Draw the seconds of a step along each axis, and how many times as long `rows` takes."""
    seconds = [v["median_s"] for points in growth["axes"].values() for p in points for v in p["variants"].values()]
    scale = altair.Scale(type="log", domain=[0.7 * min(seconds), 1.7 * max(seconds)], nice=False)
    panels = [_panel(axis, growth["axes"][axis], scale=scale, is_first=axis == "image_tokens") for axis in AXES]
    center = growth["center"]
    text = "Seconds of a step, around {image_tokens} tokens, {texts} texts, {images} images".format(**center)
    return altair.HConcatChart(hconcat=panels, spacing=14, title=heading(text))


def _panel(axis: str, points: Sequence[Mapping[str, Any]], *, scale: altair.Scale, is_first: bool) -> altair.LayerChart:
    rows = [
        {"x": point[axis], "seconds": measured["median_s"], "layout": LAYOUTS[layout]}
        for point in points
        for layout, measured in point["variants"].items()
    ]
    factors = [
        {"x": point[axis], "seconds": point["variants"]["rows"]["median_s"], "label": f"{point['shared / rows']:.1f} x"}
        for point, after in zip(points, [*points[1:], None], strict=True)
        if point["shared / rows"] and (after is None or after[axis] >= 1.5 * point[axis])  # else they would overlap
    ]
    values = [point[axis] for point in points]
    x = altair.X(
        "x:Q",
        title=AXES[axis],
        scale=altair.Scale(type="log", domain=[0.55 * min(values), 1.25 * max(values)], nice=False),
        axis=altair.Axis(values=values, format="d", labelOverlap=False),
    )
    ticks = altair.Axis(format="~g", values=TICKS, labels=is_first, ticks=is_first, domain=is_first)
    y = altair.Y("seconds:Q", title="seconds" if is_first else None, scale=scale, axis=ticks)
    colors = altair.Scale(domain=list(LAYOUTS.values()), range=[COLORS[1], COLORS[0]])
    legend = altair.Legend(title=None, orient="top-left", labelColor=INK, symbolType="stroke") if is_first else None
    lines = (
        altair.Chart(altair.Data(values=rows))
        .mark_line(point=altair.OverlayMarkDef(size=45), strokeWidth=2.5)
        .encode(x=x, y=y, color=altair.Color("layout:N", scale=colors, legend=legend))
    )
    written = (
        altair.Chart(altair.Data(values=factors))
        .mark_text(align="right", dx=-4, dy=-9, color=INK, fontSize=11)
        .encode(x=x, y=y, text="label:N")
    )
    return altair.LayerChart(layer=[lines, written], width=230, height=240)


def save(chart: Any, *, path: Path) -> None:
    """Write a chart as a PNG file, on white."""
    spec = spec_of(chart)
    spec["config"]["background"] = "white"
    spec["padding"] = 14
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(vl_convert.vegalite_to_png(json.dumps(spec), scale=2))
    console.print(f"wrote {path}")


def main() -> None:
    """Read the results and draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=BENCH / "results")
    parser.add_argument("--output", type=Path, default=BENCH.parent / "docs", help="folder of the pictures")
    arguments = parser.parse_args()
    found = {
        name: json.loads(path.read_text())
        for name in ("ladder", "train_step", "growth")
        if (path := arguments.results / f"{name}.json").is_file()
    }
    if not found.keys() & {"ladder", "growth"}:
        parser.error(f"--results: {arguments.results} has no ladder.json or growth.json; run bench/ladder.py first")
    if "ladder" in found:
        save(ladder_chart(found["ladder"], found.get("train_step")), path=arguments.output / "ladder.png")
    if "growth" in found:
        save(growth_chart(found["growth"]), path=arguments.output / "growth.png")


if __name__ == "__main__":
    main()
