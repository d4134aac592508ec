"""The pages without controls as a browser shows them: nothing is loaded, charts are drawn, a phone shows all of it."""

from pathlib import Path

import pytest
from PIL import Image

from tests.reporting.chromium import needs_chromium, run_in_page
from tests.reporting.test_page import demo, sheet
from visgraft.data.contact_sheet import Piece
from visgraft.demo import DemoQuestion
from visgraft.reporting.page import embed_image, make_table, write_page

pytestmark = [needs_chromium, pytest.mark.slow]
LONG = "a-very-long-name-without-any-space/" * 4
TEXT = "  two  spaces\nand a line "
LOOK = """
  return {
    needed: document.documentElement.scrollWidth,
    drawn: document.querySelectorAll(".plot svg .mark-line path").length,
    images: [...document.images].map(image => image.naturalWidth),
    dialogs: [...document.querySelectorAll(".dialog")].map(dialog => dialog.innerText),
    loaded: performance.getEntriesByType("resource").map(entry => entry.name).filter(x => !x.startsWith("data:")),
  };
"""


@pytest.mark.parametrize("width", [1280, 390])
def test_the_demo_draws_its_loss_and_its_cards_at_any_width(tmp_path: Path, width: int) -> None:
    image = embed_image(Image.new("RGB", (64, 64)), alt="black")
    cards = [{"question": DemoQuestion(Path("x.png"), LONG, "yes", LONG), "image": image}] * 3
    path = write_page(tmp_path / "demo.html", "demo.html", title=LONG, **demo(cards=cards, command=f"visgraft {LONG}"))
    seen = run_in_page(path, LOOK, width=width)
    assert seen["needed"] <= width
    assert (seen["drawn"], seen["images"], seen["loaded"]) == (1, [64] * 3, [])


@pytest.mark.parametrize("width", [1280, 390])
def test_the_contact_sheet_shows_texts_with_their_white_space_at_any_width(tmp_path: Path, width: int) -> None:
    pieces = [Piece(LONG, "special"), Piece(TEXT, "prompt"), Piece(TEXT, "learned"), Piece("</s>", "end")]
    dialog = {"num_tokens": 9, "num_learned": 4, "is_cut": True, "pieces": pieces}
    card = {
        "name": LONG, "where": LONG, "images": [embed_image(Image.new("RGB", (300, 40)), alt="black")] * 3,
        "num_images": 3, "num_image_tokens": 12, "num_text_tokens": 9, "dialogs": [dialog], "num_more_dialogs": 2,
    }  # fmt: skip
    bad = make_table(["source", "where", "reason"], [[LONG, LONG, LONG]])
    values = sheet(cards=[card], totals={"samples": "1"}, bad=bad, num_bad=1)
    path = write_page(tmp_path / "sheet.html", "contact_sheet.html", title=LONG, **values)
    seen = run_in_page(path, LOOK, width=width)
    assert seen["needed"] <= width
    assert (seen["drawn"], seen["images"], seen["loaded"]) == (0, [300] * 3, [])
    assert seen["dialogs"][0].endswith(f"{TEXT}{TEXT}</s>")
