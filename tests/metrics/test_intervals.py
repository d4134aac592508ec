"""Intervals by images: how often they hold, what drawing questions would claim, and how models are compared."""

import time

import numpy as np
import pytest

from visgraft.errors import DataError
from visgraft.metrics.captioning import bleu
from visgraft.metrics.choices import yes_no
from visgraft.metrics.intervals import bootstrap, holm, images_needed, paired, wilson
from visgraft.metrics.scores import Scores, mean_of


def answers_about_images(generator: np.random.Generator, *, num_images: int, each: int = 8) -> tuple[Scores, list[int]]:
    """Answers that are right with a probability of the image's own; in the mean 0.6."""
    chance = generator.beta(1.2, 0.8, size=num_images)
    right = generator.random((num_images, each)) < chance[:, None]
    return mean_of(right.ravel().astype(float)), [image for image in range(num_images) for _ in range(each)]


@pytest.mark.slow
def test_intervals_hold_the_truth_95_times_of_100_and_intervals_by_questions_do_not():
    generator = np.random.default_rng(0)
    hits = by_questions = 0
    num_tries = 600
    for attempt in range(num_tries):
        scores, images = answers_about_images(generator, num_images=100)
        interval = bootstrap(scores, images=images, draws=400, seed=attempt)
        hits += interval.low <= 0.6 <= interval.high
        if attempt < 200:
            interval = bootstrap(scores, images=range(len(images)), draws=200, seed=attempt)
            by_questions += interval.low <= 0.6 <= interval.high
    assert 0.93 <= hits / num_tries <= 0.97
    assert by_questions / 200 < 0.8


def test_an_interval_is_the_same_for_the_same_seed_and_any_order_of_samples():
    scores, images = answers_about_images(np.random.default_rng(1), num_images=40)
    interval = bootstrap(scores, images=images, seed=3)
    assert interval == bootstrap(scores, images=images, seed=3)
    assert interval != bootstrap(scores, images=images, seed=4)
    assert (interval.n, interval.images, interval.value) == (320, 40, scores.value)
    spread = np.std(scores.sums[:, 0].reshape(40, 8).mean(axis=1)) / np.sqrt(40)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * spread, rel=0.1)


def test_one_image_tells_nothing_of_others():
    interval = bootstrap(mean_of([0, 1]), images=["a", "a"])
    assert (interval.value, interval.low, interval.high, interval.images) == (0.5, None, None, 1)
    difference = paired(mean_of([0, 1]), mean_of([1, 1]), images=["a", "a"])
    assert (difference.value, difference.low, difference.p) == (0.5, None, 1.0)


def test_ratios_and_bleu_are_drawn_by_their_sums():
    answers, references = ["yes", "no", "yes", "no"] * 10, [["yes"], ["yes"], ["no"], ["no"]] * 10
    for score in yes_no(answers, references=references).values():
        interval = bootstrap(score, images=range(40))
        assert interval.low < interval.value == 0.5 < interval.high
    score = bleu(["a cat on a sofa", "two dogs"] * 10, references=[["a cat sits on a sofa"], ["two cats"]] * 10)[
        "bleu_2"
    ]
    interval = bootstrap(score, images=range(20))
    assert interval.low < interval.value < interval.high


def test_two_thousand_draws_of_many_images_take_a_moment():
    scores = mean_of(np.random.default_rng(0).random(100_000))
    start = time.perf_counter()
    bootstrap(scores, images=[index // 5 for index in range(100_000)])
    assert time.perf_counter() - start < 10  # under 1 s on an idle core


def test_a_comparison_on_the_same_images_sees_what_two_intervals_hide():
    generator = np.random.default_rng(2)
    first, images = answers_about_images(generator, num_images=150)
    better = first.sums[:, 0].copy()
    better[generator.choice(np.flatnonzero(better == 0), size=40, replace=False)] = 1
    other = mean_of(better)
    difference = paired(first, other, images=images)
    assert difference.value == pytest.approx(40 / 1200)
    assert 0 < difference.low < difference.value < difference.high
    assert difference.p < 0.01
    alone, same = bootstrap(first, images=images), bootstrap(other, images=images)
    assert alone.high > same.low  # the intervals overlap
    assert paired(other, first, images=images).value == -difference.value


def test_equal_models_differ_by_chance_five_times_of_a_hundred():
    generator = np.random.default_rng(3)
    num_small = 0
    for attempt in range(400):
        chance = generator.beta(1.2, 0.8, size=60)
        first, other = (mean_of((generator.random((60, 4)) < chance[:, None]).ravel().astype(float)) for _ in range(2))
        images = [image for image in range(60) for _ in range(4)]
        num_small += paired(first, other, images=images, draws=300, seed=attempt).p < 0.05
    assert 0.025 <= num_small / 400 <= 0.075
    assert paired(first, first, images=images).p == 1


def test_holm_corrects_the_smallest_the_most_and_keeps_the_order():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_number_of_images_needed_shows_the_difference_four_times_of_five():
    generator = np.random.default_rng(4)
    first, images = answers_about_images(generator, num_images=400, each=2)
    chance = 0.5 * (first.sums[:, 0] + 0.6)  # agrees with the first half of the time
    other = mean_of((generator.random(800) < chance).astype(float))
    needed = images_needed(first, other, images=images, difference=0.1)
    gaps = (other.sums[:, 0] - first.sums[:, 0]).reshape(400, 2).mean(axis=1)
    shown = 0
    for _ in range(500):
        drawn = generator.choice(gaps - gaps.mean() + 0.1, size=needed)
        shown += abs(drawn.mean()) > 1.96 * drawn.std(ddof=1) / np.sqrt(needed)
    assert 0.74 <= shown / 500 <= 0.88
    assert images_needed(first, images=images, difference=0.1) > needed  # unpaired models need more
    assert images_needed(first, images=images, difference=0.05) == pytest.approx(
        4 * images_needed(first, images=images, difference=0.1), rel=0.02
    )


def test_what_cannot_be_compared_is_refused():
    two, three = mean_of([0, 1]), mean_of([0, 1, 1])
    with pytest.raises(DataError, match="got 2 samples and the images of 3, need as many"):
        bootstrap(two, images="abc")
    with pytest.raises(DataError, match="got 2 samples of one model and 3 of another; compare the same ones"):
        paired(two, three, images="ab")
    with pytest.raises(DataError, match=r"got a difference of 0, need one above 0"):
        images_needed(two, images="ab", difference=0)
    with pytest.raises(DataError, match="got 1 image, need two or more"):
        images_needed(two, images="aa", difference=0.1)


def test_a_share_has_the_interval_of_wilson():
    assert wilson(3, 4) == pytest.approx((0.3006, 0.9544), abs=1e-4)  # R: prop.test(3, 4, correct = FALSE)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    low, high = wilson(10, 10)
    assert (low, high) == pytest.approx((1 - 0.2775, 1.0), abs=1e-4)
    for successes, number in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(DataError, match="need at least one try"):
            wilson(successes, number)
