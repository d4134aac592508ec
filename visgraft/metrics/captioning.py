"""Metrics of captions: CIDEr-D.

In: captions and, for each, the captions that people wrote. Out: `Scores`, in 0..10.
Usage: `cider(["a cat on a sofa", "two dogs"], references=[["a cat sits on a sofa"], ["two dogs run"]]).value`
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from visgraft.metrics.scores import Scores, check_pairs, mean_of

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


def cider(answers: Sequence[str], *, references: Sequence[Sequence[str]]) -> Scores:
    """Score captions by CIDEr-D, in 0..10 (Vedantam et al. 2015, arXiv:1411.5726, equations 1 to 4 and section 5.2).

    For n = 1..4, captions are vectors of n-gram counts weighted by log(samples / samples whose references hold it); the
    score is 10 times the mean, over n and references, of the clipped cosine times exp(-(length difference)^2 / 72).
    Rarity is counted in these very references, so a set of one sample scores 0 by definition.
    """
    check_pairs(answers, references)
    counted = [[_count_ngrams(reference) for reference in accepted] for accepted in references]
    num_samples_with: _Counts = Counter()
    for accepted in counted:
        num_samples_with.update({ngram for counts in accepted for ngram in counts})
    rarity = {ngram: math.log(len(references) / count) for ngram, count in num_samples_with.items()}
    unseen = math.log(len(references))

    per_sample = []
    for answer, accepted in zip(answers, counted, strict=True):
        ours = _weigh(_count_ngrams(answer), rarity=rarity, unseen=unseen)
        total = sum(_compare(ours, _weigh(counts, rarity=rarity, unseen=unseen)) for counts in accepted)
        per_sample.append(10 * total / len(accepted))
    return mean_of(per_sample)


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
