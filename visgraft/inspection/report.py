"""Draw what was found inside a model: the page, or one picture.

In: an `ImageInspection`. Out: an offline HTML page with the words on the picture, their frequencies, norms, and an
answer's attention as heat; or a PNG of the words (and of the mean attention beside it).

    write_report(Path("inside.html"), found, title="runs/my-run", subtitle="cat.jpg")

Here is what the page shows, as values; its words are in `reporting/templates/inspection.html`, what its controls do in
`words.js` and `heat.js` there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import altair
from torch import Tensor

from visgraft.inspection.image_tokens import AnswerInspection, ImageInspection
from visgraft.reporting.charts import figure, write_png
from visgraft.reporting.page import Table, embed_image, make_table, write_page

MAX_FREQUENCIES = 30
NUM_BINS = 48
PICTURE_SIDE = 640  # pixels, of a PNG's one picture
KINDS = ("image tokens", "vocabulary")
MEASURES = (("dot product", "dot"), ("cosine", "cosine"))


def write_report(path: Path, look: ImageInspection, *, title: str, subtitle: str = "") -> Path:
    """Write the page and give its path.

    Raises:
        ConfigError: the path is a folder.
    """
    values = look.as_json()
    layers = None
    if look.attention is not None:
        layers = figure(_layer_chart(look.attention), alt="share of attention that goes to the image, by layer")
    return write_page(
        path,
        "inspection.html",
        title=title,
        subtitle=subtitle,
        large_numbers=_large_numbers(values),
        cosine=values["nearest_cosine"],
        grid=look.squares,
        picture=embed_image(look.picture, alt="the image as the encoder gets it", max_side=768),
        image_tokens=values["image_tokens"],
        attention=values["attention"],
        layers=layers,
        frequencies=[_frequency(name, values["frequency"][key]) for name, key in MEASURES],
        lengths=figure(_norm_chart(look), alt="lengths of image tokens and of the vocabulary's tokens"),
        length_table=_norm_table(values),
    )


def write_picture(path: Path, look: ImageInspection) -> Path:
    """Write the words nearest by cosine on the picture as a PNG; beside it, if there is an answer, its mean attention.

    Raises:
        ConfigError: the path is a folder.
    """
    charts = [_picture_chart(look, _word_layers(look), title="nearest by cosine")]
    if look.attention is not None:
        found = look.attention
        share = float(found.image_share.mean())
        title = f"“{found.answer}”: {share:.0%} of its attention goes to the image"
        charts.append(_picture_chart(look, _heat_layers(look, found.weights.mean(dim=(0, 1))), title=title))
    return write_png(altair.HConcatChart(hconcat=charts, spacing=24), path, scale=1.5)


# --- The page


def _large_numbers(values: dict[str, Any]) -> dict[str, str]:
    grid, cosine, norms = values["grid"], values["nearest_cosine"], values["norms"]
    squares = f"{grid['rows']} x {grid['columns']} square{'s' * (grid['rows'] * grid['columns'] != 1)}"
    leading = f" behind {grid['leading_tokens']} in front" if grid["leading_tokens"] else ""
    ratio = norms["image"]["median"] / max(norms["text"]["median"], 1e-12)
    shown = {
        f"image tokens: {squares}{leading}": f"{len(values['image_tokens'])}",
        "cosine of an image token and its nearest word (median; 1: the same direction)": (
            f"{cosine['image_tokens']:.2f}"
        ),
        "the same of a word and the nearest other word": f"{cosine['text_tokens']:.2f}",
        "the same of a random direction: chance": f"{cosine['random_directions']:.2f}",
        "times the length of a word's token (medians)": f"{ratio:.1f}",
    }
    if values["attention"] is not None:
        tokens = values["attention"]["tokens"]
        share = sum(token["image_share"] for token in tokens) / len(tokens)
        shown["of the answer's attention goes to the image"] = f"{share:.0%}"
    return shown


def _frequency(measure: str, words: list[dict[str, Any]]) -> dict[str, Any]:
    """Give the table of the words that are most often the nearest, and how many more there are."""
    rows = [[word["text"], word["count"], word["id"]] for word in words[:MAX_FREQUENCIES]]
    table = make_table([f"nearest by {measure}", "squares", "id"], rows)
    return {"table": table, "num_more": len(words) - len(rows)}


def _norm_table(values: dict[str, Any]) -> Table:
    norms = values["norms"]
    rows = [[kind, *(f"{value:.3f}" for value in norms[key].values())] for kind, key in zip(KINDS, norms, strict=True)]
    return make_table(["lengths of", *norms["image"]], rows)


def _norm_chart(look: ImageInspection) -> altair.Chart:
    """Draw the lengths of image tokens and of the vocabulary as shares, on a logarithmic axis."""
    groups = dict(zip(KINDS, (look.nearest.image_norms, look.nearest.text_norms), strict=True))
    logs = {kind: lengths[lengths > 1e-9].double().log10() for kind, lengths in groups.items()}
    low, high = _range_shown([values for values in logs.values() if len(values)])
    step = (high - low) / NUM_BINS
    points = []
    for kind, values in logs.items():
        counts = values.histc(NUM_BINS, low, high) / max(1, len(values))
        edges = [10 ** (low + step * place) for place in range(NUM_BINS + 1)]
        points += [
            {"from": edges[place], "to": edges[place + 1], "share": share, "of": kind}
            for place, share in enumerate(counts.tolist())
            if share
        ]
    scale = altair.Scale(type="log", domain=[10**low, 10**high], nice=False)
    bars = altair.Chart(altair.Data(values=points), width="container", height=200).mark_bar(opacity=0.6)
    return bars.encode(
        x=altair.X("from:Q", title="length", scale=scale, axis=altair.Axis(tickCount=6, format="~g")),
        x2="to:Q",
        y=altair.Y("share:Q", title="share", stack=None, axis=altair.Axis(format="%", tickCount=4)),
        y2=altair.datum(0),
        color=altair.Color("of:N", title=None, sort=list(KINDS), legend=altair.Legend()),
    )


def _range_shown(groups: list[Tensor]) -> tuple[float, float]:
    """Give the ends of the axis: all but the outermost hundredth on either side of each group."""
    ordered = [group.sort().values for group in groups]
    ends = [(float(values[len(values) // 100]), float(values[-1 - len(values) // 100])) for values in ordered]
    return min(low for low, _ in ends) - 0.05, max(high for _, high in ends) + 0.05


def _layer_chart(found: AnswerInspection) -> altair.Chart:
    points = [
        {"layer": layer, "share": float(share)}
        for layer, share in zip(found.layers, found.image_share.mean(1), strict=True)
    ]
    lines = altair.Chart(altair.Data(values=points), width="container", height=150).mark_line(point=True)
    return lines.encode(
        x=altair.X(
            "layer:Q",
            axis=altair.Axis(format="d", values=found.layers, labelOverlap="greedy", labelSeparation=6),
            scale=altair.Scale(nice=False),
        ),
        y=altair.Y(
            "share:Q",
            title="attention to the image",
            axis=altair.Axis(format="%", tickCount=4),
            scale=altair.Scale(domain=[0, 1]),
        ),
    )


# --- The picture


def _picture_chart(look: ImageInspection, layers: list[altair.Chart], *, title: str) -> altair.LayerChart:
    width, height = (round(side * PICTURE_SIDE / max(look.picture.size)) for side in look.picture.size)
    picture = embed_image(look.picture, alt="", max_side=PICTURE_SIDE)
    data = altair.Data(values=[{"url": picture.address, "x": 0.5, "y": 0.5}])
    shown = altair.Chart(data).mark_image(width=width, height=height, aspect=False)
    placed = shown.encode(url="url:N", x=_across("x"), y=_down("y"))
    return altair.LayerChart(layer=[placed, *layers], title=title, width=width, height=height)


def _across(field: str) -> altair.X:
    return altair.X(f"{field}:Q", scale=altair.Scale(domain=[0, 1]), axis=None)


def _down(field: str) -> altair.Y:
    return altair.Y(f"{field}:Q", scale=altair.Scale(domain=[1, 0]), axis=None)


def _square_chart(look: ImageInspection, field: str, values: list[Any]) -> altair.Chart:
    """Give a chart of the squares, each with a value: edges as shares of the picture, from its upper left."""
    squares, points = look.squares, []
    height, width = squares.height / squares.rows, squares.width / squares.columns
    for index, value in enumerate(values):
        place = squares.place(index)
        if place is not None:
            top, left = place[0] * height, place[1] * width
            edges = {"left": left, "top": top, "right": left + width, "bottom": top + height}
            points.append({**edges, "x": left + width / 2, "y": top + height / 2, field: value})
    return altair.Chart(altair.Data(values=points))


def _rectangles(chart: altair.Chart) -> altair.Chart:
    return chart.encode(x=_across("left"), x2="right:Q", y=_down("top"), y2="bottom:Q")


def _word_layers(look: ImageInspection) -> list[altair.Chart]:
    words = [look.spelling[token] for token in look.nearest.by_cosine.ids[:, 0].tolist()]
    cell = PICTURE_SIDE / max(look.squares.columns, look.squares.rows)
    chart = _square_chart(look, "word", words)
    squares = chart.mark_rect(color="black", opacity=0.5, stroke="white", strokeWidth=0.6, strokeOpacity=0.5)
    text = chart.mark_text(
        color="white", font="DejaVu Sans, sans-serif", fontSize=max(6.0, min(20.0, cell / 5)), limit=cell * 0.96
    )
    return [_rectangles(squares), text.encode(x=_across("x"), y=_down("y"), text="word:N")]


def _heat_layers(look: ImageInspection, weights: Tensor) -> list[altair.Chart]:
    color = altair.Color("share:Q", scale=altair.Scale(scheme="inferno", domainMin=0), legend=None)
    return [_rectangles(_square_chart(look, "share", weights.tolist()).mark_rect(opacity=0.62)).encode(color=color)]
