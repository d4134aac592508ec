"""What is wrong with answers before one asks whether they are right: repetition, few words, no end.

In: answers, and whether each stopped by itself. Out: four numbers that need no truth.
Usage: `text_quality_of(["a cat a cat a cat a cat"], stopped=[False]).repeated_4grams`
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

NGRAM_SIZE = 4  # words


@dataclass(frozen=True)
class TextQuality:
    """How a model answers, over a number of answers.

    Attributes:
        num_answers: answers looked at.
        mean_words: words of an answer, on average.
        repeated_4grams: share of the runs of four words that had come before in their answer; 0 where all are shorter.
        distinct_words: different words, over all the answers, by the number of words; 0 where there are none.
        never_stopped: share of the answers that were cut because they did not end; None where it was not recorded.
    """

    num_answers: int
    mean_words: float
    repeated_4grams: float
    distinct_words: float
    never_stopped: float | None


def text_quality_of(answers: Sequence[str], *, stopped: Sequence[bool | None]) -> TextQuality:
    """Measure some answers; `stopped` says of each whether it ended by itself, None = not known.

    Words are compared in lower case and without punctuation; each character is a word in scripts that set no spaces
    (Chinese, Japanese, Thai).
    """
    split = [words_of(answer) for answer in answers]
    num_grams = num_new = 0
    for words in split:
        grams = [tuple(words[start : start + NGRAM_SIZE]) for start in range(len(words) - NGRAM_SIZE + 1)]
        num_grams += len(grams)
        num_new += len(set(grams))
    num_words = sum(map(len, split))
    known = [has_stopped for has_stopped in stopped if has_stopped is not None]
    return TextQuality(
        num_answers=len(split),
        mean_words=num_words / max(1, len(split)),
        repeated_4grams=1 - num_new / num_grams if num_grams else 0.0,
        distinct_words=len({word for words in split for word in words}) / max(1, num_words),
        never_stopped=1 - sum(known) / len(known) if known else None,
    )


_WITHOUT_SPACES = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"[{_WITHOUT_SPACES}]|[^\W{_WITHOUT_SPACES}]+(?:['\u2019.,-][^\W{_WITHOUT_SPACES}]+)*")


def words_of(text: str) -> list[str]:
    """Split a text into its words."""
    return _WORD.findall(text.lower())
