import pytest

from visgraft.errors import DataError
from visgraft.metrics import METRICS


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        (["a"], [["a"], ["b"]], "got 1 predictions and 2 lists of references"),
        ([], [], "got no predictions"),
        (["a", "b", "c"], [["a"], [], []], r"got no reference for sample 1 \(2 in all\)"),
    ],
)
def test_every_metric_refuses_what_it_cannot_score(name, predictions, references, message):
    with pytest.raises(DataError, match=message):
        METRICS[name](predictions, references=references)


@pytest.mark.parametrize("name", METRICS)
def test_a_value_is_the_mean_of_the_samples(name):
    references = [["a cat"] * 5, ["a dog", "dog"] * 5, ["a fish"] * 5]
    scores = METRICS[name](["a cat", "a dog", "x"], references=references)
    assert scores.value == pytest.approx(sum(scores.per_sample) / 3)
    assert scores.per_sample[0] > scores.per_sample[2] == 0
