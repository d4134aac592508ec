"""What is to be known of a score by its name alone: which way is better, how far it goes, how it is written.

In: the name of a score, such as bleu_4 or one that no metric of today gives. Out: plain values.
Usage: `score_in_words("cider", 1.0312)` gives 1.031, of a share 45.2%
"""

from __future__ import annotations

from typing import Literal

from visgraft.metrics.table import METRICS


def better_of(score: str) -> Literal["higher", "lower"] | None:
    """Say whether higher or lower values of a score are better; None where neither is."""
    return next((metric.better_of(score) for metric in METRICS.values() if score in metric.gives), "higher")


def highest_of(score: str) -> float | None:
    """Say what a score can be at most; None of one that no metric gives."""
    return next((metric.highest for metric in METRICS.values() if score in metric.gives), None)


def form_of_score(score: str) -> str:
    """Give how a score is written: a share of 1 in per cent, anything else with three decimals."""
    return "{:.1%}" if highest_of(score) == 1.0 else "{:.3f}"


def score_in_words(score: str, value: float) -> str:
    """Write a score."""
    return form_of_score(score).format(value)
