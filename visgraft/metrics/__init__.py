"""Score answers: strings in, floats out; knows nothing of models.

One module a family of metrics, and the one table METRICS: a new metric is a function and a row of it.
Usage: `METRICS["exact_match"](["a cat"], references=[["a cat", "cat"]]).value`
"""

from visgraft.metrics.captioning import cider
from visgraft.metrics.scores import Metric as Metric
from visgraft.metrics.scores import Scores as Scores
from visgraft.metrics.text_match import exact_match, vqa_accuracy
from visgraft.metrics.vqa_v2 import vqa_v2

METRICS: dict[str, Metric] = {
    "exact_match": exact_match,
    "vqa_accuracy": vqa_accuracy,
    "vqa_v2": vqa_v2,
    "cider": cider,
}
