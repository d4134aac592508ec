"""What every metric gives, and what it asks of its arguments.

In: `predictions`, one string a sample, and `references`, all accepted answers of each sample. Out: `Scores`.
Usage: `check_pairs(predictions, references)`, then `return mean_of(per_sample)`
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from visgraft.errors import DataError


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


def check_pairs(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Raise DataError where predictions and references do not fit together."""
    if len(predictions) != len(references):
        raise DataError(f"got {len(predictions)} predictions and {len(references)} lists of references, need as many")
    if not predictions:
        raise DataError("got no predictions, need at least one to score")
    without = [index for index, accepted in enumerate(references) if not accepted]
    if without:
        raise DataError(f"got no reference for sample {without[0]} ({len(without)} in all), need at least one each")


def mean_of(per_sample: Sequence[float]) -> Scores:
    """Give each sample the same weight."""
    return Scores(value=sum(per_sample) / len(per_sample), per_sample=tuple(per_sample))
