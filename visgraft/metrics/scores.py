"""What every metric gives, and what it asks of its arguments.

In: `answers`, one string a sample, and `references`, all accepted answers of each sample. Out: `Scores`.
Usage: `check_pairs(answers, references)`, then `return mean_of(per_sample)`
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from visgraft.errors import DataError

#: [..., K] sums over samples -> [...] values
Combine = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True, eq=False)  # arrays have no one truth value
class Scores:
    """A metric's value for a set of samples, each sample's own, and what adds up to both.

    Attributes:
        value: of the whole set; equals `combine(sums.sum(axis=0))`.
        per_sample: each sample's own value, to be shown beside its answer; 0 where it has none of its own (the
            precision of an answer that is no yes).
        sums: [N, K] what is added up over samples; for a mean K = 2: (value, 1).
        combine: [..., K] sums -> [...] values, so that a bootstrap adds up sums and never scores again.
    """

    value: float
    per_sample: tuple[float, ...]
    sums: NDArray[np.float64]
    combine: Combine


class Compute(Protocol):
    """Score answers; references[i] are the accepted answers of answers[i].

    `language` is that of the texts where it is one without spaces between words (ja, zh, th), else None; only metrics
    that look at words use it. Raises DataError if a sample has no reference or the lengths differ.
    """

    def __call__(
        self, answers: Sequence[str], *, references: Sequence[Sequence[str]], language: str | None = None
    ) -> dict[str, Scores]:
        """Give the scores by name."""
        ...


def _nothing_more() -> None:
    """Ask for nothing more than what visgraft installs."""


def _no_warning(references: Sequence[Sequence[str]]) -> str | None:
    """Find nothing to say of any references."""
    return None


@dataclass(frozen=True)
class Metric:
    """A row of the table of metrics.

    Attributes:
        compute: the function; that of a metric that needs a model refuses (ConfigError) and says so.
        what: one line for a list of metrics.
        source: the paper or the official script that it equals.
        gives: the names of its scores.
        highest: the best value there is; the lowest is 0.
        needs: "answers", or "model" where what is scored is no generated answer: such a row is computed elsewhere.
        better: "higher" or "lower" values are better.
        neither: those of its scores of which neither is better (a share of yes).
        splits_words: looks at words, so that texts in a language without spaces need to be named.
        require: raises MissingAssetError, with the line to install, where this machine lacks something it needs.
        check_references: raises DataError where references are none that it can score.
        warn_of: says what a person should know before believing its values for such references; None: nothing.
    """

    compute: Compute
    what: str
    source: str
    gives: tuple[str, ...]
    highest: float = 1.0
    needs: Literal["answers", "model"] = "answers"
    better: Literal["higher", "lower"] = "higher"
    neither: tuple[str, ...] = ()
    splits_words: bool = False
    require: Callable[[], None] = _nothing_more
    check_references: Callable[[Sequence[Sequence[str]]], object] = _no_warning
    warn_of: Callable[[Sequence[Sequence[str]]], str | None] = _no_warning

    def better_of(self, score: str) -> Literal["higher", "lower"] | None:
        """Say whether higher or lower values of one of its scores are better; None where neither is."""
        return None if score in self.neither else self.better


def check_pairs(answers: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Raise DataError where answers and references do not fit together."""
    if len(answers) != len(references):
        raise DataError(f"got {len(answers)} answers and {len(references)} lists of references, need as many")
    if not answers:
        raise DataError("got no answers, need at least one to score")
    without = [index for index, accepted in enumerate(references) if not accepted]
    if without:
        raise DataError(f"got no reference for sample {without[0]} ({len(without)} in all), need at least one each")


def mean_of(per_sample: Sequence[float] | NDArray[np.float64]) -> Scores:
    """Give each sample the same weight."""
    values = np.asarray(per_sample, dtype=np.float64)
    return ratio_of(values, np.ones(len(values)))


def ratio_of(tops: Sequence[float] | NDArray[np.float64], bottoms: Sequence[float] | NDArray[np.float64]) -> Scores:
    """Divide the sum of the tops by the sum of the bottoms, both [N]; 0 where the latter is 0."""
    sums = np.stack([np.asarray(tops, dtype=np.float64), np.asarray(bottoms, dtype=np.float64)], axis=-1)
    return scores_of(sums, combine=divide)


def scores_of(sums: NDArray[np.float64], *, combine: Combine) -> Scores:
    """Make scores of [N, K] sums: the set's value from their total, each sample's from its own row."""
    per_sample = tuple(combine(sums).tolist())
    return Scores(value=float(combine(sums.sum(axis=0))), per_sample=per_sample, sums=sums, combine=combine)


def divide(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divide the first of the last axis by the second; 0 where the second is 0."""
    tops, bottoms = sums[..., 0], sums[..., 1]
    return np.divide(tops, bottoms, out=np.zeros_like(tops), where=bottoms != 0)
