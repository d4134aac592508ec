"""The one offline page that every report is: a template with its CSS and JavaScript, filled with values.

In: the name of a file of `templates/`, and values. Out: one HTML file: no network, light and dark, readable on a phone.

    write_page(folder / "report.html", "demo.html", title="easy-VQA", loss=figure(chart, alt="loss over samples"), ...)

Values are text, numbers and the dataclasses of this group, never HTML: templates escape all that they are given, and a
value that a template misses is an error.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from visgraft.atomic import write_whole
from visgraft.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image

LARGEST_PNG = 128  # pixels; pictures with a longer side are JPEG


@dataclass(frozen=True)
class EmbeddedImage:
    """A picture as a page holds it: its `data:` address, and what it shows in words."""

    address: str
    alt: str


@dataclass(frozen=True)
class Table:
    """A table of texts; columns of numbers stand on the right.

    Attributes:
        header: a name for each column.
        rows: one text for each column.
        is_number: whether a column holds numbers only.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    is_number: tuple[bool, ...]


def write_page(path: Path, template: str, *, title: str, subtitle: str = "", **values: object) -> Path:
    """Fill a template, write it and give the path.

    Raises:
        ConfigError: the path is a folder.
    """
    if path.is_dir():
        raise ConfigError(f"{path} is a folder: give the name of an .html file")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, render_page(template, title=title, subtitle=subtitle, **values))
    return path


def render_page(template: str, *, title: str, subtitle: str = "", **values: object) -> str:
    """Fill a template and give the page as HTML."""
    return _environment().get_template(template).render(title=title, subtitle=subtitle, **values)


def embed_image(image: Image, *, alt: str, max_side: int = 320, quality: int = 88) -> EmbeddedImage:
    """Embed a picture, shrunk to at most `max_side` pixels; one of less than the usual quality is always JPEG."""
    shown = image.convert("RGB")
    shown.thumbnail((max_side, max_side))
    kind = "png" if max(shown.size) <= LARGEST_PNG and quality == 88 else "jpeg"
    buffer = io.BytesIO()
    shown.save(buffer, format=kind, quality=quality)
    return EmbeddedImage(f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}", alt)


def make_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """Make a table; whole numbers get their thousands marked."""
    return Table(
        tuple(header),
        tuple(tuple(f"{value:,}" if isinstance(value, int) else str(value) for value in row) for row in rows),
        tuple(bool(rows) and all(_is_number(row[column]) for row in rows) for column in range(len(header))),
    )


def _is_number(value: Any) -> bool:
    text = str(value).lstrip("+-\u2212").replace(".", "").replace(",", "").rstrip(" %")
    return isinstance(value, (int, float)) or text.isdigit()


def template_file(name: str) -> str:
    """Give a CSS or JavaScript file of `templates/` as it is."""
    environment = _environment()
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


# --- What templates are filled by


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("visgraft.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {}  # keys stay in their order
    environment.globals |= {"file": lambda name: Markup(template_file(name)), "chart_library": _chart_library}
    environment.filters["breakable"] = _breakable
    return environment


@cache
def _chart_library() -> Markup:
    import vl_convert  # slow to load, and only pages with charts need it

    bundle: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # its stub forgets the default
    return Markup(bundle.replace("</script", "<\\/script"))


def _breakable(text: str) -> Markup:
    """Let a name break after its dots, dashes, underscores, plus signs and slashes, where it must break at all."""
    return Markup("<wbr>").join(re.split(r"(?<=[._+/-])(?=\w)", text))
