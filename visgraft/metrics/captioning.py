"""Metrics of captions: BLEU, ROUGE-L, CIDEr-D, each equal to what COCO's program gives.

In: captions and, for each, the captions that people wrote. Out: `Scores`, in 0..1, those of CIDEr-D in 0..10.
Usage: `cider(["a cat on a sofa", "two dogs"], references=[["a cat sits on a sofa"], ["two dogs run"]]).value`
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from visgraft.metrics.languages import check_language, words_for_scores
from visgraft.metrics.scores import Scores, check_pairs, mean_of, scores_of

_MAX_WORDS = 4  # n-grams of 1 to 4 words
_Words = Sequence[str]
_Counts = Counter[tuple[str, ...]]
_Split = tuple[list[_Words], list[list[_Words]]]

# ---- BLEU

_TINY, _SMALL = 1e-15, 1e-9  # of the program, so that nothing is divided by 0


def bleu(
    answers: Sequence[str], *, references: Sequence[Sequence[str]], language: str | None = None
) -> dict[str, Scores]:
    """Score captions by BLEU-1 to BLEU-4, in 0..1 (Papineni et al. 2002; pycocoevalcap's `BleuScorer`, "closest").

    Clipped matches, guesses and lengths are added up over the set; each caption's own value comes from its own counts.
    The length of the references is the one closest to the caption's, of two the shorter. An empty caption scores 0.
    """
    captions, accepted = _split(answers, references, language)
    sums = np.stack([_bleu_counts(*pair) for pair in zip(_at_any_space(captions), accepted, strict=True)])
    return {f"bleu_{size}": scores_of(sums, combine=_combine_bleu(size)) for size in range(1, _MAX_WORDS + 1)}


def _bleu_counts(words: _Words, accepted: list[_Words]) -> NDArray[np.float64]:
    """Count [10]: matches and guesses by size of the n-gram, the caption's length and its references'."""
    accepted = _at_any_space(accepted)
    most: _Counts = Counter()
    for reference in accepted:
        most |= _count_ngrams(reference)
    matches = [0] * _MAX_WORDS
    for ngram, count in _count_ngrams(words).items():
        matches[len(ngram) - 1] += min(count, most[ngram])
    guesses = [max(0, len(words) - size) for size in range(_MAX_WORDS)]
    closest = min((abs(len(reference) - len(words)), len(reference)) for reference in accepted)[1]
    return np.array([*matches, *guesses, len(words), closest], dtype=np.float64)


def _combine_bleu(size: int) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    def combine(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        matches, guesses = sums[..., :size], sums[..., _MAX_WORDS : _MAX_WORDS + size]
        precision = np.prod((matches + _TINY) / (guesses + _SMALL), axis=-1) ** (1 / size)
        ratio = (sums[..., -2] + _TINY) / (sums[..., -1] + _SMALL)
        return precision * np.exp(np.minimum(0.0, 1 - 1 / ratio))

    return combine


# ---- ROUGE-L

_BETA = 1.2


def rouge_l(answers: Sequence[str], *, references: Sequence[Sequence[str]], language: str | None = None) -> Scores:
    """Score captions by ROUGE-L, in 0..1 (Lin 2004; pycocoevalcap's `Rouge`), the mean over captions.

    The longest common subsequence as a share of the caption and of the reference, combined with beta 1.2; the best of
    the one and the best of the other may come from different references. An empty text counts as one empty word.
    """
    captions, accepted = _split(answers, references, language)
    pairs = zip(captions, accepted, strict=True)
    return mean_of([_rouge([*words] or [""], [[*one] or [""] for one in theirs]) for words, theirs in pairs])


def _rouge(words: _Words, accepted: list[_Words]) -> float:
    common = [_longest_common_subsequence(words, reference) for reference in accepted]
    precision = max(length / len(words) for length in common)
    recall = max(length / len(reference) for length, reference in zip(common, accepted, strict=True))
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _longest_common_subsequence(left: _Words, right: _Words) -> int:
    """Find its length with the bits of one integer as the row of the table (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for place, word in enumerate(left):
        places[word] = places.get(word, 0) | 1 << place
    everywhere = row = (1 << len(left)) - 1
    for word in right:
        matched = row & places.get(word, 0)
        row = (row + matched) | (row - matched)
    return len(left) - (row & everywhere).bit_count()


# ---- CIDEr-D

_LENGTH_SIGMA = 6.0  # of the penalty for another length


@dataclass(frozen=True)
class _Vectors:
    """A caption's weighted n-grams: for each n, its vector and the vector's norm."""

    weights: tuple[dict[tuple[str, ...], float], ...]
    norms: tuple[float, ...]
    num_word_pairs: int


def cider(answers: Sequence[str], *, references: Sequence[Sequence[str]], language: str | None = None) -> Scores:
    """Score captions by CIDEr-D, in 0..10 (Vedantam et al. 2015, arXiv:1411.5726; pycocoevalcap's `CiderScorer`).

    For n = 1..4, captions are vectors of n-gram counts weighted by log(samples / samples whose references hold it); the
    score is 10 times the mean, over n and references, of the clipped cosine times exp(-(length difference)^2 / 72).
    Lengths are counted in word pairs, the same reference twice counts twice. Rarity is counted in these very
    references, so a set of one sample scores 0 by definition.
    """
    captions, accepted = _split(answers, references, language)
    counted = [[_count_ngrams(words) for words in _at_any_space(theirs)] for theirs in accepted]
    num_samples_with: _Counts = Counter()
    for theirs in counted:
        num_samples_with.update({ngram for counts in theirs for ngram in counts})
    unseen = math.log(len(references))
    rarity = {ngram: unseen - math.log(count) for ngram, count in num_samples_with.items()}

    per_sample = []
    for words, theirs in zip(_at_any_space(captions), counted, strict=True):
        ours = _weigh(_count_ngrams(words), rarity=rarity, unseen=unseen)
        total = sum(_compare(ours, _weigh(counts, rarity=rarity, unseen=unseen)) for counts in theirs)
        per_sample.append(10 * total / len(theirs))
    return mean_of(per_sample)


def _weigh(counts: _Counts, *, rarity: dict[tuple[str, ...], float], unseen: float) -> _Vectors:
    weights: tuple[dict[tuple[str, ...], float], ...] = tuple({} for _ in range(_MAX_WORDS))
    for ngram, count in counts.items():
        weights[len(ngram) - 1][ngram] = count * rarity.get(ngram, unseen)
    norms = tuple(math.sqrt(sum(weight**2 for weight in vector.values())) for vector in weights)
    return _Vectors(weights, norms, sum(count for ngram, count in counts.items() if len(ngram) == 2))


def _compare(ours: _Vectors, theirs: _Vectors) -> float:
    """Return the mean over n of the cosine, each of our weights clipped to theirs, times the penalty for length.

    A vector of norm 0 is like no other.
    """
    total = 0.0
    for size in range(_MAX_WORDS):
        left, right = ours.weights[size], theirs.weights[size]
        norms = ours.norms[size] * theirs.norms[size]
        if norms > 0:
            total += sum(min(left[ngram], right[ngram]) * right[ngram] for ngram in left if ngram in right) / norms
    difference = ours.num_word_pairs - theirs.num_word_pairs
    return total / _MAX_WORDS * math.exp(-(difference**2) / (2 * _LENGTH_SIGMA**2))


# ---- words


def _split(answers: Sequence[str], references: Sequence[Sequence[str]], language: str | None) -> _Split:
    check_pairs(answers, references)
    check_language(language)
    accepted: list[list[_Words]] = [
        [words_for_scores(text, language=language) for text in texts] for texts in references
    ]
    return [words_for_scores(text, language=language) for text in answers], accepted


def _at_any_space(captions: list[_Words]) -> list[_Words]:
    """Split the tokens that hold a no-break space ("2 1/2"): BLEU and CIDEr do, ROUGE does not."""
    return [" ".join(words).split() for words in captions]


def _count_ngrams(words: _Words) -> _Counts:
    spans = [(start, start + size) for size in range(1, _MAX_WORDS + 1) for start in range(len(words) - size + 1)]
    return Counter(tuple(words[start:stop]) for start, stop in spans)
