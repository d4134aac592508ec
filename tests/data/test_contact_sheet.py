"""The contact sheet: every token of a text drawn once, answers marked; images as the model gets them; bad samples."""

import json

import pytest
from PIL import Image

from tests.data.made_tokenizers import TOKENIZERS
from tests.reporting.page_tree import Element, read_page
from tests.training.tiny import save_parts
from visgraft import Processor, Turn
from visgraft.config import SourceSettings
from visgraft.data.contact_sheet import MAX_DIALOGS, pieces_of, write_contact_sheet
from visgraft.data.prompt import PromptTemplate, encode_dialog
from visgraft.data.sources import open_sources

NASTY = "</div><b>  two\nlines & more"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Element:
    """One image with more texts than are drawn, one with a nasty and a cut text, one that is broken."""
    folder = tmp_path_factory.mktemp("sheet")
    data = folder / "data"
    data.mkdir()
    for number in (0, 1):
        Image.new("RGB", (60, 40), (200 * number, 60, 90)).save(data / f"{number}.png")
    (data / "2.png").write_bytes(b"no image")
    rows = [{"file_name": "0.png", "question": f"What is {i}?", "answer": "A cat."} for i in range(MAX_DIALOGS + 3)]
    rows += [{"file_name": "1.png", "question": NASTY, "answer": NASTY}]
    rows += [{"file_name": "1.png", "question": "Why?", "answer": "A cat. " * 200}, {"file_name": "2.png", "text": "x"}]
    (data / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = open_sources([SourceSettings("folder", path=str(data))])
    processor = Processor.from_parts(*save_parts(folder), max_text_tokens=100)
    return read_page(write_contact_sheet(folder / "sheet.html", sources, processor, number=5, title="a <b> recipe"))


def test_a_card_shows_what_the_model_gets_of_a_sample(page: Element) -> None:
    cards = {card.one("p", "name").text: card for card in page.all("article", "sample")}
    assert set(cards) == {"folder:0.png", "folder:1.png"}
    many = cards["folder:0.png"]
    assert len(many.all("div", "dialog")) == MAX_DIALOGS + 1
    assert many.all("div", "dialog")[-1].text == "and 3 more texts"
    assert "1 image, 5 image tokens," in many.text
    assert many.one("img")["src"].startswith("data:image/png;base64,")
    assert [("cut off" in dialog.text) for dialog in cards["folder:1.png"].all("div", "dialog")] == [False, True]


def test_a_text_is_drawn_letter_by_letter_and_its_answer_is_marked(page: Element) -> None:
    dialog = next(d for d in page.all("div", "dialog") if "two" in d.content)
    counts = dialog.one("small").content
    assert dialog.content.removeprefix(counts).endswith(f" {NASTY}</s>")
    assert NASTY in dialog.content.removeprefix(counts).removesuffix(f" {NASTY}</s>")
    assert dialog.one("span", "learned").content == f" {NASTY}"
    assert dialog.one("span", "end").content == "</s>"


def test_totals_and_bad_samples_are_listed(page: Element) -> None:
    assert page.one("h1").text == "a <b> recipe"
    assert page.one("p", "subtitle").text == "2 of 3 samples, in the order in which training meets them"
    numbers = {item.one("span").text: item.one("b").text for item in page.one("div", "numbers").all("div")}
    assert (numbers["samples"], numbers["texts"], numbers["texts cut off"]) == ("2", "17", "1")
    bad = page.section("Bad samples among them: 1").table
    assert bad == [["source", "where", "reason"], ["folder", "metadata.jsonl line 18", "not an image"]]
    assert page.addresses == []


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_pieces_are_the_whole_text_and_their_kinds_say_what_is_learned(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    dialog = encode_dialog(tokenizer, PromptTemplate("question"), [Turn("What is it?", "a cat")])
    pieces = pieces_of(dialog, tokenizer)
    assert [piece.kind for piece in pieces if piece.kind != "special"] == ["prompt", "learned", "end"]
    [learned, end] = pieces[-2:]
    assert learned.text.strip() == "a cat"
    assert end.text == tokenizer.eos_token
