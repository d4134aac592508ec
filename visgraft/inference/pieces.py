"""An answer's text as it grows: pieces that are safe to show, and the texts at which it stops.

In: tokens, one after the other. Out: pieces of text; joined, they are the whole answer without outer white space.

    text = GrowingText(tokenizer, stop=["\\nUser:"])
    for token in tokens: print(text.add(token), end="")
    print(text.end())

A piece is held back while it may still change: half a letter (some tokens are bytes), white space that may be the last,
and what may be the beginning of a stop. Only the last few tokens are decoded again, however long the answer is.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

UNFINISHED = "\ufffd"  # what bytes are decoded to that are no whole letter


class GrowingText:
    """The text of one answer.

    Attributes:
        is_stopped: a stop was found; what follows is not part of the answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, stop: Sequence[str] = ()) -> None:
        """Begin with nothing said."""
        self.is_stopped = False
        self._tokenizer = tokenizer
        self._stop = stop
        self._ids: list[int] = []
        self._first = self._read = 0  # the tokens from `first` to `read` gave the last text, those behind it none yet
        self._text = ""
        self._num_given = 0  # characters, outer white space in front among them

    @property
    def text(self) -> str:
        """What was said, without outer white space and without what follows a stop."""
        return self._text.strip()

    def add(self, token_id: int) -> str:
        """Take in a token; return what can be shown now."""
        self._ids.append(token_id)
        before, now = (self._decode(self._ids[self._first : end]) for end in (self._read, len(self._ids)))
        if now.endswith(UNFINISHED) or len(now) <= len(before):
            return ""
        self._first, self._read = self._read, len(self._ids)
        self._append(now[len(before) :])
        return self._give(held=self._num_held())

    def end(self) -> str:
        """Return what was held back, as nothing follows."""
        if not self.is_stopped:
            before, now = (self._decode(self._ids[self._first : end]) for end in (self._read, len(self._ids)))
            self._append(now[len(before) :])
        return self._give(held=0)

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode([*ids], skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _append(self, piece: str) -> None:
        """Add a piece, up to the first stop that it completes."""
        searched = max(0, len(self._text) - max(map(len, self._stop), default=0))
        self._text += piece
        found = [place for place in (self._text.find(stop, searched) for stop in self._stop) if place >= 0]
        if found:
            self._text, self.is_stopped = self._text[: min(found)], True

    def _num_held(self) -> int:
        """Count the characters at the end that may be the beginning of a stop."""
        if self.is_stopped:
            return 0
        longest = 0
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(self._text)), longest, -1):
                if self._text.endswith(stop[:length]):
                    longest = length
                    break
        return longest

    def _give(self, *, held: int) -> str:
        """Give what was not given yet, but the characters that are held and white space at either end."""
        whole = self._text[: len(self._text) - held].rstrip()
        start = max(self._num_given, len(whole) - len(whole.lstrip()))
        self._num_given = max(self._num_given, len(whole))
        return whole[start:]
