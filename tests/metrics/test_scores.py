"""What holds of every metric: what it refuses, and that its parts add up to its values."""

import numpy as np
import pytest

from visgraft.errors import ConfigError, DataError
from visgraft.metrics import METRICS, metric_named

OF_ANSWERS = [name for name, metric in METRICS.items() if metric.needs == "answers"]
OF_MODELS = [name for name, metric in METRICS.items() if metric.needs == "model"]


@pytest.mark.parametrize("name", OF_ANSWERS)
@pytest.mark.parametrize(
    ("answers", "references", "message"),
    [
        (["a"], [["a"], ["b"]], "got 1 answers and 2 lists of references"),
        ([], [], "got no answers"),
        (["a", "b", "c"], [["a"], [], []], r"got no reference for sample 1 \(2 in all\)"),
    ],
)
def test_every_metric_refuses_what_it_cannot_score(name, answers, references, message):
    with pytest.raises(DataError, match=message):
        METRICS[name].compute(answers, references=references)


@pytest.mark.parametrize("name", OF_MODELS)
def test_what_needs_a_model_says_so(name):
    with pytest.raises(ConfigError, match=f"{name} is measured on a model, not on answers; name a model"):
        metric_named(name).compute(["a"], references=[["a"]])


ANSWERS = ["a cat", "a dog", "x", "yes", "", "3.5"]
REFERENCES = [["a cat"] * 10, ["a dog", "dog"] * 5, ["a fish"] * 10, ["yes"] * 10, ["no"] * 10, ["3.5"] * 10]


@pytest.mark.parametrize("name", OF_ANSWERS)
def test_a_value_is_what_its_sums_combine_to_and_the_order_of_samples_does_not_matter(name):
    scores = METRICS[name].compute(ANSWERS, references=REFERENCES)
    assert tuple(scores) == METRICS[name].gives
    backwards = METRICS[name].compute(ANSWERS[::-1], references=REFERENCES[::-1])
    for score, other in zip(scores.values(), backwards.values(), strict=True):
        assert score.value == pytest.approx(float(score.combine(score.sums.sum(axis=0))), abs=1e-15)
        assert len(score.per_sample) == len(score.sums) == len(ANSWERS)
        assert other.value == pytest.approx(score.value, abs=1e-12)
        assert other.per_sample[::-1] == pytest.approx(score.per_sample, abs=1e-12)
        assert 0 <= score.value <= METRICS[name].highest
        if np.array_equal(score.sums[:, 1], np.ones(len(ANSWERS))):
            assert score.value == pytest.approx(np.mean(score.per_sample))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vqa_accuracy", "it is now vqa_v2, which follows the official script"),
        ("spice", "downloads models at run time"),
        ("cidr", "got 'cidr', which is no metric; did you mean cider"),
        ("zzzzzz", "which is no metric; need one of exact_match, "),
    ],
)
def test_a_name_that_is_no_metric_is_refused_with_what_to_do(name, message):
    with pytest.raises(ConfigError, match=message):
        metric_named(name)
