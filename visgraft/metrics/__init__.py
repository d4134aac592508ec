"""Score answers: strings in, floats out; knows nothing of models.

One module a family of metrics, and the one table METRICS: a new metric is a function and a row of it.
Usage: `metric_named("exact_match").compute(["a cat"], references=[["a cat", "cat"]])["exact_match"].value`
"""

from visgraft.metrics.scores import Metric as Metric
from visgraft.metrics.scores import Scores as Scores
from visgraft.metrics.table import METRICS as METRICS
from visgraft.metrics.table import metric_named as metric_named
