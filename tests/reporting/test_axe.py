"""Every page that visgraft writes, seen by axe: no violation, light and dark, on a screen and on a phone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from tests.reporting.chromium import BROWSER, needs_chromium
from tests.reporting.made_pages import DRAWN, make_pages

pytestmark = [needs_chromium, pytest.mark.slow]
KINDS = ("compare", "evaluate", "demo", "reproduce", "inspect", "data")
CUT_OFF = """
  [...document.querySelectorAll("main *")].filter(element => {
    const style = getComputedStyle(element);
    return element.clientWidth && element.scrollWidth > element.clientWidth + 1 && style.overflowX === "hidden"
      && style.textOverflow !== "ellipsis" && !element.closest(".squares");
  }).map(element => element.outerHTML.slice(0, 100))
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_pages(tmp_path_factory.mktemp("pages"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


def test_no_kind_of_page_is_forgotten(pages: dict[str, Path]) -> None:
    assert tuple(pages) == KINDS
    templates = Path(__file__).parents[2] / "visgraft" / "reporting" / "templates"
    own = {path.stem for path in templates.glob("*.html")} - {"page", "parts"}
    assert len(own) == len(KINDS), own


@pytest.mark.parametrize("kind", KINDS)
def test_axe_finds_nothing_and_nothing_is_cut_off(pages: dict[str, Path], browser: Browser, kind: str) -> None:
    page = browser.new_page(color_scheme="light")
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 844})
        page.goto(pages[kind].as_uri())
        page.evaluate(DRAWN)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(CUT_OFF) == []
        check(page, options={}, what=f"{kind}, {width}")
    page.emulate_media(color_scheme="dark")
    check(page, options={"runOnly": {"type": "rule", "values": ["color-contrast"]}}, what=f"{kind}, dark")
    page.close()


def check(page: Page, *, options: dict[str, Any], what: str) -> None:
    found = Axe().run(page, options=options)
    assert found.violations_count == 0, f"{what}: {found.generate_report()}"
    assert found.response["passes"], "axe saw nothing"


def test_a_box_that_scrolls_says_so_and_one_that_does_not_is_left_alone(
    pages: dict[str, Path], browser: Browser
) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(pages["compare"].as_uri())
    results = page.locator("section", has=page.get_by_role("heading", name="Results"))
    results.get_by_text("scrolls sideways").wait_for()
    results.locator("[tabindex='0']").focus()
    page.set_viewport_size({"width": 1280, "height": 844})
    results.get_by_text("scrolls sideways").wait_for(state="detached")
    assert results.locator("[tabindex]").count() == 0
    page.close()
