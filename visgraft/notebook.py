"""What runs, comparisons and models show of themselves in a notebook: facts in a table, losses as a small drawing.

In: plain values. Out: HTML that stands alone, for `_repr_html_`: no script, nothing loaded, readable light and dark.

    facts_html("runs/my-run", {"status": "finished", "loss": "0.41"}) + curves_html({"loss": [2.1, 0.9, 0.41]})
"""

import math
import sys
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT, EDGE = 420, 120, 6  # pixels
MOST_POINTS = 300
COLORS = ("#0072b2", "#e0791b", "#009e73", "#cc79a7", "#56a5d8", "#d5502a", "#8a6fd1", "#8c8c3c")


def is_notebook() -> bool:
    """Say whether this runs in a notebook's kernel, which shows HTML."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


def facts_html(title: str, facts: Mapping[str, object]) -> str:
    """Lay out facts, each behind its name, under a title."""
    rows = "".join(
        f'<tr><th style="text-align:left">{escape(name)}</th><td style="text-align:left">{escape(str(value))}</td></tr>'
        for name, value in facts.items()
    )
    return f"<b>{escape(title)}</b><table>{rows}</table>"


def table_html(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Lay out rows below their heads, under a title."""
    heads = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<b>{escape(title)}</b><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def curves_html(curves: Mapping[str, Sequence[float | None]]) -> str:
    """Draw losses over their order, on a logarithmic axis, each with its name; empty where there is nothing to draw."""
    kept = {name: _points(values) for name, values in curves.items()}
    kept = {name: points for name, points in kept.items() if len(points) > 1}
    if not kept:
        return ""
    ends = [value for points in kept.values() for _, value in points]
    low, high = min(ends), max(ends)
    size = max(high - low, 1e-9)
    lines, names = [], []
    for number, (name, points) in enumerate(kept.items()):
        color = COLORS[number % len(COLORS)]
        places = " ".join(
            f"{EDGE + x * (WIDTH - 2 * EDGE):.1f},{HEIGHT - EDGE - (y - low) / size * (HEIGHT - 2 * EDGE):.1f}"
            for x, y in points
        )
        lines.append(f'<polyline fill="none" stroke="{color}" stroke-width="1.5" points="{places}"/>')
        names.append(f'<span style="color:{color}">&#9644;</span> {escape(name)}')
    said = f"from {math.exp(high):.3g} to {math.exp(low):.3g}, logarithmic: {', '.join(kept)}"
    drawn = f'<svg role="img" aria-label="{escape(said)}" width="{WIDTH}" height="{HEIGHT}">{"".join(lines)}</svg>'
    return f"<div>{' &nbsp; '.join(names)}</div>{drawn}<div><small>{escape(said)}</small></div>"


def _points(values: Sequence[float | None]) -> list[tuple[float, float]]:
    """Give (share of the way, logarithm) of the values that a logarithmic axis can show, thinned out evenly."""
    last = max(len(values) - 1, 1)
    step = max(1, len(values) // MOST_POINTS)
    chosen = [(place / last, values[place]) for place in range(0, len(values), step)]
    return [(x, math.log(y)) for x, y in chosen if y is not None and math.isfinite(y) and y > 0]
