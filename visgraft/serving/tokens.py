"""Tokens as clients are told of them: text and bytes of each, with its log-probability, beside the text they make up.

In: a tokenizer, what the loop says of tokens. Out: OpenAI's `logprobs.content`, those of the answer's text alone.

    told = TokenNames(tokenizer)
    said = SaidTokens(told)
    said.take(reply.scores, text_length=len(text), is_end=True)      # a list of dicts, the new ones
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from visgraft.inference.sampling import TokenScore

_NONE = -9999.0  # what OpenAI says of a token that cannot come
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenNames:
    """The bytes that each token of a vocabulary adds to a text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Look at how its tokens become text."""
        self._tokenizer = tokenizer
        self._silent = frozenset(tokenizer.all_special_ids)  # left out of every answer's text
        self._literal = {token_id: str(token) for token_id, token in tokenizer.added_tokens_decoder.items()}
        backend = getattr(tokenizer, "backend_tokenizer", None)
        decoder = str(json.loads(backend.to_str())["decoder"]) if backend is not None else ""
        self._is_bytes = "ByteLevel" in decoder
        self._is_pieces = "ByteFallback" in decoder or "Metaspace" in decoder or "▁" in decoder
        self._byte_of = {letter: byte for byte, letter in enumerate(_letters_of_bytes())}

    def bytes_of(self, token_id: int) -> bytes:
        """Return what a token adds to a text; a special token adds nothing."""
        if token_id in self._silent:
            return b""
        if token_id in self._literal:
            return self._literal[token_id].encode()
        piece = self._tokenizer.convert_ids_to_tokens(token_id)
        if not isinstance(piece, str):  # the head may have more rows than the vocabulary has tokens
            return b""
        if self._is_bytes:
            return bytes(self._byte_of[letter] for letter in piece if letter in self._byte_of)
        if self._is_pieces:
            byte = _BYTE.fullmatch(piece)
            return bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode()
        once, twice = (str(self._tokenizer.decode([token_id] * number)) for number in (1, 2))
        return twice[len(once) :].encode()  # behind another token: words then have the blank between them

    def told(self, token_id: int, log_probability: float) -> dict[str, Any]:
        """Tell of a token; its text is written `bytes:\\xe2...` where it is no whole letter."""
        data = self.bytes_of(token_id)
        if token_id in self._silent:
            text = str(self._tokenizer.convert_ids_to_tokens(token_id))
            data = text.encode()
        else:
            try:
                text = data.decode()
            except UnicodeDecodeError:
                text = "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
        logprob = log_probability if math.isfinite(log_probability) else _NONE
        return {"token": text, "logprob": logprob, "bytes": [*data]}


class SaidTokens:
    """The tokens of one answer as they come, told of once the text that they belong to is."""

    def __init__(self, names: TokenNames) -> None:
        """Begin with none."""
        self._names = names
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._places: list[tuple[int, int]] = []  # of each token in the text without white space in front
        self._num_letters = 0
        self._num_told = 0

    def take(self, scores: Sequence[TokenScore], *, text_length: int, is_end: bool) -> list[dict[str, Any]]:
        """Tell of the tokens that were not told of and belong to the text that was.

        Args:
            scores: of all tokens so far.
            text_length: letters of the text that were told.
            is_end: no more text comes; a token of which only the beginning is part of the text is told of, too.
        """
        for score in scores[len(self._places) :]:
            piece = self._decoder.decode(self._names.bytes_of(score.token_id))
            piece = piece if self._num_letters else piece.lstrip()
            self._places.append((self._num_letters, self._num_letters + len(piece)))
            self._num_letters += len(piece)
        told = []
        while self._num_told < len(self._places):
            start, end = self._places[self._num_told]
            if not (start < text_length if is_end else end <= text_length):
                break
            told.append(self._told(scores[self._num_told]))
            self._num_told += 1
        return told

    def _told(self, score: TokenScore) -> dict[str, Any]:
        likeliest = [self._names.told(token_id, value) for token_id, value in score.alternatives]
        return {**self._names.told(score.token_id, score.log_probability), "top_logprobs": likeliest}


def _letters_of_bytes() -> list[str]:
    """List the letter by which byte-level vocabularies write each byte (Radford et al. 2019, GPT-2's encoder.py)."""
    shown = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    hidden = iter(range(256, 512))
    return [chr(byte) if byte in shown else chr(next(hidden)) for byte in range(256)]
