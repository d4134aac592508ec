"""The accuracy of the VQA challenge, exactly as its own script computes it.

In: answers and, for each, the answers of ten people. Out: `Scores`, in 0..1.
Usage: `vqa_v2(["2 dogs"], references=[["two dogs"] * 3 + ["dogs"] * 7]).value`

Its special cases are part of the number: answers are left as they are where all people gave the same one; an article
alone is an empty answer, and equals any other; of ten people who agree with an answer three are enough.
"""

import re
from collections.abc import Sequence

from visgraft.metrics.scores import Scores, check_pairs, mean_of

_ENOUGH = 3  # equal answers of others that make an answer right
_MOST_PERIODS = 32  # that are taken out of one text (the script gives a flag in the place of a count)
_SIGNS = ';/[]"{}()=+\\_-><@`,?!'
_DIGITS_WITH_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5"}
_NUMBERS |= {"six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"}
_ARTICLES = ("a", "an", "the")

# Without their apostrophe words are taken for these; with a capital never, as by then all is in lower case.
_ONE_APOSTROPHE = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's I'm I've
isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't
somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's they'd
they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd
who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
"""
# Of two apostrophes either may be missing, not both.
_TWO_APOSTROPHES = """
couldn't've hadn't've he'd've I'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've
something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll you'd've
"""
_CONTRACTIONS = {word.replace("'", ""): word for word in _ONE_APOSTROPHE.split()}
for _word in _TWO_APOSTROPHES.split():
    _first, _second, _third = _word.split("'")
    _CONTRACTIONS |= {f"{_first}{_second}'{_third}": _word, f"{_first}'{_second}{_third}": _word}
_CONTRACTIONS |= dict.fromkeys(("ow's'at", "'ows'at", "'ow'sat"), "'ow's'at")
_CONTRACTIONS |= dict.fromkeys(("yall'd've", "y'alld've", "y'all'dve"), "y'all'd've")
_CONTRACTIONS |= {"let's": "let's", "she's": "she's", "somebody'd": "somebodyd"}


def vqa_v2(predictions: Sequence[str], *, references: Sequence[Sequence[str]]) -> Scores:
    """Score answers by how many people gave them, in 0..1 (Antol et al. 2015, arXiv:1505.00468, and its own script).

    Each reference is left out once; a sample scores the mean of min(1, equal ones among the others / 3): an answer that
    3 of 10 people gave scores 0.9. With fewer than four references no answer can score 1, and with one it scores 0.
    """
    check_pairs(predictions, references)
    return mean_of([_score(got, wanted) for got, wanted in zip(predictions, references, strict=True)])


def _score(prediction: str, references: Sequence[str]) -> float:
    answer, *others = (_one_line(text) for text in (prediction, *references))
    if len(set(others)) > 1:
        answer, *others = (_normalize(text) for text in (answer, *others))
    equal = [other == answer for other in others]
    return sum(min(1.0, (sum(equal) - left_out) / _ENOUGH) for left_out in equal) / len(equal)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _normalize(text: str) -> str:
    """Take out signs and articles, write number words as digits, and give contractions the apostrophe they lack."""
    has_comma = _DIGITS_WITH_COMMA.search(text) is not None
    plain = text
    for sign in _SIGNS:
        is_deleted = has_comma or f"{sign} " in text or f" {sign}" in text
        plain = plain.replace(sign, "" if is_deleted else " ")
    plain = _PERIOD.sub("", plain, count=_MOST_PERIODS)
    words = [_NUMBERS.get(word, word) for word in plain.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
