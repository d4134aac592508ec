"""Scores that are no matter of generated answers: the loss of the references, and the likeliest of given candidates.

In: a loaded model, questions, the log of what is measured. Out: `Scores` by name, in the order of the questions.
All references and all candidates of a question stand behind one image and one prompt, which are read once.

    with AnswerLog(folder / "measured.jsonl", tag=tag) as log:
        measure_questions(loaded, questions, log=log, metrics=["loss"])
        scores = scores_of_log(questions, log.known, metrics=["loss"])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from visgraft.data.sample import Sample
from visgraft.errors import BadSampleError, ConfigError, ModelError
from visgraft.evaluation.answer_log import AnswerLog
from visgraft.evaluation.asking import Advance, Loaded
from visgraft.evaluation.questions import Question, QuestionSet
from visgraft.inference import PrefixCache, score_candidates
from visgraft.metrics import Scores
from visgraft.metrics.scores import mean_of, ratio_of

NOTHING = {"loss": 0.0, "tokens": 0, "characters": 0, "chosen": None}  # of what leaves no room for an answer
MOST_CANDIDATES = 64  # of a data set that lists none: all its different answers


def candidates_of(questions: QuestionSet) -> tuple[str, ...]:
    """List what may be chosen among where a question lists nothing: every different answer of the set.

    Raises:
        ConfigError: there are too many.
    """
    if all(question.candidates for question in questions.all):
        return ()
    answers = tuple(dict.fromkeys(text for question in questions.all for text in question.references))
    if len(answers) > MOST_CANDIDATES:
        raise ConfigError(
            f"choice_likelihood: {questions.name} lists no candidates and has {len(answers):,} different answers, of "
            f"which {MOST_CANDIDATES} can be told apart; list candidates in a benchmark's file, or leave it out"
        )
    return answers


def measure_questions(
    loaded: Loaded,
    questions: QuestionSet,
    *,
    log: AnswerLog,
    metrics: Sequence[str],
    advance: Advance = lambda number: None,
) -> None:
    """Measure what the log does not know yet; questions whose image cannot be used are noted with the reason.

    A question that leaves no room for an answer has no loss, and no candidate is chosen.

    Raises:
        ConfigError: there are too many candidates.
    """
    every = candidates_of(questions) if "choice_likelihood" in metrics else ()
    cache = PrefixCache()
    for question in questions.all:
        if question.id not in log.known:
            record: dict[str, Any] = {"id": question.id, "answer": "", "model": loaded.name}
            try:
                sample = questions.sample(question)
                record["measured"] = _measure(loaded, question, sample, every, metrics=metrics, cache=cache)
            except BadSampleError as error:
                record["error"] = str(error)
            except ModelError as error:
                record |= {"measured": NOTHING, "no_answer": str(error)}
            log.add(record)
        advance(1)


def _measure(
    loaded: Loaded,
    question: Question,
    sample: Sample,
    every: Sequence[str],
    *,
    metrics: Sequence[str],
    cache: PrefixCache,
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "loss" in metrics:
        logs = score_candidates(loaded.model, loaded.processor, sample, question.references, prefix_cache=cache)
        [dialog] = sample.dialogs
        dialogs = [[*dialog[:-1], replace(dialog[-1], answer=text)] for text in question.references]
        encoded = loaded.processor.encode_text(replace(sample, dialogs=dialogs))
        history = loaded.processor.encode_text(replace(sample, dialogs=[dialog[:-1]])) if dialog[:-1] else ()
        before = sum(sum(each.supervised) for each in history)  # only the last answer was scored
        tokens = sum(sum(each.supervised) - before for each in encoded)
        found |= {"loss": -sum(logs), "tokens": tokens, "characters": sum(map(len, question.references))}
    if "choice_likelihood" in metrics:
        candidates = question.candidates or every
        logs = score_candidates(loaded.model, loaded.processor, sample, candidates, prefix_cache=cache)
        found["chosen"] = candidates[max(range(len(logs)), key=logs.__getitem__)]
    return found


def scores_of_log(
    questions: Sequence[Question], known: Mapping[str, Mapping[str, Any]], *, metrics: Sequence[str]
) -> dict[str, Scores]:
    """Make scores of what was measured of some questions, all of which are known."""
    measured = [known[question.id]["measured"] for question in questions]
    scores: dict[str, Scores] = {}
    if "loss" in metrics:
        losses = [each["loss"] for each in measured]
        scores["loss"] = ratio_of(losses, [each["tokens"] for each in measured])
        scores["loss_per_character"] = ratio_of(losses, [each["characters"] for each in measured])
    if "choice_likelihood" in metrics:
        right = [
            float(each["chosen"] in question.references) for each, question in zip(measured, questions, strict=True)
        ]
        scores["choice_likelihood"] = mean_of(right)
    return scores
