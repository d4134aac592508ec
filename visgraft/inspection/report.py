"""Draw a look inside a model: the page, or one picture.

In: an `ImageInspection`. Out: an offline HTML page with the words on the picture, their frequencies, norms, and an
answer's attention as heat; or a PNG of the words (and of the mean attention beside it).

    write_report(Path("inside.html"), look, title="runs/my-run", subtitle="cat.jpg")
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import altair
import vl_convert
from torch import Tensor

from visgraft.atomic import write_whole
from visgraft.inspection.image_tokens import AnswerInspection, ImageInspection
from visgraft.inspection.overlay import STYLE, attention_view, words_view
from visgraft.reporting.page import Page, image_tag, numbers, table

MAX_FREQUENCIES = 30
NUM_BINS = 48
PICTURE_SIDE = 640  # pixels, of a PNG's one picture
KINDS = ("image tokens", "vocabulary")


def write_report(path: Path, look: ImageInspection, *, title: str, subtitle: str = "") -> Path:
    """Write the page and give its path.

    Raises:
        ConfigError: the path is a folder.
    """
    page = Page(title, subtitle=subtitle)
    values = look.as_json()
    picture = image_tag(look.picture, alt="the image as the encoder gets it", max_side=768)
    page.add("", STYLE, numbers(_large_numbers(values)))
    page.add(
        "The nearest words on the picture",
        '<p class="soft">Each square is an image token, and on it stands the token of the vocabulary that is nearest '
        "to it among the input embeddings of the language model. “␣” is a space in front. Choose a square to see what "
        "else is near.</p>",
        f"<p>{_verdict(values['nearest_cosine'])}</p>",
        words_view(look.squares, values, picture=picture),
    )
    if look.attention is not None:
        page.add(
            "Where the answer looks",
            '<p class="soft">Of the position that chose each token of the answer: the share of its attention that goes '
            "to the image at all, mean over heads, and how that share is spread over the picture. The first position "
            "of a row often draws attention whatever stands there.</p>",
            attention_view(look.squares, values["attention"], picture=picture),
            page.chart(_layer_chart(look.attention), alt="share of attention that goes to the image, by layer"),
        )
    page.add("How often each word is the nearest", _frequencies(values))
    page.add(
        "Lengths",
        '<p class="soft">Lengths (L2 norms) of the image tokens beside the tokens of the vocabulary, where both '
        "enter the language model.</p>",
        page.chart(_norm_chart(look), alt="lengths of image tokens and of the vocabulary's tokens"),
        _norm_table(values),
    )
    return page.write(path)


def write_picture(path: Path, look: ImageInspection) -> Path:
    """Write the words nearest by cosine on the picture as a PNG; beside it, if there is an answer, its mean attention.

    Raises:
        OSError: the file cannot be written.
    """
    charts = [_picture_chart(look, _word_layers(look), title="nearest by cosine")]
    if look.attention is not None:
        found = look.attention
        share = float(found.image_share.mean())
        title = f"“{found.answer}”: {share:.0%} of its attention goes to the image"
        charts.append(_picture_chart(look, _heat_layers(look, found.weights.mean(dim=(0, 1))), title=title))
    chart = altair.HConcatChart(hconcat=charts, spacing=24).configure(
        background="white", font="DejaVu Sans, sans-serif"
    )
    write_whole(path, vl_convert.vegalite_to_png(chart.to_dict(), scale=1.5))
    return path


# --- The page


def _large_numbers(values: dict[str, Any]) -> dict[str, str]:
    grid, cosine, norms = values["grid"], values["nearest_cosine"], values["norms"]
    squares = f"{grid['rows']} x {grid['columns']} squares"
    leading = f" behind {grid['leading_tokens']} in front" if grid["leading_tokens"] else ""
    ratio = norms["image"]["median"] / max(norms["text"]["median"], 1e-12)
    shown = {
        f"image tokens: {squares}{leading}": f"{len(values['image_tokens'])}",
        "median cosine to the nearest word": f"{cosine['image_tokens']:.2f}",
        "of a text token to the nearest other": f"{cosine['text_tokens']:.2f}",
        "of a random direction": f"{cosine['random_directions']:.2f}",
        "times as long as a text token (medians)": f"{ratio:.1f}",
    }
    if values["attention"] is not None:
        tokens = values["attention"]["tokens"]
        share = sum(token["image_share"] for token in tokens) / len(tokens)
        shown["of the attention goes to the image"] = f"{share:.0%}"
    return shown


def _verdict(cosine: dict[str, float]) -> str:
    """Say whether the words mean anything: an image token need not lie near any word for the model to read it."""
    if cosine["image_tokens"] <= cosine["random_directions"]:
        return (
            "By direction, half of the image tokens are no nearer to any word than random directions are: do not read "
            "the words as what the model sees."
        )
    return (
        "By direction, the image tokens are nearer to words than random directions are "
        f"({cosine['image_tokens']:.2f} against {cosine['random_directions']:.2f}); text tokens are to one another "
        f"at {cosine['text_tokens']:.2f}."
    )


def _frequencies(values: dict[str, Any]) -> str:
    tables = []
    for measure, words in (("dot product", values["frequency"]["dot"]), ("cosine", values["frequency"]["cosine"])):
        rows = [[word["text"], word["count"], word["id"]] for word in words[:MAX_FREQUENCIES]]
        rest = len(words) - len(rows)
        more = f'<p class="soft">and {rest} more</p>' if rest else ""
        tables.append(f"<div>{table([f'nearest by {measure}', 'squares', 'id'], rows)}{more}</div>")
    return f'<div class="halves">{"".join(tables)}</div>'


def _norm_table(values: dict[str, Any]) -> str:
    norms = values["norms"]
    rows = [[kind, *(f"{value:.3f}" for value in norms[key].values())] for kind, key in zip(KINDS, norms, strict=True)]
    return table(["", *norms["image"]], rows)


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
        color=altair.Color("of:N", title=None, sort=list(KINDS), legend=altair.Legend(orient="top")),
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
        x=altair.X("layer:Q", axis=altair.Axis(format="d", tickMinStep=1), scale=altair.Scale(nice=False)),
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
    address = image_tag(look.picture, alt="", max_side=PICTURE_SIDE).split('src="')[1].split('"')[0]
    data = altair.Data(values=[{"url": address, "x": 0.5, "y": 0.5}])
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
