"""Score answers: strings in, floats out; knows nothing of models.

metrics.py holds one function a metric and the table `METRICS` of them.
Usage: `METRICS["exact_match"](["a cat"], references=[["a cat", "cat"]]).value`
"""

from visgraft.metrics.metrics import METRICS as METRICS
from visgraft.metrics.metrics import Metric as Metric
from visgraft.metrics.metrics import Scores as Scores
