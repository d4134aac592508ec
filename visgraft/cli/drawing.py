"""Draw the joined model in a terminal: its parts as boxes, the shapes between them, and what of each trains.

In: a description. Out: something that rich prints; where nothing but ASCII can be printed, rich draws with that.
Usage: `print_rich(draw_model(described))`
"""

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from visgraft.builder.describe import Description
    from visgraft.model.trainable import PartRow

WIDTH = 68
STYLES = {"trains": "bold green", "some": "yellow", "frozen": "blue"}


def draw_model(described: "Description") -> RenderableType:
    """Draw what an image and a text go through, top to bottom."""
    rows = {row.part: row for row in described.rows}
    is_model = described.values["kind"] == "model"
    boxes = {stage.part: _box(rows[stage.part], stage.what, is_model=is_model) for stage in described.stages}
    gives = {stage.part: stage.gives for stage in described.stages}
    pixels = described.values["shapes"]["pixels"]
    image = "image of its own size" if pixels is None else f"image {' x '.join(map(str, pixels))}"
    return Group(
        _arrow(image),
        boxes["vision"],
        _arrow(gives["vision"]),
        boxes["projection"],
        _arrow(gives["projection"], beside="T text tokens"),
        _row_of_tokens(described.values["image_attention"]),
        boxes["language"],
        _arrow(gives["language"]),
        boxes["head"],
        _arrow(gives["head"]),
    )


def _box(row: "PartRow", what: str, *, is_model: bool) -> Panel:
    num, chosen = row.num_parameters, row.num_trainable
    state = "frozen" if chosen == 0 else "trains" if chosen == num else "some"
    if num == 0:
        numbers = "; ".join(row.notes) or "no parameters of its own"
    elif is_model:
        numbers = f"{num:,} parameters, {chosen:,} stored here"
    else:
        counted = {"frozen": "none trains", "trains": "all train", "some": f"{chosen:,} train"}[state]
        numbers = f"{num:,} parameters, {counted}"
    title = Text(f"{row.part}: {row.mode}")
    return Panel(Text(f"{what}\n{numbers}"), title=title, title_align="left", width=WIDTH, border_style=STYLES[state])


def _arrow(text: str, *, beside: str = "") -> Text:
    left = f"   | {text}"
    return Text(f"{left:<{WIDTH // 2}}   | {beside}" if beside else left)


def _row_of_tokens(image_attention: str) -> Table:
    """Draw one row of positions as the language model is given it: the prefix, then the text."""
    seen = "see each other" if image_attention == "bidirectional" else "see those before them"
    table = Table.grid()
    table.add_row(Panel(seen, width=WIDTH // 2), Panel("see the image, their own past", width=WIDTH - WIDTH // 2))
    return table
