"""Keep control tokens out of data: what people write is text, whatever it looks like; what a template writes is meant.

In:  a tokenizer; texts of data and of users, each hidden before it goes into a template.
Out: the token ids of the filled template: its own control tokens as such, those that stand in the texts as characters.

    controls = control_tokens(tokenizer)
    controls.encode("<s>" + controls.hide("old </s> price"))       # <s>, then tokens of the characters "old </s> price"

A control token is a special token of the tokenizer (`<s>`, `<|im_end|>`). An added token that is not special
(`<think>`) is a piece of text and stays what it was. Texts that hold none are encoded by the tokenizer itself, at once.
Else a copy of it encodes them, in which every control token goes by another name, so that the characters mean nothing
to it any more. (`split_special_tokens` of transformers would split those of the template, too, and where the vocabulary
holds a piece of that name, as in SentencePiece's unigrams and word lists, the id comes out all the same.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cached_property, lru_cache
from secrets import token_hex
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from visgraft.errors import BadSampleError

# Characters that Unicode keeps for a program's own use: what is hidden stands between the first two as the codes of its
# characters, in digits of the others.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_DIGITS = {ord(digit): 0xFDD2 + number for number, digit in enumerate("0123456789abcdef.")}
_LETTERS = {own: digit for digit, own in _DIGITS.items()}
_OWN = "[\ufdd0-\ufde2]"
_STRANGE = "\U000132f9\ue123"  # that few texts have had, if any
_HIDDEN = re.compile(f"{_OPEN}([^{_CLOSE}]*){_CLOSE}")


class ControlTokens:
    """The control tokens of one tokenizer: hide them in texts, encode what was put together of hidden texts."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        # A token of one character, or of white space, is what that character is written as.
        self._ids = {
            content: token_id
            for content, token_id in _special_tokens(tokenizer)
            if len(content) > 1 and not content.isspace()
        }
        self._meant = set(self._ids.values())
        self._meant -= self._meant.intersection(plain_ids(tokenizer, _STRANGE))  # what unknown characters become
        self._found = _any_of(self._ids)
        self._within = "\0".join(["", *self._ids, ""])
        self._hides = re.compile(f"{_OWN}|{self._found.pattern}")

    def hide(self, text: str) -> str:
        """Return a text of data in which no control token can be seen, nor arise with what will stand around it."""
        first, last = self._reach(text)
        if not first and not last:
            return self._hides.sub(_hidden, text)
        if first + last >= len(text):
            return _hide(text)
        middle = self._hides.sub(_hidden, text[first : len(text) - last])
        return _hide(text[:first]) + middle + _hide(text[len(text) - last :])

    def encode(self, text: str) -> list[int]:
        """Encode a text that was put together of a template and hidden texts.

        Raises:
            BadSampleError: the tokenizer has no other way to write what looks like a control token in the data.
        """
        if not text:
            return []
        found, shown = self._found.findall(text), show(text)
        wanted = [self._ids[token] for token in found if self._ids[token] in self._meant]
        if shown is text or self._found.findall(shown) == found:
            ids = plain_ids(self._tokenizer, shown)
            if self._control_ids(ids) == wanted:
                return ids
        ids = self._encode_apart(text)
        if self._control_ids(ids) != wanted:
            raise BadSampleError("text holds what this tokenizer can only write as a control token")
        return ids

    def _control_ids(self, ids: list[int]) -> list[int]:
        return [] if self._meant.isdisjoint(ids) else [token_id for token_id in ids if token_id in self._meant]

    def _reach(self, text: str) -> tuple[int, int]:
        """Count the characters at a text's beginning and end that could complete a control token around it."""
        if not text or text in self._within:  # all of it
            return len(text), 0
        first = last = 0
        for length in range(1, len(text)):
            if text[:length] not in self._within:
                break
            first = length if text[:length] + "\0" in self._within else first
        for length in range(1, len(text)):
            if text[-length:] not in self._within:
                break
            last = length if "\0" + text[-length:] in self._within else last
        return first, last

    def _encode_apart(self, text: str) -> list[int]:
        if self._copy is None:
            return [token_id for piece in self._pieces(text) for token_id in piece]
        tokenizer, names, ids = self._copy
        named = show(self._found.sub(lambda found: names[found[0]], text))
        return [ids.get(token_id, token_id) for token_id in tokenizer.encode(named, add_special_tokens=False).ids]

    @cached_property
    def _copy(self) -> tuple[Tokenizer, dict[str, str], dict[int, int]] | None:
        """The tokenizer with control tokens of other names, these names, and {id in the copy: id}; None: a slow one."""
        if not self._tokenizer.is_fast:
            return None
        secret = token_hex(8).translate(str.maketrans("0123456789", "ghijklmnop"))  # no data can hold these names
        names = {content: f"{secret}{number:x}q" for number, content in enumerate(self._ids)}
        values: dict[str, Any] = json.loads(self._tokenizer.backend_tokenizer.to_str())
        values.update(truncation=None, padding=None, post_processor=None)
        _rename(values["model"], names)
        originals = {}
        for token in values["added_tokens"]:
            content = token["content"]
            token.update(content=names.get(content, content), single_word=token["single_word"] and content not in names)
            originals[token["content"]] = token["id"]
        copy = Tokenizer.from_str(json.dumps(values))
        ids = {number: originals[content] for content, number in copy.get_vocab().items() if content in originals}
        return copy, names, ids

    def _pieces(self, text: str) -> Iterator[list[int]]:
        """Encode a text piece by piece with a tokenizer that is written in Python."""
        kept = {token.content: token_id for token_id, token in self._tokenizer.added_tokens_decoder.items()}
        added = {content: token_id for content, token_id in kept.items() if content not in self._ids}
        place = 0
        for found in self._found.finditer(text):
            yield from self._split(show(text[place : found.start()]), added)
            yield [self._ids[found[0]]]
            place = found.end()
        yield from self._split(show(text[place:]), added)

    def _split(self, text: str, added: dict[str, int]) -> Iterator[list[int]]:
        place = 0
        for found in _any_of(added).finditer(text):
            yield plain_ids(self._tokenizer, text[place : found.start()], split_special_tokens=True)
            yield [added[found[0]]]
            place = found.end()
        yield plain_ids(self._tokenizer, text[place:], split_special_tokens=True)


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> ControlTokens:
    """Return the control tokens of a tokenizer as they are now."""
    return _known(tokenizer, len(tokenizer), str(tokenizer.special_tokens_map))


def encode_data(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the token ids of a text of data alone, in which nothing is a control token; raises BadSampleError."""
    controls = control_tokens(tokenizer)
    return controls.encode(controls.hide(text))


@lru_cache(maxsize=16)
def _known(tokenizer: PreTrainedTokenizerBase, size: int, named: str) -> ControlTokens:
    return ControlTokens(tokenizer)


def show(text: str) -> str:
    """Return a text with what was hidden in it as it was."""
    return _HIDDEN.sub(_shown, text) if _OPEN in text else text


def _hide(text: str) -> str:
    codes = ".".join(f"{ord(character):x}" for character in text)
    return f"{_OPEN}{codes.translate(_DIGITS)}{_CLOSE}" if text else ""


def _hidden(found: re.Match[str]) -> str:
    return _hide(found[0])


def _shown(found: re.Match[str]) -> str:
    return "".join(chr(int(code, 16)) for code in found[1].translate(_LETTERS).split("."))


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, int]]:
    for number, token in tokenizer.added_tokens_decoder.items():
        if token.special:
            yield token.content, int(number)
    for content in tokenizer.all_special_tokens:
        token_id: Any = tokenizer.convert_tokens_to_ids(content)
        if token_id is not None and (token_id != tokenizer.unk_token_id or content == tokenizer.unk_token):
            yield content, token_id


def _any_of(texts: Any) -> re.Pattern[str]:
    """Return what finds any of some texts, the longest at a place."""
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def plain_ids(tokenizer: PreTrainedTokenizerBase, text: str, **settings: Any) -> list[int]:
    """Return what a tokenizer makes of a text alone, control tokens and all."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False, **settings)["input_ids"]) if text else []


def _rename(model: dict[str, Any], names: dict[str, str]) -> None:
    """Give pieces of a vocabulary other names; what would put one together is removed."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):  # of a unigram model: [piece, score]
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocabulary]
        return
    model["vocab"] = {names.get(piece, piece): token_id for piece, token_id in vocabulary.items()}
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if any(content in vocabulary for content in names) and "merges" in model:
        merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        model["merges"] = [
            [left, right] for left, right in merges if names.keys().isdisjoint((left, right, left + right))
        ]
