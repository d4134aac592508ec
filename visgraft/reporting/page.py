"""The one offline HTML shell that every report uses: one file, no network, light and dark, readable on a phone.

In: sections of HTML, figures, pictures. Out: a page as one self-contained file.

    page = Page("easy-VQA demo", subtitle="SmolLM2-135M + EfficientNet-Lite2")
    page.add("How it learned", page.chart(chart, alt="loss over samples"))       # an Altair chart
    page.write(folder / "report.html")
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visgraft.atomic import write_whole
from visgraft.errors import ConfigError

if TYPE_CHECKING:
    from altair import Chart, LayerChart, VConcatChart
    from PIL.Image import Image

STYLE = """
:root { color-scheme: light dark; --text: #1c2430; --soft: #5b6675; --back: #f6f7f9; --card: #ffffff; --line: #dfe3e8;
  --accent: #2458d3; --good: #14804a; --bad: #c22f2f; --mark: #fff1c2; }
@media (prefers-color-scheme: dark) { :root { --text: #e6eaf0; --soft: #9aa6b5; --back: #12161c; --card: #1b2129;
  --line: #303945; --accent: #86a9ff; --good: #58c98d; --bad: #ff8b85; --mark: #4a3f16; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 4px; letter-spacing: -0.01em; }
h2 { font-size: 1.2rem; margin: 0 0 12px; }
p { margin: 0 0 10px; } .soft { color: var(--soft); } .subtitle { color: var(--soft); margin-bottom: 22px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 18px 20px;
  margin-bottom: 18px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.94rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 6px 12px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; } td.number, th.number { text-align: right; }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: 0.9em; }
pre { background: var(--back); border: 1px solid var(--line); border-radius: 8px; padding: 12px; overflow-x: auto; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 14px; }
.numbers div { border-left: 3px solid var(--accent); padding-left: 12px; }
.numbers b { display: block; font-size: 1.75rem; line-height: 1.15; font-weight: 650; }
.numbers span { color: var(--soft); font-size: 0.9rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(168px, 1fr)); gap: 14px; }
.card { border: 1px solid var(--line); border-radius: 10px; overflow: hidden; background: var(--back);
  font-size: 0.9rem; line-height: 1.35; }
.card img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: #fff; }
.card div { padding: 8px 10px 10px; } .card p { margin: 0 0 4px; }
.good { color: var(--good); } .bad { color: var(--bad); } .card.wrong { border: 2px solid var(--bad); }
mark { background: var(--mark); color: inherit; border-radius: 3px; padding: 0 1px; }
.plot { width: 100%; }
@media (max-width: 560px) { main { padding: 16px 10px 40px; } section { padding: 14px 12px; border-radius: 10px; }
  .grid { grid-template-columns: repeat(2, 1fr); gap: 10px; } h1 { font-size: 1.5rem; } }
"""

# Distinct on white and on dark, and for the colour-blind (Okabe and Ito's palette, its yellow and black replaced).
COLORS = ("#0072b2", "#e0791b", "#009e73", "#cc79a7", "#56a5d8", "#d5502a", "#8a6fd1", "#8c8c3c")


class Page:
    """A page under construction: a title and sections, written as one file."""

    def __init__(self, title: str, *, subtitle: str = "", style: str = "", script: str = "") -> None:
        """Start a page; title and subtitle are text, not HTML.

        `style` (CSS) comes behind the page's own; `script` runs at its end, when all charts are on their way: each is
        in `window.charts`, by its name, as the promise that Vega-Embed gives.
        """
        self.title = title
        self.subtitle = subtitle
        self.style = style
        self.script = script
        self.sections: list[str] = []
        self.num_charts = 0

    def add(self, heading: str, *parts: str) -> None:
        """Add a section: a heading (text) and parts of HTML."""
        title = f"<h2>{escape(heading)}</h2>" if heading else ""
        self.sections.append(f"<section>{title}{''.join(parts)}</section>")

    def chart(
        self, chart: Chart | LayerChart, *, alt: str, data: Mapping[str, Sequence[Mapping[str, Any]]] | None = None
    ) -> str:
        """Give an Altair chart as HTML; it fills the width it gets, and the library's code is inside the page.

        `data` are the rows that the chart calls by name (`altair.NamedData`): Altair checks rows that it holds one by
        one, which takes seconds for a few thousand.
        """
        self.num_charts += 1
        name = f"chart-{self.num_charts}"
        spec = json.dumps(spec_of(chart, data=data)).replace("</", "<\\/")
        options = '{"actions": false, "renderer": "svg"}'
        return (
            f'<div class="plot" id="{name}" role="img" aria-label="{escape(alt)}"></div>'
            f'<script>(window.charts ??= {{}})["{name}"] = vegaEmbed("#{name}", {spec}, {options});</script>'
        )

    def html(self) -> str:
        """Give the page as HTML."""
        subtitle = f'<p class="subtitle">{escape(self.subtitle)}</p>' if self.subtitle else ""
        scripts = f"<script>{_chart_library()}</script>" if self.num_charts else ""
        at_end = f"<script>{self.script}</script>" if self.script else ""
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self.title)}</title><style>{STYLE}{self.style}</style>{scripts}</head>\n"
            f"<body><main><h1>{escape(self.title)}</h1>{subtitle}\n"
            + "\n".join(self.sections)
            + f"\n</main>{at_end}</body></html>\n"
        )

    def write(self, path: Path) -> Path:
        """Write the page and give its path.

        Raises:
            ConfigError: the path is a folder.
        """
        if path.is_dir():
            raise ConfigError(f"{path} is a folder: give the name of an .html file")
        write_whole(path, self.html())
        return path


def themed(chart: Chart | LayerChart | VConcatChart) -> Chart | LayerChart | VConcatChart:
    """Give a chart the page's look: no background, lines and words that read on light and dark."""
    grey, line = "#7d8896", "rgba(125, 136, 150, 0.28)"
    return (
        chart.configure(background="transparent", font="system-ui, sans-serif", padding=4)
        .configure_view(stroke=None)
        .configure_axis(
            labelColor=grey, titleColor=grey, gridColor=line, domainColor=line, tickColor=line, labelFontSize=12,
            titleFontSize=12, titleFontWeight="normal",
        )
        .configure_legend(labelColor=grey, titleColor=grey, labelFontSize=12, symbolStrokeWidth=3)
        .configure_range(category=list(COLORS))
    )  # fmt: skip


def spec_of(
    chart: Chart | LayerChart | VConcatChart, *, data: Mapping[str, Sequence[Mapping[str, Any]]] | None = None
) -> dict[str, Any]:
    """Give a chart in the page's look as Vega-Lite takes it, with the rows that it calls by name."""
    spec: dict[str, Any] = themed(chart).to_dict()
    return {**spec, "datasets": {**spec.get("datasets", {}), **data}} if data else spec


def escape(text: object) -> str:
    """Make text safe inside HTML."""
    return html.escape(str(text))


def image_tag(image: Image, *, alt: str, max_side: int = 320) -> str:
    """Embed a picture, shrunk to at most `max_side` pixels."""
    shown = image.convert("RGB")
    shown.thumbnail((max_side, max_side))
    buffer = io.BytesIO()
    shown.save(buffer, format="PNG" if max(shown.size) <= 128 else "JPEG", quality=88)
    kind = "png" if max(shown.size) <= 128 else "jpeg"
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{escape(alt)}" src="data:image/{kind};base64,{data}">'


def numbers(values: Mapping[str, str]) -> str:
    """Show a few large numbers: what it is -> the number."""
    items = "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for name, value in values.items())
    return f'<div class="numbers">{items}</div>'


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Show a table; columns of numbers stand on the right."""

    def is_number(value: Any) -> bool:
        return isinstance(value, (int, float)) or str(value).replace(".", "").replace(",", "").rstrip(" %").isdigit()

    def cell(value: Any, tag: str, on_right: bool) -> str:
        shown = f"{value:,}" if isinstance(value, int) else value
        return f"<{tag}{' class=number' if on_right else ''}>{escape(shown)}</{tag}>"

    on_right = [bool(rows) and all(is_number(row[column]) for row in rows) for column in range(len(header))]
    head = "".join(cell(name, "th", right) for name, right in zip(header, on_right, strict=True))
    body = "".join(
        f"<tr>{''.join(cell(value, 'td', right) for value, right in zip(row, on_right, strict=True))}</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


@cache
def _chart_library() -> str:
    import vl_convert  # slow to load, and only pages with charts need it

    bundle: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # its stub forgets the default
    return bundle.replace("</script", "<\\/script")
