"""The one table of metrics, and how a name finds its row.

In: a name as a person typed it. Out: its `Metric`, or an error that says what to type.
Usage: `metric_named("cider").compute(["a cat"], references=[["a cat on a sofa"]])`
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Protocol

from visgraft.errors import ConfigError
from visgraft.metrics.captioning import cider
from visgraft.metrics.scores import Compute, Metric, Scores
from visgraft.metrics.text_match import exact_match, vqa_accuracy


class _Plain(Protocol):
    def __call__(self, answers: Sequence[str], *, references: Sequence[Sequence[str]]) -> Scores: ...


def _one(name: str, function: _Plain) -> Compute:
    """Name the one score of a function that does not look at words."""

    def compute(
        answers: Sequence[str], *, references: Sequence[Sequence[str]], language: str | None = None
    ) -> dict[str, Scores]:
        return {name: function(answers, references=references)}

    return compute


def _of_a_model(name: str) -> Compute:
    """Refuse to score answers by what only a model can tell."""

    def compute(
        answers: Sequence[str], *, references: Sequence[Sequence[str]], language: str | None = None
    ) -> dict[str, Scores]:
        raise ConfigError(f"metrics: {name} is measured on a model, not on answers; name a model instead of --answers")

    return compute


METRICS: dict[str, Metric] = {
    "exact_match": Metric(
        compute=_one("exact_match", exact_match),
        what="the answer equals a reference as a whole string, white space around it aside",
        source="visgraft",
        gives=("exact_match",),
    ),
    "vqa_v2": Metric(
        compute=_one("vqa_v2", vqa_accuracy),
        what="how many of ten people gave the answer",
        source="Antol et al. 2015, arXiv:1505.00468",
        gives=("vqa_v2",),
    ),
    "cider": Metric(
        compute=_one("cider", cider),
        what="CIDEr-D",
        source="Vedantam et al. 2015, arXiv:1411.5726",
        gives=("cider",),
        highest=10.0,
    ),
    "choice_likelihood": Metric(
        compute=_of_a_model("choice_likelihood"),
        what="the likeliest of the candidates, scored behind one image, is the right one",
        source="Brown et al. 2020, arXiv:2005.14165, section 2.4",
        gives=("choice_likelihood",),
        needs="model",
    ),
    "loss": Metric(
        compute=_of_a_model("loss"),
        what="cross-entropy of the references, per token and per character",
        source="visgraft",
        gives=("loss", "loss_per_character"),
        highest=float("inf"),
        needs="model",
        better="lower",
    ),
}

#: names that are no rows, with what to do instead
_REFUSED = {
    "vqa_accuracy": "it is now vqa_v2, which follows the official script to the letter",
    "spice": "its official program downloads models at run time, so its numbers cannot be had again offline; use cider",
}


def metric_named(name: str) -> Metric:
    """Find the row of a name.

    Raises:
        ConfigError: there is none; with the nearest name, or why there is none.
        MissingAssetError: this machine lacks something the metric needs; with the line to install.
    """
    if name in _REFUSED:
        raise ConfigError(f"metrics: got {name!r}: {_REFUSED[name]}")
    if name not in METRICS:
        near = difflib.get_close_matches(name.lower(), METRICS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"need one of {', '.join(METRICS)}"
        raise ConfigError(f"metrics: got {name!r}, which is no metric; {hint}")
    METRICS[name].require()
    return METRICS[name]
