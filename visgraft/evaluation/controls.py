"""How much of a score is sight: the same questions without the image, with another one, and to the bare language model.

In: a model's answers, and the same model asked otherwise. Out: `Control`: its scores, and what sight adds to each, with
an interval. The words are MMStar's (Chen et al. 2024, arXiv:2403.20330, section 4.3): multi-modal gain is the score
minus that without the image; leakage is what the model scores without the image more than its bare language model does.

    control = measure_control("no image", answered, blind, metrics=["exact_match"])
    control.gain["exact_match"].low
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from visgraft.evaluation.records import Answered
from visgraft.evaluation.scoring import Scored, interval_as_json, score_answers
from visgraft.metrics.intervals import Difference, Interval, paired
from visgraft.metrics.score_names import better_of

ControlKind = Literal["no image", "another image", "bare language model"]
KEYS: dict[ControlKind, str] = {
    "no image": "without_image",
    "another image": "another_image",
    "bare language model": "bare_language_model",
}


@dataclass(frozen=True)
class Control:
    """A model asked in another way, beside its own answers to the same questions.

    Attributes:
        kind: how it was asked.
        seeing: its own answers to these questions, scored.
        scored: the control's answers, scored.
        gain: score -> its own minus the control's, with 95 % interval.
        same_answers: ids of the questions that got the very same answer.
    """

    kind: ControlKind
    seeing: Scored
    scored: Scored
    gain: Mapping[str, Difference]
    same_answers: frozenset[str]

    @property
    def share_same(self) -> float:
        """Share of the questions that got the very same answer."""
        return len(self.same_answers) / len(self.scored.answered)

    def as_json(self) -> dict[str, Any]:
        """Give it as plain values."""
        return {
            "scores": {name: interval_as_json(interval) for name, interval in self.scored.intervals.items()},
            "gain": {name: difference_as_json(gain) for name, gain in self.gain.items()},
            "same_answers": self.share_same,
        }


def measure_control(
    kind: ControlKind,
    answered: Sequence[Answered],
    control: Sequence[Answered],
    *,
    metrics: Sequence[str],
    language: str | None = None,
) -> Control:
    """Score a model's answers beside those of its control, on the questions that both answered (at least one)."""
    theirs = {each.id: each for each in control}
    ours = [each for each in answered if each.id in theirs]
    matched = [theirs[each.id] for each in ours]
    seeing = score_answers("seeing", ours, metrics=metrics, language=language)
    scored = score_answers(kind, matched, metrics=metrics, language=language)
    gain = {name: paired(scored.scores[name], score, images=seeing.images) for name, score in seeing.scores.items()}
    pairs = zip(ours, matched, strict=True)
    same = frozenset(own.id for own, other in pairs if own.answer == other.answer)
    return Control(kind, seeing, scored, gain, same)


@dataclass(frozen=True)
class Sight:
    """What a score owes to sight, in MMStar's words.

    Attributes:
        gain: multi-modal gain: with its image minus without.
        leakage: without the image minus the bare language model, never below 0; None where that one was not asked.
    """

    score: str
    gain: Difference
    leakage: Interval | None

    @property
    def words(self) -> str:
        """What came out, as a sentence."""
        between = "" if self.gain.low is None else f" ({self.gain.low:+z.4f} to {self.gain.high:+z.4f})"
        found = "" if self.gain.low is None or self.gain.low > 0 or self.gain.high < 0 else ", which may be chance"  # type: ignore[operator]
        leaked = "" if self.leakage is None else f"; leakage {self.leakage.value:.4f}"
        return f"{self.score}: multi-modal gain {self.gain.value:+z.4f}{between}{found}{leaked}"


def sight_of(controls: Sequence[Control]) -> list[Sight]:
    """Say for each score what it owes to sight; nothing where the model was not asked without its images."""
    by_kind = {control.kind: control for control in controls}
    blind, bare = by_kind.get("no image"), by_kind.get("bare language model")
    if blind is None:
        return []
    found = []
    for name, gain in blind.gain.items():
        if better_of(name) is None:
            continue
        leakage = None
        if bare is not None and len(bare.scored.answered) == len(blind.scored.answered):
            more = paired(bare.scored.scores[name], blind.scored.scores[name], images=blind.scored.images)
            low, high = (None if edge is None else max(0.0, edge) for edge in (more.low, more.high))
            interval = blind.scored.intervals[name]
            leakage = Interval(max(0.0, more.value), low, high, n=interval.n, images=interval.images)
        found.append(Sight(name, gain, leakage))
    return found


def sight_as_json(sight: Sequence[Sight]) -> dict[str, Any]:
    """Give it as plain values: {score: {multi_modal_gain, leakage}}."""
    return {
        each.score: {
            "multi_modal_gain": difference_as_json(each.gain),
            **({} if each.leakage is None else {"leakage": interval_as_json(each.leakage)}),
        }
        for each in sight
    }


def difference_as_json(difference: Difference) -> dict[str, Any]:
    """Give a difference as plain values."""
    return {"value": difference.value, "low": difference.low, "high": difference.high}
