"""Metrics of answers that are one of few: yes or no, or the letter of a choice.

In: answers and, for each, what is right. Out: `Scores`, in 0..1.
Usage: `yes_no(["Yes, it is."], references=[["yes"]])["yes_no_f1"].value`
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from visgraft.errors import DataError
from visgraft.metrics.scores import Scores, check_pairs, divide, mean_of, ratio_of, scores_of


def yes_no(
    answers: Sequence[str], *, references: Sequence[Sequence[str]], language: str | None = None
) -> dict[str, Scores]:
    """Score answers to questions of yes or no, five numbers in 0..1, as POPE reports them (Li et al. 2023).

    The first word of an answer decides, in lower case and without punctuation; any other is wrong and no yes. "Yes" is
    the positive class of precision, recall and F1; `yes_no_yes_ratio` is the share of answers that say yes. A ratio
    with nothing below its line is 0. Raises DataError where the references of a sample are not all yes or all no.
    """
    check_pairs(answers, references)
    said = np.array([first_word(answer) for answer in answers])
    right = np.array(yes_or_no(references))
    says_yes, is_yes = (said == "yes").astype(np.float64), (right == "yes").astype(np.float64)
    both = says_yes * is_yes
    return {
        "yes_no_accuracy": mean_of((said == right).astype(np.float64)),
        "yes_no_precision": ratio_of(both, says_yes),
        "yes_no_recall": ratio_of(both, is_yes),
        "yes_no_f1": scores_of(np.stack([2 * both, says_yes + is_yes], axis=-1), combine=divide),
        "yes_no_yes_ratio": mean_of(says_yes),
    }


def first_word(answer: str) -> str:
    """Return the first word of an answer, in lower case and without punctuation; "" if there is none."""
    words = ("".join(character for character in word if _is_no_punctuation(character)) for word in answer.split())
    return next((word.lower() for word in words if word), "")


def _is_no_punctuation(character: str) -> bool:
    return unicodedata.category(character)[0] not in "PS"


def yes_or_no(references: Sequence[Sequence[str]]) -> list[str]:
    """Say of each sample whether yes or no is right; raises DataError where its references are not all one of them."""
    right = []
    for index, accepted in enumerate(references):
        words = {first_word(text) for text in accepted}
        if words not in ({"yes"}, {"no"}):
            raise DataError(
                f"yes_no: got the references {', '.join(map(repr, sorted(set(accepted))))} for sample {index}, "
                "need yes, or no"
            )
        right.append(words.pop())
    return right


_LETTER = re.compile(
    r"""\W*(?:(?:the\ )?(?:correct\ |right\ |best\ )?(?:answer|option|choice)(?:\ is)?\b\W*(?:option\b\W*)?)?
    ([a-z])(?![a-z0-9_'\u2019\u00c0-\u024f])""",
    re.IGNORECASE | re.VERBOSE,
)


def choice(answers: Sequence[str], *, references: Sequence[Sequence[str]]) -> Scores:
    """Score the share of answers that name the letter of the right choice, in 0..1.

    An answer names the letter that it begins with, as in "B", "b.", "(B)", "B: a cat", "Option B" or "The answer is
    B"; a word that only begins with the letter is none ("Because"). Raises DataError for a reference without a letter.
    """
    check_pairs(answers, references)
    letters = right_letters(references)
    named = [choice_letter(answer) for answer in answers]
    return mean_of([float(letter in right) for letter, right in zip(named, letters, strict=True)])


def right_letters(references: Sequence[Sequence[str]]) -> list[list[str]]:
    """List the letters that are right for each sample; raises DataError for a reference without one."""
    letters = [[choice_letter(text) for text in accepted] for accepted in references]
    without = [index for index, named in enumerate(letters) if "" in named]
    if without:
        index = without[0]
        raise DataError(
            f"choice: got the references {', '.join(map(repr, references[index]))} for sample {index}, need the letter "
            "of the right choice, as in 'B'"
        )
    return letters


def choice_letter(answer: str) -> str:
    """Return the letter that an answer names, as a capital; "" if it names none."""
    match = _LETTER.match(answer)
    return match[1].upper() if match else ""
