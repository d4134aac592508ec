"""Metrics of short answers: exact match, and the accuracy of the VQA challenge.

In: answers and, for each, the accepted answers. Out: `Scores`, in 0..1.
Usage: `vqa_accuracy(["2 dogs"], references=[["two dogs"] * 10]).value`
"""

import re
from collections.abc import Callable, Sequence

from visgraft.errors import ConfigError
from visgraft.metrics.scores import Scores, check_pairs, mean_of


def exact_match(answers: Sequence[str], *, references: Sequence[Sequence[str]], normalization: str = "strip") -> Scores:
    """Score the share of answers that equal one of their references, as whole strings, in 0..1.

    `normalization` is a key of `NORMALIZATIONS` and applies to both sides: "strip" (the default) drops only the white
    space around an answer, "casefold" case too, "vqa" is `normalize_vqa_answer`. Raises ConfigError for any other.
    """
    check_pairs(answers, references)
    if normalization not in NORMALIZATIONS:
        raise ConfigError(f"normalization: got {normalization!r}, need one of {', '.join(NORMALIZATIONS)}")
    normalize = NORMALIZATIONS[normalization]
    pairs = zip(answers, references, strict=True)
    return mean_of([float(normalize(got) in {normalize(accepted) for accepted in wanted}) for got, wanted in pairs])


# ---- VQA accuracy

_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBER_WORDS)}
_ARTICLES = {"a", "an", "the"}
# Only contractions whose bare form is no other word: "its", "well", "were", "ill", "shed" and the like stay.
_CONTRACTION_STEMS = {
    "n't": "ai are ca could did does do had has have is might must need ought sha should was were wo would",
    "'ve": "could might must should would i you we they who what where",
    "'s": "he she that there who what where when how why somebody someone everybody everyone something",
    "'ll": "you it they who what how that there",
    "'re": "you they there what",
    "'d": "you it they who how there",
    "'m": "i",
}
_CONTRACTIONS = {
    (stem + ending).replace("'", ""): stem + ending
    for ending, stems in _CONTRACTION_STEMS.items()
    for stem in stems.split()
} | {"oclock": "o'clock", "maam": "ma'am", "yall": "y'all"}
_PUNCTUATION = str.maketrans(dict.fromkeys(';/[]"{}()=+\\_-><@`,?!', " "))


def normalize_vqa_answer(answer: str) -> str:
    """Return the answer as the VQA challenge compares it (https://visualqa.org/evaluation.html).

    In this order: commas between digits and periods that are no decimal points go; other punctuation, but apostrophes
    and colons, becomes a space; lower case; number words up to ten become digits; articles go; contractions get the
    apostrophe they lack ("dont" is "don't").
    """
    answer = re.sub(r"(?<=\d),(?=\d)", "", answer)
    answer = re.sub(r"\.(?!\d)", "", answer.translate(_PUNCTUATION))
    words = [_NUMBERS.get(word, word) for word in answer.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(answers: Sequence[str], *, references: Sequence[Sequence[str]]) -> Scores:
    """Score answers by how many people gave them, in 0..1 (Antol et al. 2015, arXiv:1505.00468, section 4).

    A sample scores min(1, n / 3), n being the references equal to the prediction, averaged over all ways of leaving one
    reference out: an answer that 3 of 10 people gave scores 0.9. Where three others cannot agree, with fewer than four
    references, one equal reference scores 1. Both sides are always normalised by `normalize_vqa_answer`; the
    challenge's own script leaves them as they are where all ten references are the same string.
    """
    check_pairs(answers, references)
    return mean_of([_vqa_sample(got, wanted) for got, wanted in zip(answers, references, strict=True)])


def _vqa_sample(prediction: str, references: Sequence[str]) -> float:
    wanted = normalize_vqa_answer(prediction)
    equal = [normalize_vqa_answer(reference) == wanted for reference in references]
    if len(references) < 4:
        return float(any(equal))
    return sum(min(1.0, (sum(equal) - left_out) / 3) for left_out in equal) / len(equal)


NORMALIZATIONS: dict[str, Callable[[str], str]] = {
    "strip": str.strip,
    "casefold": lambda answer: answer.strip().casefold(),
    "vqa": normalize_vqa_answer,
}
