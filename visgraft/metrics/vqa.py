"""Accuracy among ten people's answers: the official VQA script, and EvalAI's variant for TextVQA and OK-VQA.

In: answers and, for each, what people answered. Out: `Scores`, in 0..1, unrounded.
Usage: `vqa_v2(["two dogs"], references=[["2 dogs"] * 9 + ["dogs"]]).value`
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from visgraft.metrics.scores import Scores, check_pairs, mean_of
from visgraft.metrics.vqa_contractions import CONTRACTIONS

_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBER_WORDS)}
ARTICLES = frozenset(["a", "an", "the"])
_SIGNS = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_ENOUGH_PEOPLE = 4  # three others, whoever is left out
_MOST_PERIODS = 32  # the script gives re.UNICODE, which is 32, where the count of replacements stands


def vqa_v2(answers: Sequence[str], *, references: Sequence[Sequence[str]]) -> Scores:
    """Score answers by how many people gave them, in 0..1: GT-Vision-Lab/VQA, PythonEvaluationTools/vqaEval.py.

    A sample scores min(1, n / 3), n being the other people who gave the answer, averaged over the people: an answer
    that 3 of 10 gave scores 0.9, 2 of 10 0.6, 1 of 10 0.3. Where all people said the same, nothing is normalised: ten
    times "yes" against "Yes" is 0. With one reference there are no others, so any answer scores 0, as there.
    """
    check_pairs(answers, references)
    return mean_of([_vqa_v2(answer, people) for answer, people in zip(answers, references, strict=True)])


def vqa_evalai(answers: Sequence[str], *, references: Sequence[Sequence[str]]) -> Scores:
    """Score answers by how many people gave them, in 0..1, as EvalAI does for TextVQA and OK-VQA.

    The rules of facebookresearch/mmf, pythia/tasks/processors.py (EvalAIAnswerProcessor): as `vqa_v2`, but both sides
    are always normalised, and before that put in lower case, without commas and question marks, and with a space
    before "'s".
    """
    check_pairs(answers, references)
    pairs = zip(map(evalai_answer, answers), references, strict=True)
    return mean_of([_agreement(answer, [evalai_answer(text) for text in people]) for answer, people in pairs])


def vqa_answer(answer: str) -> str:
    """Return an answer as the official script compares it where people differ; "A" becomes an empty string."""
    return _with_digits(_without_signs(_in_one_line(answer)))


def _vqa_v2(answer: str, people: Sequence[str]) -> float:
    said = [_in_one_line(text) for text in people]
    normalise: Callable[[str], str] = vqa_answer if len(set(said)) > 1 else _in_one_line
    return _agreement(normalise(answer), [normalise(text) for text in people])


def _agreement(answer: str, people: Sequence[str]) -> float:
    """Average min(1, n / 3) over the people, n being the others who said the same."""
    same = [text == answer for text in people]
    return sum(min(1.0, (sum(same) - is_same) / 3) for is_same in same) / len(same)


def _in_one_line(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def _without_signs(answer: str) -> str:
    """Delete every sign if a comma stands between digits, else those that touch a space; others become a space."""
    has_number = _COMMA_IN_NUMBER.search(answer) is not None
    text = answer
    for sign in _SIGNS:
        touches_space = sign + " " in answer or " " + sign in answer
        text = text.replace(sign, "" if has_number or touches_space else " ")
    return _PERIOD.sub("", text, count=_MOST_PERIODS)


def _with_digits(answer: str) -> str:
    words = [NUMBERS.get(word, word) for word in answer.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def evalai_answer(answer: str) -> str:
    """Return an answer as EvalAI compares it; "what's" becomes "what 's"."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return _with_digits(_without_signs(_in_one_line(text)))


def warn_of_people(references: Sequence[Sequence[str]]) -> str | None:
    """Say that the rules count people, where there are too few of them for a right answer to score 1; None: enough."""
    few = sum(len(people) < _ENOUGH_PEOPLE for people in references)
    if not few:
        return None
    return (
        f"{few:,} of {len(references):,} samples have fewer than {_ENOUGH_PEOPLE} references; an answer counts by how "
        "many other people gave it, up to three (with one reference always 0), so exact_match suits them better"
    )
