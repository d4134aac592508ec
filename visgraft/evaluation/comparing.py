"""Several models on the same questions, each against the first: what differs, and whether that is more than chance.

In: `Scored` of each model. Out: `Compared`, a row a score and model, p-values corrected for their number, and in words.

    for row in compare_models([first, second]): print(row.words)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from visgraft.evaluation.scoring import Scored, subset
from visgraft.metrics import Scores
from visgraft.metrics.intervals import Difference, holm, images_needed, paired
from visgraft.metrics.score_names import better_of

NOTHING_FOUND = 0.05  # a corrected p-value from here on is chance as far as one can tell


@dataclass(frozen=True)
class Compared:
    """One score of one model beside that of the first.

    Attributes:
        score: its name.
        first: name of the first model.
        model: of the other.
        difference: other minus first, with its 95 % interval and its own p-value.
        p: corrected for the number of comparisons (Holm).
        num_comparisons: how many that is.
        images: on which they were compared.
    """

    score: str
    first: str
    model: str
    difference: Difference
    p: float
    num_comparisons: int
    images: int

    @property
    def is_distinguishable(self) -> bool:
        """Whether the difference is more than chance would bring."""
        return self.p < NOTHING_FOUND

    @property
    def words(self) -> str:
        """What came out, as a sentence."""
        difference = self.difference
        between = "" if difference.low is None else f" ({difference.low:+z.4f} to {difference.high:+z.4f})"
        numbers = f"{difference.value:+z.4f}{between}, p {self.p:.2g}, over {self.images:,} images"
        if not self.is_distinguishable:
            return f"{self.score}: {self.model} is not distinguishable from {self.first}: {numbers}"
        better = better_of(self.score)
        more = difference.value > 0
        word = (
            ("higher" if more else "lower") if better is None else "better" if more == (better == "higher") else "worse"
        )
        return f"{self.score}: {self.model} is {word} than {self.first}: {numbers}"

    def as_json(self) -> dict[str, Any]:
        """Give it as plain values."""
        values = {"score": self.score, "first": self.first, "model": self.model, "images": self.images}
        difference = {"value": self.difference.value, "low": self.difference.low, "high": self.difference.high}
        return {**values, "difference": difference, "p": self.p, "distinguishable": self.is_distinguishable}


def compare_models(scored: Sequence[Scored]) -> list[Compared]:
    """Compare each model with the first, on the questions that both answered; one of other questions is left out."""
    found: list[tuple[str, Scored, Difference, int]] = []
    for other in scored[1:]:
        places = _common(scored[0], other)
        if not places:
            continue
        images = [scored[0].images[place] for place, _ in places]
        for name in scored[0].scores.keys() & other.scores.keys():
            first = subset(scored[0].scores[name], [place for place, _ in places])
            second = subset(other.scores[name], [place for _, place in places])
            found.append((name, other, paired(first, second, images=images), len(set(images))))
    found.sort(key=lambda row: list(scored[0].scores).index(row[0]))
    corrected = holm([difference.p for _, _, difference, _ in found])
    return [
        Compared(name, scored[0].model, other.model, difference, p, len(found), images)
        for (name, other, difference, images), p in zip(found, corrected, strict=True)
    ]


def not_compared(scored: Sequence[Scored]) -> list[str]:
    """Name the models that share no question with the first."""
    return [other.model for other in scored[1:] if not _common(scored[0], other)]


def _common(first: Scored, other: Scored) -> list[tuple[int, int]]:
    """List the places of the same questions: all in their order, else by their ids or by image and prompt."""
    if _is_same(first, other):
        return [(place, place) for place in range(len(first.answered))]
    places = {_key(each): place for place, each in enumerate(other.answered)}
    if len(places) < len(other.answered) or len({_key(each) for each in first.answered}) < len(first.answered):
        return []  # questions that cannot be told apart
    return [(place, places[_key(each)]) for place, each in enumerate(first.answered) if _key(each) in places]


def _key(each: Any) -> tuple[str, ...]:
    return (each.id,) if each.id else (each.image, each.prompt)


def power_of(scored: Sequence[Scored], *, difference: float) -> list[dict[str, Any]]:
    """Say of each score how many images would show a difference of that size, 8 times of 10.

    With two models or more, of a pair as alike as the first two are; of one, as if two answered independently. Scores
    that are the same for every question say nothing and are left out.
    """
    first = scored[0]
    other = scored[1] if len(scored) > 1 and _is_same(first, scored[1]) else None
    rows = []
    for name, score in first.scores.items():
        second: Scores | None = other.scores.get(name) if other else None
        images = first.images
        if len(set(images)) < 2 or len(set(score.per_sample)) == 1:
            continue
        needed = images_needed(score, second, images=images, difference=difference)
        rows.append({"score": name, "difference": difference, "images_needed": needed, "images": len(set(images))})
    return rows


def _is_same(first: Scored, other: Scored) -> bool:
    return [_key(each) for each in first.answered] == [_key(each) for each in other.answered]
