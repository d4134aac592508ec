"""Metrics of short answers: exact match, GQA's accuracy, ANLS and ChartQA's relaxed accuracy.

In: answers and, for each, the accepted answers. Out: `Scores`, in 0..1.
Usage: `exact_match(["a cat"], references=[["a cat", "cat"]]).value`
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from visgraft.errors import ConfigError
from visgraft.metrics.scores import Scores, check_pairs, mean_of
from visgraft.metrics.vqa import ARTICLES, NUMBERS
from visgraft.metrics.vqa_contractions import CONTRACTIONS

# ---- exact match


def exact_match(answers: Sequence[str], *, references: Sequence[Sequence[str]], normalization: str = "strip") -> Scores:
    """Score the share of answers that equal one of their references, as whole strings, in 0..1.

    `normalization` is a key of `NORMALIZATIONS` and applies to both sides: "strip" (the default) drops only the white
    space around an answer, "casefold" case too, "words" is `normalize_words`. Raises ConfigError for any other.
    """
    check_pairs(answers, references)
    if normalization not in NORMALIZATIONS:
        raise ConfigError(f"normalization: got {normalization!r}, need one of {', '.join(NORMALIZATIONS)}")
    normalize = NORMALIZATIONS[normalization]
    return _best_of(answers, references, lambda answer, accepted: float(normalize(answer) == normalize(accepted)))


_PUNCTUATION = str.maketrans(dict.fromkeys(';/[]"{}()=+\\_-><@`,?!', " "))


def normalize_words(answer: str) -> str:
    """Return an answer as visgraft compares it where case, punctuation and articles do not matter.

    In this order: commas between digits and periods that are no decimal points go; other punctuation, but apostrophes
    and colons, becomes a space; lower case; number words up to ten become digits; articles go, unless there is nothing
    else ("A" is an answer); contractions get the apostrophe they lack ("dont" is "don't").
    """
    answer = re.sub(r"(?<=\d),(?=\d)", "", answer)
    answer = re.sub(r"\.(?!\d)", "", answer.translate(_PUNCTUATION))
    words = [NUMBERS.get(word, word) for word in answer.lower().split()]
    words = [word for word in words if word not in ARTICLES] or words
    return " ".join(CONTRACTIONS.get(word, word) for word in words)


NORMALIZATIONS: dict[str, Callable[[str], str]] = {
    "strip": str.strip,
    "casefold": lambda answer: answer.strip().casefold(),
    "words": normalize_words,
}


# ---- of single data sets


def gqa(answers: Sequence[str], *, references: Sequence[Sequence[str]]) -> Scores:
    """Score the share of answers that are one of their references, in lower case and without a period, in 0..1.

    The official script compares letter for letter with answers in lower case (Hudson & Manning 2019, arXiv:1902.09506;
    eval.py of the data set); "Yes." is put in that form first, as published figures of language models are
    (LLaVA's convert_gqa_for_eval.py). Nothing else is forgiven: "a dog" is not "dog".
    """
    check_pairs(answers, references)
    return _best_of(answers, references, lambda answer, accepted: float(_in_gqa_form(answer) == _in_gqa_form(accepted)))


def _in_gqa_form(answer: str) -> str:
    return answer.strip().rstrip(".").lower()


_LEAST_SIMILARITY = 0.5  # of ANLS; itself is not enough
_MOST_CHANGE = 0.05  # of ChartQA, relative to the reference


def anls(answers: Sequence[str], *, references: Sequence[Sequence[str]]) -> Scores:
    """Score answers by their average normalised Levenshtein similarity, in 0..1 (Biten et al. 2019, arXiv:1907.00490).

    The best similarity to a reference, 1 - edits / length of the longer, in lower case and with single spaces; one
    that is not above 0.5 counts 0, as in the paper (some scripts let 0.5 itself stand). Lengths are those of the texts
    as they came, as in the script of the challenge.
    """
    check_pairs(answers, references)
    return _best_of(answers, references, _similarity)


def _similarity(answer: str, accepted: str) -> float:
    longer = max(len(answer.upper()), len(accepted.upper()))
    edits = levenshtein(_single_spaced(answer), _single_spaced(accepted))
    similarity = 1 - edits / longer if longer else 1.0
    return similarity if similarity > _LEAST_SIMILARITY else 0.0


def _single_spaced(text: str) -> str:
    return " ".join(text.lower().split())


def levenshtein(left: str, right: str) -> int:
    """Count the fewest insertions, deletions and replacements that make one text the other.

    One column of the table is two integers, bit by bit the places where it rises and falls (Myers 1999, Hyyrö 2003).
    """
    if not left:
        return len(right)
    places: dict[str, int] = {}
    for place, character in enumerate(left):
        places[character] = places.get(character, 0) | 1 << place
    everywhere, last = (1 << len(left)) - 1, 1 << (len(left) - 1)
    rises, falls, distance = everywhere, 0, len(left)
    for character in right:
        same = places.get(character, 0)
        vertical = same | falls
        horizontal = (((same & rises) + rises) ^ rises) | same
        up, down = falls | ~(horizontal | rises) & everywhere, rises & horizontal
        distance += bool(up & last) - bool(down & last)
        up, down = (up << 1 | 1) & everywhere, down << 1 & everywhere
        rises, falls = down | ~(vertical | up) & everywhere, up & vertical
    return distance


def relaxed_accuracy(answers: Sequence[str], *, references: Sequence[Sequence[str]]) -> Scores:
    """Score the share of answers within 5 % of a reference that is a number, or equal to one that is none, in 0..1.

    ChartQA (Masry et al. 2022, arXiv:2203.10244, section 5.1), as in the common scripts: "12%" is 0.12; "1,000" is no
    number; case does not matter; a reference of 0 has to be met letter for letter.
    """
    check_pairs(answers, references)
    return _best_of(answers, references, lambda answer, accepted: float(_is_about(answer, accepted)))


def _is_about(answer: str, accepted: str) -> bool:
    ours, theirs = _number(answer), _number(accepted)
    if ours is None or not theirs:
        return answer.lower() == accepted.lower()
    return abs(ours - theirs) / abs(theirs) <= _MOST_CHANGE


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def _best_of(answers: Sequence[str], references: Sequence[Sequence[str]], value: Callable[[str, str], float]) -> Scores:
    pairs = zip(answers, references, strict=True)
    return mean_of([max(value(answer, one) for one in accepted) for answer, accepted in pairs])
