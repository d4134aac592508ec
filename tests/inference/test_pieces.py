"""The text of an answer grows by pieces that never have to be taken back, and ends in front of a stop."""

import random

import pytest

from tests.data.made_tokenizers import TOKENIZERS
from visgraft.inference.pieces import GrowingText

TEXTS = ["A cat on a sofa.", " two dogs, and  a bird \n", "naïve Wörter, 猫がいる。🙂 end", "a", "I think, two cats"]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_pieces_joined_are_the_decoded_whole_for_every_tokenizer(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        growing = GrowingText(tokenizer)
        pieces = [growing.add(token) for token in ids]
        pieces.append(growing.end())
        whole = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
        assert "".join(pieces) == growing.text == whole


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_random_tokens_are_decoded_as_their_whole_is(kind: str) -> None:
    tokenizer, draw = TOKENIZERS[kind](), random.Random(kind)
    for _ in range(20):
        ids = [draw.randrange(len(tokenizer)) for _ in range(15)]
        growing = GrowingText(tokenizer)
        pieces = [*map(growing.add, ids), growing.end()]
        whole = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
        assert "".join(pieces) == whole


def test_half_a_letter_is_not_shown() -> None:
    tokenizer = TOKENIZERS["gpt2"]()
    ids = tokenizer("猫", add_special_tokens=False)["input_ids"]
    assert len(ids) == 3
    growing = GrowingText(tokenizer)
    assert [growing.add(token) for token in ids] == ["", "", "猫"]
    cut = GrowingText(tokenizer)
    assert [cut.add(token) for token in ids[:2]] == ["", ""]
    assert cut.end() == "\ufffd"  # as the whole is decoded


@pytest.mark.parametrize(
    "stop", [["sofa"], ["a so"], [" on", "sofa"], ["t on a s", "zebra"], ["cat on a sofa and more", "fa"]]
)
def test_a_stop_is_found_across_the_borders_of_tokens_and_never_shown(stop: list[str]) -> None:
    tokenizer, text = TOKENIZERS["gpt2"](), "A cat on a sofa, two dogs"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    growing, shown = GrowingText(tokenizer, stop=stop), ""
    for token in ids:
        shown += growing.add(token)
        assert not any(each in shown for each in stop)
        if growing.is_stopped:
            break
    shown += growing.end()
    expected = text[: min(text.find(each) for each in stop if each in text)].strip()
    assert shown == growing.text == expected
    assert growing.is_stopped


def test_what_may_become_a_stop_is_held_back_until_it_cannot() -> None:
    tokenizer = TOKENIZERS["gpt2"]()
    growing = GrowingText(tokenizer, stop=["\nUser:"])
    pieces = [growing.add(token) for token in tokenizer("Yes.\nUse it", add_special_tokens=False)["input_ids"]]
    held = next(index for index, _ in enumerate(pieces) if "".join(pieces[: index + 1]) == "Yes.")
    assert "".join(pieces[: held + 2]) == "Yes."  # the line break waits, and the letters that may become User
    assert "".join([*pieces, growing.end()]) == "Yes.\nUse it"
