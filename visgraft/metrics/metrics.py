"""Metrics: generated answers and accepted answers in, floats out.

In: `predictions`, one string a sample, and `references`, all accepted answers of each sample. Out: `Scores`, the value
of the whole set and of each sample. A new metric is a function here and a row in `METRICS`.
Usage: `METRICS["vqa_accuracy"](["2 dogs"], references=[["two dogs"] * 10]).value`
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from visgraft.errors import ConfigError, DataError


@dataclass(frozen=True)
class Scores:
    """A metric's value for a set of samples, and each sample's own."""

    value: float
    per_sample: tuple[float, ...]


class Metric(Protocol):
    """What every row of `METRICS` is; raises DataError if a sample has no reference or the lengths differ."""

    def __call__(self, predictions: Sequence[str], *, references: Sequence[Sequence[str]]) -> Scores:
        """Score the predictions; references[i] are the accepted answers of predictions[i]."""
        ...


def _check(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if len(predictions) != len(references):
        raise DataError(f"got {len(predictions)} predictions and {len(references)} lists of references, need as many")
    if not predictions:
        raise DataError("got no predictions, need at least one to score")
    without = [index for index, accepted in enumerate(references) if not accepted]
    if without:
        raise DataError(f"got no reference for sample {without[0]} ({len(without)} in all), need at least one each")


def _mean(per_sample: Sequence[float]) -> Scores:
    return Scores(value=sum(per_sample) / len(per_sample), per_sample=tuple(per_sample))


# ---- exact match


def exact_match(
    predictions: Sequence[str], *, references: Sequence[Sequence[str]], normalization: str = "strip"
) -> Scores:
    """Score the share of predictions that equal one of their references, as whole strings, in 0..1.

    `normalization` is a key of `NORMALIZATIONS` and applies to both sides: "strip" (the default) drops only the white
    space around an answer, "casefold" case too, "vqa" is `normalize_vqa_answer`. Raises ConfigError for any other.
    """
    _check(predictions, references)
    if normalization not in NORMALIZATIONS:
        raise ConfigError(f"normalization: got {normalization!r}, need one of {', '.join(NORMALIZATIONS)}")
    normalize = NORMALIZATIONS[normalization]
    pairs = zip(predictions, references, strict=True)
    return _mean([float(normalize(got) in {normalize(accepted) for accepted in wanted}) for got, wanted in pairs])


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


def vqa_accuracy(predictions: Sequence[str], *, references: Sequence[Sequence[str]]) -> Scores:
    """Score answers by how many people gave them, in 0..1 (Antol et al. 2015, arXiv:1505.00468, section 4).

    A sample scores min(1, n / 3), n being the references equal to the prediction, averaged over all ways of leaving one
    reference out: an answer that 3 of 10 people gave scores 0.9. Where three others cannot agree, with fewer than four
    references, one equal reference scores 1. Both sides are always normalised by `normalize_vqa_answer`; the
    challenge's own script leaves them as they are where all ten references are the same string.
    """
    _check(predictions, references)
    return _mean([_vqa_sample(got, wanted) for got, wanted in zip(predictions, references, strict=True)])


def _vqa_sample(prediction: str, references: Sequence[str]) -> float:
    wanted = normalize_vqa_answer(prediction)
    equal = [normalize_vqa_answer(reference) == wanted for reference in references]
    if len(references) < 4:
        return float(any(equal))
    return sum(min(1.0, (sum(equal) - left_out) / 3) for left_out in equal) / len(equal)


# ---- CIDEr-D

_Counts = Counter[tuple[str, ...]]
_MAX_WORDS = 4  # n-grams of 1 to 4 words
_LENGTH_SIGMA = 6.0  # of the penalty for another length


@dataclass(frozen=True)
class _Vectors:
    """A caption's weighted n-grams: for each n, its vector and the vector's norm."""

    weights: tuple[dict[tuple[str, ...], float], ...]
    norms: tuple[float, ...]
    num_word_pairs: int


def tokenize_caption(caption: str) -> list[str]:
    """Return the lower-case words of a caption without punctuation.

    "n't", "'s" and the like are words of their own, as in the Penn Treebank; inside a word a hyphen, a period or a
    comma stays ("well-lit", "3.5"). The COCO server's tokenizer, a Java program, differs from this in rare cases only.
    """
    spaced = re.sub(r"(n't|'(?:s|m|d|re|ve|ll))\b", r" \1", caption.lower().replace("\u2019", "'"))
    return re.findall(r"n't\b|'\w+|\w+(?:[-.,]\w+)*", spaced)


def cider(predictions: Sequence[str], *, references: Sequence[Sequence[str]]) -> Scores:
    """Score captions by CIDEr-D, in 0..10 (Vedantam et al. 2015, arXiv:1411.5726, equations 1 to 4 and section 5.2).

    For n = 1..4, captions are vectors of n-gram counts weighted by log(samples / samples whose references hold it); the
    score is 10 times the mean, over n and references, of the clipped cosine times exp(-(length difference)^2 / 72).
    Rarity is counted in these very references, so a set of one sample scores 0 by definition.
    """
    _check(predictions, references)
    counted = [[_count_ngrams(reference) for reference in accepted] for accepted in references]
    num_samples_with: _Counts = Counter()
    for accepted in counted:
        num_samples_with.update({ngram for counts in accepted for ngram in counts})
    rarity = {ngram: math.log(len(references) / count) for ngram, count in num_samples_with.items()}
    unseen = math.log(len(references))

    per_sample = []
    for prediction, accepted in zip(predictions, counted, strict=True):
        ours = _weigh(_count_ngrams(prediction), rarity=rarity, unseen=unseen)
        total = sum(_compare(ours, _weigh(counts, rarity=rarity, unseen=unseen)) for counts in accepted)
        per_sample.append(10 * total / len(accepted))
    return _mean(per_sample)


def _count_ngrams(caption: str) -> _Counts:
    words = tokenize_caption(caption)
    spans = [(start, start + size) for size in range(1, _MAX_WORDS + 1) for start in range(len(words) - size + 1)]
    return Counter(tuple(words[start:stop]) for start, stop in spans)


def _weigh(counts: _Counts, *, rarity: dict[tuple[str, ...], float], unseen: float) -> _Vectors:
    weights: tuple[dict[tuple[str, ...], float], ...] = tuple({} for _ in range(_MAX_WORDS))
    for ngram, count in counts.items():
        weights[len(ngram) - 1][ngram] = count * rarity.get(ngram, unseen)
    norms = tuple(math.sqrt(sum(weight**2 for weight in vector.values())) for vector in weights)
    return _Vectors(weights, norms, sum(count for ngram, count in counts.items() if len(ngram) == 2))


def _compare(ours: _Vectors, theirs: _Vectors) -> float:
    """Return the mean over n of the cosine, each of our weights clipped to theirs, times the penalty for length.

    Lengths are compared in word pairs, as the authors' program does. A vector of norm 0 is like no other.
    """
    total = 0.0
    for size in range(_MAX_WORDS):
        left, right = ours.weights[size], theirs.weights[size]
        norms = ours.norms[size] * theirs.norms[size]
        if norms > 0:
            total += sum(min(left[ngram], right[ngram]) * right[ngram] for ngram in left if ngram in right) / norms
    difference = ours.num_word_pairs - theirs.num_word_pairs
    return total / _MAX_WORDS * math.exp(-(difference**2) / (2 * _LENGTH_SIGMA**2))


NORMALIZATIONS: dict[str, Callable[[str], str]] = {
    "strip": str.strip,
    "casefold": lambda answer: answer.strip().casefold(),
    "vqa": normalize_vqa_answer,
}
METRICS: dict[str, Metric] = {
    "exact_match": exact_match,
    "vqa_accuracy": vqa_accuracy,
    "cider": cider,
}
