"""Score answered questions: every score of every metric, with its interval, for all and by kind of question.

In: answers and the names of metrics. Out: `Scored`: values, intervals over images, each question's own value.

    scored = score_answers("my-run", answered, metrics=["cider", "bleu"])
    scored.intervals["bleu_4"].value, scored.intervals["bleu_4"].low
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from visgraft.errors import ConfigError
from visgraft.evaluation.records import Answered, image_groups
from visgraft.metrics import METRICS, Metric, Scores, metric_named
from visgraft.metrics.intervals import Interval, bootstrap
from visgraft.metrics.languages import LANGUAGES, check_language, language_without_spaces
from visgraft.metrics.text_quality import TextQuality, text_quality_of

MOST_KINDS = 40  # that are scored apart


@dataclass(frozen=True)
class Scored:
    """What one model's answers are worth.

    Attributes:
        model: its name.
        answered: the questions with their answers.
        scores: name -> the score with each question's own value.
        intervals: name -> value and 95 % interval.
        by_kind: kind of question -> the same of its questions; empty where the data name no kinds.
        quality: of the texts, right or wrong.
    """

    model: str
    answered: Sequence[Answered]
    scores: Mapping[str, Scores]
    intervals: Mapping[str, Interval]
    by_kind: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict)
    quality: TextQuality | None = None

    @property
    def images(self) -> list[str]:
        """What each question is about, in their order."""
        return image_groups(self.answered)


def check_metrics(names: Sequence[str]) -> dict[str, Metric]:
    """Find the metrics of these names.

    Raises:
        ConfigError: there is no such metric, or none is named.
        MissingAssetError: one needs what is not installed.
    """
    if not names:
        raise ConfigError(f"--metrics: got none, need one or more of {', '.join(METRICS)}")
    return {name: metric_named(name) for name in dict.fromkeys(names)}


def score_answers(
    model: str,
    answered: Sequence[Answered],
    *,
    metrics: Sequence[str],
    language: str | None = None,
    measured: Mapping[str, Scores] | None = None,
) -> Scored:
    """Score a model's answers.

    Args:
        model: its name.
        answered: at least one question.
        metrics: names of `METRICS`.
        language: ja, zh or th: texts are split by character.
        measured: scores that were measured on the model itself, in the order of `answered`.

    Raises:
        DataError: there is no answer.
        ConfigError: an unknown metric or language, or a metric that is measured on a model was not measured.
    """
    check_language(language)
    answers, references = [each.answer for each in answered], [each.references for each in answered]
    scores: dict[str, Scores] = {}
    for metric in check_metrics(metrics).values():
        known = {given: measured[given] for given in metric.gives if measured and given in measured}
        scores |= known or metric.compute(answers, references=references, language=language)
    images = image_groups(answered)
    by_kind = {
        kind: _intervals({name: subset(score, places) for name, score in scores.items()}, images, places)
        for kind, places in _places_of_kinds(answered).items()
    }
    return Scored(
        model=model,
        answered=answered,
        scores=scores,
        intervals={name: bootstrap(score, images=images) for name, score in scores.items()},
        by_kind=by_kind,
        quality=text_quality_of(answers, stopped=[each.stopped for each in answered]),
    )


def subset(scores: Scores, places: Sequence[int]) -> Scores:
    """Take the score of some of the questions; what was counted over all of them (rarity of words) stays."""
    sums = scores.sums[np.asarray(places, dtype=np.int64)]
    per_sample = tuple(scores.per_sample[place] for place in places)
    return Scores(float(scores.combine(sums.sum(axis=0))), per_sample, sums, scores.combine)


def _intervals(scores: Mapping[str, Scores], images: Sequence[str], places: Sequence[int]) -> dict[str, Interval]:
    return {name: bootstrap(score, images=[images[place] for place in places]) for name, score in scores.items()}


def _places_of_kinds(answered: Sequence[Answered]) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for place, each in enumerate(answered):
        if each.kind:
            places.setdefault(each.kind, []).append(place)
    return {kind: places[kind] for kind in sorted(places)} if 1 < len(places) <= MOST_KINDS else {}


def warn_of_language(answered: Sequence[Answered], *, metrics: Sequence[str], language: str | None) -> str | None:
    """Say that texts whose words no spaces divide need --language, where a metric counts words; None: all is well."""
    counting = [name for name in metrics if name in METRICS and METRICS[name].splits_words]
    if language is not None or not counting:
        return None
    found = language_without_spaces(text for each in answered for text in (each.answer, *each.references))
    if found is None:
        return None
    return (
        f"{', '.join(counting)}: the texts are in a script that sets no spaces between words ({LANGUAGES[found]}?), so "
        f"that a whole sentence counts as one word; give --language {found}"
    )


def warn_of_references(answered: Sequence[Answered], *, metrics: Sequence[str]) -> list[str]:
    """Say what each metric's values are worth with such references, where there is something to say."""
    references = [each.references for each in answered]
    found = {name: METRICS[name].warn_of(references) for name in metrics if name in METRICS}
    return [f"{name}: {warning}" for name, warning in found.items() if warning is not None]


# --- As plain values


def interval_as_json(interval: Interval) -> dict[str, Any]:
    """Give value, low, high, n and images as plain values; a value that is no finite number is null."""
    values = {name: _finite(getattr(interval, name)) for name in ("value", "low", "high")}
    return {**values, "n": interval.n, "images": interval.images}


def scored_as_json(scored: Scored) -> dict[str, Any]:
    """Give a model's scores as `--json` prints them."""
    values: dict[str, Any] = {
        "model": scored.model,
        "scores": {name: interval_as_json(interval) for name, interval in scored.intervals.items()},
    }
    if scored.by_kind:
        values["by_kind"] = {
            kind: {name: interval_as_json(interval) for name, interval in intervals.items()}
            for kind, intervals in scored.by_kind.items()
        }
    if scored.quality is not None:
        values["text_quality"] = vars(scored.quality)
    return values


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
