"""A whole look: what is asked and answered, shares, spelling, JSON, the page and the picture."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.data.made_tokenizers import TOKENIZERS
from tests.reporting.page_tree import read_page
from tests.training.tiny import save_parts
from visgraft import Processor, Sample, Turn, VisionLanguageModel
from visgraft.errors import ConfigError
from visgraft.inference import answer
from visgraft.inspection import ImageInspection, inspect_image, write_picture, write_report
from visgraft.inspection.image_tokens import parse_layers, quantiles, spell

Loaded = tuple[VisionLanguageModel, Processor]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    parts = save_parts(tmp_path_factory.mktemp("parts"))
    return VisionLanguageModel.from_parts(*parts).eval(), Processor.from_parts(*parts)


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    image = Image.new("RGB", (60, 40), (200, 30, 30))
    image.paste((20, 30, 220), (0, 0, 30, 20))
    return image


@pytest.fixture(scope="module")
def look(loaded: Loaded, picture: Image.Image) -> ImageInspection:
    return inspect_image(*loaded, picture, prompt="What is it?", number=4, max_new_tokens=6)


def test_the_answer_is_the_one_that_ask_gives(look: ImageInspection, loaded: Loaded, picture: Image.Image) -> None:
    found = look.attention
    assert found is not None
    [text] = answer(*loaded, [Sample(images=[picture], dialogs=[[Turn("What is it?", "")]])], max_new_tokens=6)
    assert found.answer == text
    tokenizer = loaded[1].tokenizer
    assert tokenizer.decode(found.token_ids, skip_special_tokens=True).strip() == text


def test_shares_of_an_answers_attention_add_up(look: ImageInspection, loaded: Loaded) -> None:
    found = look.attention
    assert found is not None
    num_tokens = len(found.token_ids)
    assert found.image_share.shape == (2, num_tokens)
    assert ((found.image_share > 0) & (found.image_share < 1)).all()
    torch.testing.assert_close(found.weights.sum(-1), torch.ones(2, num_tokens))
    in_front = 5 + len(loaded[1].prompt([Turn("What is it?", "")]))
    assert found.even_share.tolist() == pytest.approx([5 / (in_front + place) for place in range(num_tokens)])


def test_the_picture_is_what_the_encoder_gets(look: ImageInspection, picture: Image.Image) -> None:
    """A crop of 32 x 32 from the middle of 48 x 32: the blue corner reaches to row 16 and column 24 - 8."""
    assert look.picture.size == (32, 32)
    assert look.picture.getpixel((3, 3)) == pytest.approx((20, 30, 220), abs=3)
    assert look.picture.getpixel((28, 28)) == pytest.approx((200, 30, 30), abs=3)
    assert look.picture.getpixel((28, 3)) == pytest.approx((200, 30, 30), abs=3)


def test_numbers_are_written_as_json(look: ImageInspection) -> None:
    values = json.loads(json.dumps(look.as_json()))
    assert values["grid"] == {"rows": 2, "columns": 2, "leading_tokens": 1}
    assert [token["place"] for token in values["image_tokens"]] == [None, [0, 0], [0, 1], [1, 0], [1, 1]]
    first = values["image_tokens"][0]
    assert len(first["by_dot"]) == len(first["by_cosine"]) == 4
    assert [word["cosine"] for word in first["by_cosine"]] == sorted(
        (word["cosine"] for word in first["by_cosine"]), reverse=True
    )
    assert sum(word["count"] for word in values["frequency"]["dot"]) == 5
    assert set(values["norms"]["text"]) == {"least", "5 %", "median", "95 %", "most"}
    token = values["attention"]["tokens"][0]
    assert [len(row) for row in token["weights_by_layer"]] == [5, 5]
    assert token["image_share"] == pytest.approx(sum(token["image_share_by_layer"]) / 2, abs=1e-4)


def test_without_a_prompt_nothing_is_asked(loaded: Loaded, picture: Image.Image) -> None:
    assert inspect_image(*loaded, picture).as_json()["attention"] is None


def test_layers_are_chosen_by_number(loaded: Loaded, picture: Image.Image, look: ImageInspection) -> None:
    one = inspect_image(*loaded, picture, prompt="What is it?", layers="1", max_new_tokens=6).attention
    assert one is not None
    assert look.attention is not None
    assert one.layers == [1]
    torch.testing.assert_close(one.weights[0], look.attention.weights[1])
    assert parse_layers("0, 3,5-7", num_layers=9) == [0, 3, 5, 6, 7]
    assert parse_layers(None, num_layers=3) == [0, 1, 2]


@pytest.mark.parametrize("text", ["9", "", "a", "2-1", "1-", "-1", "0,,1"])
def test_layers_that_there_are_not_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="need numbers of layers from 0 to 8, such as 0,5 or 10-20"):
        parse_layers(text, num_layers=9)


def test_the_numbers_do_not_depend_on_the_format_of_the_frozen_weights_by_more_than_its_rounding(
    loaded: Loaded, picture: Image.Image, look: ImageInspection
) -> None:
    half = VisionLanguageModel.from_parts(loaded[0].vision, loaded[0].language)
    half.load_state_dict(loaded[0].state_dict())
    half.language = half.language.to(torch.bfloat16)
    try:
        found = inspect_image(half.eval(), loaded[1], picture, prompt="What is it?", max_new_tokens=6)
    finally:
        half.language.to(torch.float32)
    assert found.nearest.by_cosine.cosine.dtype == torch.float32
    torch.testing.assert_close(found.nearest.by_cosine.cosine[:, :4], look.nearest.by_cosine.cosine, atol=2e-2, rtol=0)
    assert found.attention is not None
    torch.testing.assert_close(found.attention.weights.sum(-1), torch.ones(found.attention.weights.shape[:2]))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_space_in_front_of_a_word_is_seen(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    spelled = [spell(tokenizer, token) for token in range(len(tokenizer))]
    assert all(spelled)
    assert not any("\ufffd" in text for text in spelled)
    assert any(text.startswith("␣") for text in spelled) == (not name.startswith("word list"))


def test_quantiles_are_values_that_there_are() -> None:
    values = torch.arange(101.0).flip(0)
    assert quantiles(values) == {"least": 0.0, "5 %": 5.0, "median": 50.0, "95 %": 95.0, "most": 100.0}


def test_the_page_is_one_offline_file_with_a_control_for_every_answer_token(
    look: ImageInspection, tmp_path: Path
) -> None:
    page = read_page(write_report(tmp_path / "inside.html", look, title="a <b> run"))
    assert page.one("h1").text == "a <b> run"
    assert page.addresses == []
    assert look.attention is not None
    choices = [choice["value"] for choice in page.all("input", name="token")]
    assert choices == ["all", *map(str, range(len(look.attention.token_ids)))]
    words, heat = page.json
    values = json.loads(json.dumps(look.as_json()))
    assert words == {"leading": 1, "tokens": values["image_tokens"]}
    assert heat == {"leading": 1, "tokens": values["attention"]["tokens"]}
    for name in ("words-view", "heat-view"):
        squares = page.one("div", id=name).one("div", "squares")
        assert [square["data-token"] for square in squares.all("button")] == ["1", "2", "3", "4"]
    assert len(page.charts) == 2
    tables = page.section("How often each word is the nearest").all("table")
    for table, measure in zip(tables, ("dot", "cosine"), strict=True):
        rows = [[cell.content for cell in row.all("td")] for row in table.all("tr")[1:]]
        assert rows == [[w["text"], str(w["count"]), str(w["id"])] for w in values["frequency"][measure]]


def test_the_page_of_no_prompt_has_no_answer_and_warns_of_words_that_mean_nothing(
    loaded: Loaded, picture: Image.Image, tmp_path: Path
) -> None:
    found = inspect_image(*loaded, picture)
    for random_cosine, words in ((-1.0, "are nearer to words"), (1.0, "do not read the words")):
        look = replace(found, nearest=replace(found.nearest, random_cosine=random_cosine))
        page = read_page(write_report(tmp_path / "inside.html", look, title="a run"))
        assert page.headings == ["The nearest words on the picture", "How often each word is the nearest", "Lengths"]
        assert words in page.section("The nearest words on the picture").text


def test_control_characters_are_spelled_as_the_vocabulary_writes_them() -> None:
    tokenizer = next(made for name in TOKENIZERS if "Ġ" in (made := TOKENIZERS[name]()).get_vocab())
    spelled = [spell(tokenizer, token) for token in range(len(tokenizer))]
    assert all(text.isprintable() for text in spelled)


def test_the_picture_shows_words_and_heat_beside_each_other(look: ImageInspection, tmp_path: Path) -> None:
    with Image.open(write_picture(tmp_path / "new" / "words.png", look)) as image:
        assert image.width > 2 * 640
        assert image.height > 640
        colours = image.convert("RGB").resize((64, 32)).getcolors()
    assert colours is not None
    assert len(colours) > 8
