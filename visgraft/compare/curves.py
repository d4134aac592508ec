"""Loss curves: over steps, samples or minutes; raw, smoothed, and averaged over seeds with their spread.

In: the records of `metrics.jsonl`. Out: `Curve`, numbers side by side; means with lowest and highest.

    curve = training_curve(run.steps())
    average([curve, other], axis="samples")        # x, mean, lowest, highest
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Axis = Literal["steps", "samples", "minutes"]
AXES: tuple[Axis, ...] = ("steps", "samples", "minutes")
Unit = Literal["token", "character"]
SMOOTHED_SHARE = 0.04  # of a run's steps go into one smoothed value
NUM_GRID = 120  # places at which the curves of several seeds are averaged
NUM_RAW = 300  # points of a raw curve that are drawn at most

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """Losses side by side with where they were measured; missing values are NaN."""

    steps: Array
    samples: Array
    minutes: Array
    token: Array
    character: Array
    texts: Array  # learned from so far

    def __len__(self) -> int:
        return len(self.steps)

    def along(self, axis: Axis) -> Array:
        """Give the places of the values on an axis."""
        places: Array = getattr(self, axis)
        return places

    def loss(self, unit: Unit) -> Array:
        """Give the losses per supervised token or per character of answer."""
        values: Array = getattr(self, unit)
        return values


@dataclass(frozen=True)
class Average:
    """A mean over seeds along an axis, with the lowest and the highest."""

    x: Array
    mean: Array
    low: Array
    high: Array


def _array(values: Sequence[Any]) -> Array:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def training_curve(steps: Sequence[Mapping[str, Any]]) -> Curve:
    """Draw the steps of a run (`Run.steps`); samples and minutes are counted up."""
    return Curve(
        steps=_array([record["step"] for record in steps]),
        samples=_array([record.get("samples", 0) for record in steps]).cumsum(),
        minutes=_array([record.get("seconds", 0.0) for record in steps]).cumsum() / 60,
        token=_array([record["loss"] for record in steps]),
        character=_array([record.get("loss_per_character") for record in steps]),
        texts=_array([record.get("dialogs", record.get("samples", 0)) for record in steps]).cumsum(),
    )


def validation_curve(
    found: Sequence[Mapping[str, Any]], training: Curve
) -> tuple[Curve, dict[str, list[float | None]]]:
    """Draw the validations of a run, placed by the steps in front of them, and the scores measured with each."""
    steps = _array([record["step"] for record in found])
    place = np.searchsorted(training.steps, steps, side="right")

    def at(values: Array) -> Array:
        counted: Array = np.concatenate([[0.0], values])[place]
        return counted

    curve = Curve(
        steps=steps,
        samples=at(training.samples),
        minutes=at(training.minutes),
        token=_array([record["validation_loss"] for record in found]),
        character=_array([record.get("validation_loss_per_character") for record in found]),
        texts=at(training.texts),
    )
    known = {"step", "validation_loss", "validation_loss_per_character"}
    names = dict.fromkeys(
        key for record in found for key, value in record.items() if key not in known and isinstance(value, (int, float))
    )
    return curve, {name: [record.get(name) for record in found] for name in names}


def smooth(values: Array) -> Array:
    """Average each value with those around it; missing values are left out.

    Towards the beginning, where losses fall fast, the stretch shrinks to both sides alike, so that it does not lag;
    at the end, where one value would be mere noise, to one side only.
    """
    half = int(len(values) * SMOOTHED_SHARE / 2)
    is_there = ~np.isnan(values)
    sums = np.concatenate([[0.0], np.where(is_there, values, 0.0).cumsum()])
    counts = np.concatenate([[0], is_there.cumsum()])
    places = np.arange(len(values))
    reach = np.minimum(places, half)
    first, last = places - reach, np.minimum(places + reach + 1, len(values))
    number = counts[last] - counts[first]
    return np.where(number > 0, (sums[last] - sums[first]) / np.maximum(number, 1), np.nan)


def average(curves: Sequence[Curve], *, axis: Axis, unit: Unit = "token", is_smooth: bool = True) -> Average | None:
    """Average curves along an axis, as far as all of them go; None where nothing is common.

    Between two values a curve is a straight line. `is_smooth` smooths each curve before.
    """
    parts = []
    for curve in curves:
        values = smooth(curve.loss(unit)) if is_smooth else curve.loss(unit)
        keep = ~np.isnan(values)
        if keep.any():
            parts.append((curve.along(axis)[keep], values[keep]))
    if not parts:
        return None
    start, stop = max(x[0] for x, _ in parts), min(x[-1] for x, _ in parts)
    if start > stop:
        return None
    places = np.unique(np.concatenate([x for x, _ in parts]))
    places = places[(places >= start) & (places <= stop)]
    if len(places) > NUM_GRID:
        places = np.linspace(start, stop, NUM_GRID)
    lines = np.stack([np.interp(places, x, values) for x, values in parts])
    return Average(x=places, mean=lines.mean(0), low=lines.min(0), high=lines.max(0))


def thin(curve: Curve, *, unit: Unit, number: int = NUM_RAW) -> list[int]:
    """Choose the points of a raw curve to draw: the lowest and the highest of each stretch, so that spikes stay."""
    values = curve.loss(unit)
    is_there = np.flatnonzero(~np.isnan(values))
    if len(is_there) <= number:
        return [int(place) for place in is_there]
    chosen = {int(is_there[0]), int(is_there[-1])}
    for stretch in np.array_split(is_there, number // 2):
        chosen |= {int(stretch[values[stretch].argmin()]), int(stretch[values[stretch].argmax()])}
    return sorted(chosen)
