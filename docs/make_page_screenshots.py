"""Make the pictures of the server's page that docs/serve-page.md shows, with playwright's Chromium.

    visgraft serve runs/my-run --runs runs --port 8000
    python docs/make_page_screenshots.py http://127.0.0.1:8000 photo.png "What colour is the shape?" "What shape is it?"

Writes docs/serve-try.png (wide, light: a conversation, tokens with their probabilities) and docs/serve-runs.png (a
phone, dark: a run as it trains).
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

HERE = Path(__file__).parent


def main() -> int:
    """Take both pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("image", type=Path)
    parser.add_argument("questions", nargs="+")
    parser.add_argument("--output", type=Path, default=HERE)
    given = parser.parse_args()
    browser_path = next((path for name in ("chromium", "google-chrome") if (path := shutil.which(name))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        size: Any = {"width": 1280, "height": 760}
        page = browser.new_page(viewport=size, color_scheme="light")
        page.set_default_timeout(120_000)
        page.goto(given.address)
        _talk(page, given.image, given.questions)
        page.screenshot(path=given.output / "serve-try.png")
        size = {"width": 390, "height": 844}
        page = browser.new_page(viewport=size, color_scheme="dark", device_scale_factor=1.5)
        page.goto(f"{given.address}/#runs")
        page.locator(".curve svg").first.wait_for()
        page.screenshot(path=given.output / "serve-runs.png")
        browser.close()
    return 0


def _talk(page: Page, image: Path, questions: list[str]) -> None:
    """Ask in turn, and show the tokens of the last answer."""
    page.locator("form.settings").first.evaluate("form => { form.elements.max_tokens.value = 24; }")
    page.get_by_label("Choose images").set_input_files(str(image))
    for number, text in enumerate(questions, start=1):
        page.get_by_role("textbox", name="Question").fill(text)
        page.keyboard.press("Enter")
        page.get_by_role("button", name="Probabilities").nth(number - 1).wait_for()
    page.get_by_role("button", name="Probabilities").last.click()
    page.locator(".token:visible").last.click()


if __name__ == "__main__":
    raise SystemExit(main())
