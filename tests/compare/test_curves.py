"""Curves: places, smoothing, averages over seeds, thinning, each against a count by hand."""

import numpy as np
import pytest

from visgraft.compare.curves import Curve, average, smooth, thin, training_curve, validation_curve


def curve(losses: list[float], *, samples_a_step: int = 2, seconds: float = 60.0) -> Curve:
    records = [
        {"step": number, "loss": loss, "loss_per_character": loss / 4, "samples": samples_a_step, "seconds": seconds}
        for number, loss in enumerate(losses, start=1)
    ]
    return training_curve(records)


def test_samples_and_minutes_are_counted_up_and_validations_stand_behind_their_step() -> None:
    made = curve([4.0, 3.0, 2.0])
    assert made.samples.tolist() == [2, 4, 6]
    assert made.minutes.tolist() == [1, 2, 3]
    assert made.character.tolist() == [1.0, 0.75, 0.5]
    records = [
        {"step": 2, "validation_loss": 3.1, "exact_match": 0.5},
        {"step": 3, "validation_loss": 2.1, "cider": None},
    ]
    validation, scores = validation_curve(records, made)
    assert validation.samples.tolist() == [4, 6]
    assert validation.minutes.tolist() == [2, 3]
    assert np.isnan(validation.character).all()
    assert scores == {"exact_match": [0.5, None]}


def test_smoothing_leaves_constants_and_lines_alone_and_evens_out_noise() -> None:
    assert smooth(np.full(100, 3.0)).tolist() == pytest.approx([3.0] * 100)
    line = np.linspace(5, 1, 200)
    assert smooth(line)[:150].tolist() == pytest.approx(line[:150].tolist())
    noise = np.random.default_rng(0).normal(size=500)
    assert smooth(noise).std() < 0.3 * noise.std()
    assert abs(smooth(noise)[-1]) < 0.7  # its last value is not one step's noise
    assert np.isnan(smooth(np.array([np.nan]))).all()


def test_missing_values_are_left_out_of_averages() -> None:
    values = np.where(np.arange(100) == 50, np.nan, 2.0)
    assert smooth(values).tolist() == pytest.approx([2.0] * 100)


def test_seeds_are_averaged_as_far_as_all_of_them_go() -> None:
    mean = average([curve([4.0, 3.0, 2.0]), curve([2.0, 2.0])], axis="steps", is_smooth=False)
    assert mean is not None
    assert mean.x.tolist() == [1, 2]
    assert mean.mean.tolist() == [3.0, 2.5]
    assert mean.low.tolist() == [2.0, 2.0]
    assert mean.high.tolist() == [4.0, 3.0]


def test_seeds_of_different_speed_are_averaged_at_the_same_minute() -> None:
    mean = average([curve([4.0, 2.0, 1.0]), curve([4.0, 2.0], seconds=120.0)], axis="minutes", is_smooth=False)
    assert mean is not None
    assert mean.x.tolist() == [2, 3]
    assert mean.mean.tolist() == [3.0, 2.0]  # (2 + 4) / 2, then (1 + 3) / 2


def test_curves_with_nothing_in_common_have_no_average() -> None:
    nothing = training_curve([])
    assert average([nothing], axis="steps") is None
    early, late = curve([1.0, 1.0]), curve([1.0, 1.0])
    shifted = Curve(late.steps + 10, late.samples, late.minutes, late.token, late.character, late.texts)
    assert average([early, shifted], axis="steps") is None


def test_thinning_keeps_spikes_and_both_ends() -> None:
    losses = [1.0] * 5000
    losses[1234] = 9.0
    places = thin(curve(losses), unit="token", number=100)
    assert len(places) <= 102
    assert {0, 1234, 4999} <= set(places)
    assert thin(curve([1.0, 2.0]), unit="token") == [0, 1]
