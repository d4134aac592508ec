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


ANSWERS = ["a cat on a sofa", "a dog", "x", "yes", "", "3.5"]
REFERENCES = [[text] * 10 for text in ("a cat sits on a sofa", "a dog", "a fish", "yes", "no", "3.5")]
YES_NO = (["yes", "no", "Yes!", "maybe", "no", "yes"], [[word] for word in ("yes", "yes", "yes", "no", "no", "no")])
CHOICES = (["A", "b", "(C)", "cat", "", "B"], [[letter] for letter in "ABCDAA"])
MADE_FOR = {"yes_no": YES_NO, "choice": CHOICES}
MEANS = {"rouge_l", "cider", "yes_no_accuracy", "yes_no_yes_ratio"} | {
    name for name in OF_ANSWERS if name not in ("bleu", "meteor", "yes_no")
}


@pytest.mark.parametrize("name", [name for name in OF_ANSWERS if name != "meteor"])
def test_a_value_is_what_its_sums_combine_to_and_the_order_of_samples_does_not_matter(name):
    answers, references = MADE_FOR.get(name, (ANSWERS, REFERENCES))
    scores = METRICS[name].compute(answers, references=references)
    assert tuple(scores) == METRICS[name].gives
    backwards = METRICS[name].compute(answers[::-1], references=references[::-1])
    for (given, score), other in zip(scores.items(), backwards.values(), strict=True):
        assert score.value == pytest.approx(float(score.combine(score.sums.sum(axis=0))), abs=1e-15)
        assert len(score.per_sample) == len(score.sums) == len(answers)
        assert other.value == pytest.approx(score.value, abs=1e-12)
        assert other.per_sample[::-1] == pytest.approx(score.per_sample, abs=1e-12)
        assert all(0 <= value <= METRICS[name].highest for value in (score.value, *score.per_sample))
        assert len(set(score.per_sample)) > 1
        if given in MEANS:
            assert score.value == pytest.approx(np.mean(score.per_sample))


@pytest.mark.parametrize("name", METRICS)
def test_every_row_says_what_it_is_and_where_it_comes_from(name):
    metric = METRICS[name]
    assert metric.what
    assert metric.source
    assert all(score == name or score.startswith(f"{name}_") for score in metric.gives)


def test_a_share_of_yes_is_neither_better_high_nor_low():
    assert METRICS["yes_no"].better_of("yes_no_yes_ratio") is None
    assert METRICS["yes_no"].better_of("yes_no_f1") == "higher"
    assert METRICS["loss"].better_of("loss") == "lower"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vqa_accuracy", "it is now vqa_v2, which follows the official script"),
        ("SPICE", "got 'SPICE': the official program downloads its parser when it runs"),
        ("bleu_4", "did you mean bleu"),
        ("cidr", "got 'cidr', which is no metric; did you mean cider"),
        ("zzzzzz", "which is no metric; need one of bleu, rouge_l, "),
    ],
)
def test_a_name_that_is_no_metric_is_refused_with_what_to_do(name, message):
    with pytest.raises(ConfigError, match=message):
        metric_named(name)
