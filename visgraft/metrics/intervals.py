"""How sure a score is: intervals by images, comparisons by images, and how many images a difference takes.

Questions about one image fall together, so what is drawn again and again is images, each with all its questions:
drawing questions would make every interval too narrow.

In: `Scores`, and of each sample the image it is about. Out: 95 % intervals and p-values.
Usage: `bootstrap(scores, images=["a.png", "a.png", "b.png"])`
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from visgraft.errors import DataError
from visgraft.metrics.scores import Scores

DRAWS = 2_000
SURE = 0.95
_CHUNK_BYTES = 64 << 20  # of the counts drawn at once


@dataclass(frozen=True)
class Interval:
    """A score with its 95 % interval; `low` and `high` are None with a single image, of which nothing can be said."""

    value: float
    low: float | None
    high: float | None
    n: int
    images: int


@dataclass(frozen=True)
class Difference:
    """What another model scores more than the first, on the same images.

    Attributes:
        value: other minus first.
        low, high: its 95 % interval; None with a single image.
        p: how often a difference of this size, or a larger one, is seen between equal models; 1 with a single image.
    """

    value: float
    low: float | None
    high: float | None
    p: float


def bootstrap(scores: Scores, *, images: Sequence[Hashable], draws: int = DRAWS, seed: int = 0) -> Interval:
    """Give a score's 95 % interval, by drawing images with all their samples (Efron & Tibshirani 1993, chapter 13).

    Percentiles of `draws` seeded draws; images[i] names the image of sample i. Raises DataError if the lengths differ.
    """
    sums = _sums_of_images(scores, images)
    if len(sums) < 2:
        return Interval(scores.value, None, None, n=len(images), images=len(sums))
    drawn = np.concatenate([scores.combine(counts @ sums) for counts in _draws(len(sums), draws=draws, seed=seed)])
    low, high = _middle(drawn)
    return Interval(scores.value, low, high, n=len(images), images=len(sums))


def paired(
    first: Scores, other: Scores, *, images: Sequence[Hashable], draws: int = DRAWS, seed: int = 0
) -> Difference:
    """Compare two models on the same samples: both see the same drawn images.

    The p-value is two-sided, by exchanging the two models' answers image by image (Noreen 1989); for several
    comparisons correct it by `holm`. Raises DataError if the lengths differ.
    """
    if first.sums.shape != other.sums.shape:
        raise DataError(
            f"got {len(first.sums)} samples of one model and {len(other.sums)} of another; compare the same ones"
        )
    ours, theirs = _sums_of_images(first, images), _sums_of_images(other, images)
    difference = other.value - first.value
    if len(ours) < 2:
        return Difference(difference, None, None, p=1.0)
    drawn = np.concatenate(
        [
            other.combine(counts @ theirs) - first.combine(counts @ ours)
            for counts in _draws(len(ours), draws=draws, seed=seed)
        ]
    )
    generator = np.random.default_rng(seed)
    total, gap = ours.sum(axis=0), theirs - ours
    num_as_large, chunk = 0, max(1, _CHUNK_BYTES // (8 * len(ours)))
    for start in range(0, draws, chunk):
        swapped = generator.integers(0, 2, size=(min(chunk, draws - start), len(ours))).astype(np.float64) @ gap
        between = other.combine(total + gap.sum(axis=0) - swapped) - first.combine(total + swapped)
        num_as_large += int((np.abs(between) >= abs(difference) - 1e-12).sum())
    low, high = _middle(drawn)
    return Difference(difference, low, high, p=(num_as_large + 1) / (draws + 1))


def wilson(successes: int, number: int, *, sure: float = SURE) -> tuple[float, float]:
    """Give the interval of a share, successes of a number of independent tries (Wilson 1927, equation 5).

    It holds for few tries too, and stays within 0 and 1. Raises DataError without a try.
    """
    if not 0 <= successes <= number or not number:
        raise DataError(f"got {successes} of {number}, need at least one try and no more successes than tries")
    z = NormalDist().inv_cdf(0.5 + sure / 2)
    share, weight = successes / number, z * z / number
    middle = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / number + weight / (4 * number))
    return max(0.0, middle - half), min(1.0, middle + half)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values of several comparisons, in their order (Holm 1979): any below 0.05 then still is news."""
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def images_needed(
    scores: Scores,
    other: Scores | None = None,
    *,
    images: Sequence[Hashable],
    difference: float,
    power: float = 0.8,
    sure: float = SURE,
) -> int:
    """Say how many such images would show a difference of this size with this probability, two-sided.

    With `other`, another model on the same samples, the two are compared image by image; without, two models as
    noisy as this one that are right and wrong independently (a careful guess: paired ones need fewer images). The
    spread between images is taken from their influence on the value (the infinitesimal jackknife), so it holds for
    ratios and for BLEU too. Raises DataError for fewer than two images or a difference that is not above 0.
    """
    if not difference > 0:
        raise DataError(f"got a difference of {difference}, need one above 0")
    if other is None:
        spread = math.sqrt(2) * _spread(_influence(scores, images))
    else:
        spread = _spread(_influence(other, images) - _influence(scores, images))
    normal = NormalDist()
    factor = normal.inv_cdf(1 - (1 - sure) / 2) + normal.inv_cdf(power)
    return max(2, math.ceil((factor * spread / difference) ** 2))


def _sums_of_images(scores: Scores, images: Sequence[Hashable]) -> NDArray[np.float64]:
    """Add up the samples' sums image by image: [images, K]."""
    if len(images) != len(scores.sums):
        raise DataError(f"got {len(scores.sums)} samples and the images of {len(images)}, need as many")
    places: dict[Hashable, int] = {}
    index = np.array([places.setdefault(image, len(places)) for image in images])
    return np.stack(
        [np.bincount(index, weights=column, minlength=len(places)) for column in scores.sums.T], axis=-1
    ).astype(np.float64)


def _draws(num_images: int, *, draws: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Draw images with replacement; yield how often each was drawn: [some draws, images]."""
    generator = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_BYTES // (8 * num_images))
    for start in range(0, draws, chunk):
        num = min(chunk, draws - start)
        drawn = generator.integers(0, num_images, size=(num, num_images))
        drawn += np.arange(num)[:, None] * num_images
        yield np.bincount(drawn.ravel(), minlength=num * num_images).reshape(num, num_images).astype(np.float64)


def _middle(drawn: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(drawn, [(1 - SURE) / 2, (1 + SURE) / 2])
    return float(low), float(high)


def _influence(scores: Scores, images: Sequence[Hashable]) -> NDArray[np.float64]:
    """Give each image's influence on the value, [images]: how the value moves as the image's weight grows."""
    sums = _sums_of_images(scores, images)
    total, step = sums.sum(axis=0), 1e-6 * len(sums)
    moved = scores.combine(total + step * (sums - total / len(sums)))
    return (moved - scores.combine(total)) / 1e-6


def _spread(influence: NDArray[np.float64]) -> float:
    if len(influence) < 2:
        raise DataError(f"got {len(influence)} image, need two or more to see how much they differ")
    return float(influence.std(ddof=1))
