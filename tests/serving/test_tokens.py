"""The bytes of tokens make up the text that their tokenizer decodes, whatever kind it is of."""

import pytest

from tests.data.made_tokenizers import TOKENIZERS
from visgraft.inference.sampling import TokenScore
from visgraft.serving.tokens import SaidTokens, TokenNames

TEXT = "A grey cat, 2 dogs & é · 日本 🙂."


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_bytes_of_tokens_are_the_text(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    names = TokenNames(tokenizer)
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    decoded = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    joined = b"".join(map(names.bytes_of, ids)).decode(errors="replace")
    assert joined.strip() == decoded.strip()
    assert all(names.bytes_of(token_id) == b"" for token_id in tokenizer.all_special_ids)
    assert names.bytes_of(10**6) == b""
    assert names.told(ids[0], float("-inf"))["logprob"] == -9999.0


def test_half_a_letter_is_told_with_the_other_half() -> None:
    tokenizer = TOKENIZERS["opt, llama 3"]()
    ids = tokenizer("a 🙂 b", add_special_tokens=False)["input_ids"]
    said = SaidTokens(TokenNames(tokenizer))
    scores = [TokenScore(token_id, -1.0) for token_id in ids]
    text = "a 🙂 b"
    told = [said.take(scores[: number + 1], text_length=0, is_end=False) for number in range(2)]
    assert told == [[], []]
    first = said.take(scores, text_length=len("a 🙂"), is_end=False)
    rest = said.take(scores, text_length=len(text), is_end=True)
    assert b"".join(bytes(token["bytes"]) for token in [*first, *rest]).decode().strip() == text
    assert [token["token"] for token in first if token["token"].startswith("bytes:")]
    assert said.take(scores, text_length=len(text), is_end=True) == []
