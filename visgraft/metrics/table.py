"""The one table of metrics, and how a name finds its row.

In: a name as a person typed it. Out: its `Metric`, or an error that says what to type.
Usage: `metric_named("cider").compute(["a cat"], references=[["a cat on a sofa"]])`
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Protocol

from visgraft.errors import ConfigError
from visgraft.metrics.captioning import bleu, cider, rouge_l
from visgraft.metrics.choices import choice, right_letters, yes_no, yes_or_no
from visgraft.metrics.meteor import meteor, require_meteor
from visgraft.metrics.scores import Compute, Metric, Scores
from visgraft.metrics.text_match import anls, exact_match, gqa, relaxed_accuracy
from visgraft.metrics.vqa import vqa_evalai, vqa_v2, warn_of_people


class _OfStrings(Protocol):
    def __call__(self, answers: Sequence[str], *, references: Sequence[Sequence[str]]) -> Scores: ...


class _OfWords(Protocol):
    def __call__(
        self, answers: Sequence[str], *, references: Sequence[Sequence[str]], language: str | None = None
    ) -> Scores: ...


def _of_strings(name: str, function: _OfStrings) -> Compute:
    """Name the one score of a function that takes answers as whole strings, whatever their language."""

    def compute(
        answers: Sequence[str], *, references: Sequence[Sequence[str]], language: str | None = None
    ) -> dict[str, Scores]:
        return {name: function(answers, references=references)}

    return compute


def _of_words(name: str, function: _OfWords) -> Compute:
    """Name the one score of a function that splits answers into words."""

    def compute(
        answers: Sequence[str], *, references: Sequence[Sequence[str]], language: str | None = None
    ) -> dict[str, Scores]:
        return {name: function(answers, references=references, language=language)}

    return compute


def _of_a_model(name: str) -> Compute:
    """Refuse to score answers by what only a model can tell."""

    def compute(
        answers: Sequence[str], *, references: Sequence[Sequence[str]], language: str | None = None
    ) -> dict[str, Scores]:
        raise ConfigError(f"metrics: {name} is measured on a model, not on answers; name a model instead of --answers")

    return compute


METRICS: dict[str, Metric] = {
    # captions
    "bleu": Metric(
        compute=bleu,
        what="n-grams of 1 to 4 words that are in a reference, less a penalty for short captions",
        source="pycocoevalcap; Papineni et al. 2002",
        gives=("bleu_1", "bleu_2", "bleu_3", "bleu_4"),
        splits_words=True,
    ),
    "rouge_l": Metric(
        compute=_of_words("rouge_l", rouge_l),
        what="longest common subsequence with the references",
        source="pycocoevalcap; Lin 2004",
        gives=("rouge_l",),
        splits_words=True,
    ),
    "cider": Metric(
        compute=_of_words("cider", cider),
        what="CIDEr-D: likeness in n-grams that are rare over the set",
        source="pycocoevalcap; Vedantam et al. 2015, arXiv:1411.5726",
        gives=("cider",),
        highest=10.0,
        splits_words=True,
    ),
    "meteor": Metric(
        compute=meteor,
        what="METEOR 1.5: words, stems, synonyms and paraphrases that match (English; needs Java)",
        source="pycocoevalcap; Denkowski & Lavie 2014",
        gives=("meteor",),
        splits_words=True,
        require=require_meteor,
    ),
    # short answers
    "exact_match": Metric(
        compute=_of_strings("exact_match", exact_match),
        what="the answer equals a reference as a whole string, white space around it aside",
        source="visgraft",
        gives=("exact_match",),
    ),
    "vqa_v2": Metric(
        compute=_of_strings("vqa_v2", vqa_v2),
        what="how many of ten people gave the answer, by the official script",
        source="GT-Vision-Lab/VQA vqaEval.py; Antol et al. 2015, arXiv:1505.00468",
        gives=("vqa_v2",),
        warn_of=warn_of_people,
    ),
    "vqa_evalai": Metric(
        compute=_of_strings("vqa_evalai", vqa_evalai),
        what="how many of ten people gave the answer, by EvalAI's rules (TextVQA, OK-VQA)",
        source="facebookresearch/mmf EvalAIAnswerProcessor; Singh et al. 2019, arXiv:1904.08920",
        gives=("vqa_evalai",),
        warn_of=warn_of_people,
    ),
    "gqa": Metric(
        compute=_of_strings("gqa", gqa),
        what="the answer equals a reference, in lower case and without a period",
        source="GQA eval.py with LLaVA's convert_gqa_for_eval.py; Hudson & Manning 2019, arXiv:1902.09506",
        gives=("gqa",),
    ),
    "anls": Metric(
        compute=_of_strings("anls", anls),
        what="likeness in letters to the best reference, 0 unless above one half (DocVQA, ST-VQA)",
        source="Biten et al. 2019, arXiv:1907.00490",
        gives=("anls",),
    ),
    "relaxed_accuracy": Metric(
        compute=_of_strings("relaxed_accuracy", relaxed_accuracy),
        what="within 5 % of a number, or equal to a word (ChartQA)",
        source="Masry et al. 2022, arXiv:2203.10244, section 5.1",
        gives=("relaxed_accuracy",),
    ),
    # one of few
    "yes_no": Metric(
        compute=yes_no,
        what="the first word is yes or no, and right: accuracy, precision, recall, F1, share of yes (POPE)",
        source="Li et al. 2023, arXiv:2305.10355",
        gives=("yes_no_accuracy", "yes_no_precision", "yes_no_recall", "yes_no_f1", "yes_no_yes_ratio"),
        neither=("yes_no_yes_ratio",),
        check_references=yes_or_no,
    ),
    "choice": Metric(
        compute=_of_strings("choice", choice),
        what="the answer names the letter of the right choice",
        source="visgraft",
        gives=("choice",),
        check_references=right_letters,
    ),
    # of a model
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
    "spice": "the official program downloads its parser when it runs, so it fails without a network; use cider",
}


def metric_named(name: str) -> Metric:
    """Find the row of a name.

    Raises:
        ConfigError: there is none; with the nearest name, or why there is none.
        MissingAssetError: this machine lacks something the metric needs; with the line to install.
    """
    if name.lower() in _REFUSED:
        raise ConfigError(f"metrics: got {name!r}: {_REFUSED[name.lower()]}")
    if name not in METRICS:
        given = {score: row for row, metric in METRICS.items() for score in metric.gives}
        near = given.get(name.lower()) or next(iter(difflib.get_close_matches(name.lower(), METRICS, n=1)), None)
        hint = f"did you mean {near}?" if near else f"need one of {', '.join(METRICS)}"
        raise ConfigError(f"metrics: got {name!r}, which is no metric; {hint}")
    METRICS[name].require()
    return METRICS[name]
