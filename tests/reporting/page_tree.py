"""A page as a tree of elements, for tests that look at what it holds instead of how it is written.

In: an HTML file. Out: elements with their attributes, texts and children; scripts and styles are no text.

    page = read_page(path)
    [row.text for row in page.all("tr", "wrong")]
"""

import json
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

VOID = {"br", "hr", "img", "input", "link", "meta", "wbr"}  # elements that have no end tag
SILENT = {"script", "style"}


class Element:
    """An element: tag, attributes, and what is in it: elements and pieces of text in their order."""

    def __init__(self, tag: str, attributes: dict[str, str | None]) -> None:
        self.tag = tag
        self.attributes = attributes
        self.inside: list[Element | str] = []

    def __getitem__(self, name: str) -> str:
        return self.attributes[name] or ""

    @property
    def classes(self) -> list[str]:
        return (self.attributes.get("class") or "").split()

    @property
    def content(self) -> str:
        """Everything written in it, scripts and styles too."""
        return "".join(part if isinstance(part, str) else part.content for part in self.inside)

    @property
    def text(self) -> str:
        """What a reader sees of it: elements apart from each other, white space made single."""
        return " ".join("".join(self._shown()).split())

    def _shown(self) -> Iterator[str]:
        for part in self.inside:
            if isinstance(part, str):
                yield part
            elif part.tag not in SILENT and part.tag != "wbr":
                yield from (" ", *part._shown(), " ")

    def all(self, tag: str = "", *classes: str, **attributes: str) -> "list[Element]":
        """Find all elements in it; an attribute's name may have _ for -."""
        wanted = {name.replace("_", "-"): value for name, value in attributes.items()}
        return [
            element
            for element in self.walk()
            if (not tag or element.tag == tag)
            and set(classes) <= set(element.classes)
            and all(element.attributes.get(name) == value for name, value in wanted.items())
        ]

    def one(self, tag: str = "", *classes: str, **attributes: str) -> "Element":
        """Find the only such element."""
        found = self.all(tag, *classes, **attributes)
        assert len(found) == 1, f"{len(found)} elements are {tag} {classes} {attributes}"
        return found[0]

    def walk(self) -> "Iterator[Element]":
        for part in self.inside:
            if isinstance(part, Element):
                yield part
                yield from part.walk()

    def section(self, heading: str) -> "Element":
        """Find the section with this heading."""
        [found] = [section for section in self.all("section") if [h.text for h in section.all("h2")] == [heading]]
        return found

    @property
    def headings(self) -> list[str]:
        return [heading.text for heading in self.all("h2")]

    @property
    def table(self) -> list[list[str]]:
        """The texts of the cells of the only table in it, row by row."""
        return [[cell.text for cell in row.inside if isinstance(cell, Element)] for row in self.one("table").all("tr")]

    @property
    def json(self) -> list[Any]:
        """What its scripts of JSON hold, charts apart."""
        return [json.loads(s.content) for s in self.all("script", "data", type="application/json")]

    @property
    def charts(self) -> list[dict[str, Any]]:
        """The Vega-Lite specifications of its charts."""
        specs = [json.loads(s.content) for s in self.all("script", type="application/json") if "data" not in s.classes]
        assert len(specs) == len(self.all("div", "plot", role="img"))
        return specs

    @property
    def addresses(self) -> list[str]:
        """Every address that a browser would load or go to, `data:` ones apart."""
        found = [element[name] for element in self.walk() for name in ("src", "href") if name in element.attributes]
        return [address for address in found if not address.startswith("data:")]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open = [Element("document", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(attrs) == len(dict(attrs)), f"<{tag}> names an attribute twice"
        element = Element(tag, dict(attrs))
        self.open[-1].inside.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].inside.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"line {self.getpos()[0]}: </{tag}> ends <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].inside.append(data)


def parse_page(text: str) -> Element:
    """Read a page whose every element is ended, in the order in which it was begun."""
    reader = _Reader()
    reader.feed(text)
    reader.close()
    assert len(reader.open) == 1, f"never ended: {[element.tag for element in reader.open[1:]]}"
    return reader.open[0]


def read_page(path: Path) -> Element:
    return parse_page(path.read_text(encoding="utf-8"))
