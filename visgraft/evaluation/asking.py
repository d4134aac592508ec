"""Put the questions of a set to a model, or what is left of them.

In: a loaded model, questions, the log of what is answered. Out: `Answered`, in the order of the questions. Questions
about one image are asked together, behind one prefix; every answer is in the log before the next batch is read.

    with AnswerLog(folder / "answers.jsonl", tag=tag) as log:
        answered = ask_questions(Loaded("my-run", model, processor), questions, log=log, max_new_tokens=16)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from random import Random
from typing import Any, Literal

from visgraft.data.sample import Sample
from visgraft.errors import BadSampleError
from visgraft.evaluation.answer_log import AnswerLog
from visgraft.evaluation.questions import Question, QuestionSet
from visgraft.evaluation.records import Answered
from visgraft.inference import answer_each
from visgraft.model.vlm import VisionLanguageModel
from visgraft.processor import Processor

Shown = Literal["image", "no image", "another image"]
Advance = Callable[[int], None]


@dataclass(frozen=True)
class Loaded:
    """A model that is ready to be asked, under its name."""

    name: str
    model: VisionLanguageModel
    processor: Processor


def ask_questions(
    loaded: Loaded,
    questions: QuestionSet,
    *,
    log: AnswerLog,
    max_new_tokens: int,
    batch_size: int = 32,
    shown: Shown = "image",
    advance: Advance = lambda number: None,
) -> list[Answered]:
    """Ask what the log does not know yet.

    Args:
        loaded: the model.
        questions: of the set.
        log: of the answers that this model gave under these conditions.
        max_new_tokens: longest answer.
        batch_size: questions that run at once.
        shown: with each question its own image, none, or that of another question.
        advance: is told how many questions are answered.

    Returns:
        The answers; questions whose image cannot be used are left out, those whose prompt leaves no room for an answer
        have an empty one.
    """
    partners = other_images(questions.all) if shown == "another image" else {}
    todo = [question for question in questions.all if question.id not in log.known]
    advance(len(questions.all) - len(todo))
    if partners:  # those that are shown the same image come together
        todo.sort(key=lambda question: partners[question.id].sample)
    order: list[Question] = []
    samples = _samples(questions, todo, order=order, shown=shown, partners=partners, log=log)
    answers = answer_each(loaded.model, loaded.processor, samples, max_new_tokens=max_new_tokens, batch_size=batch_size)
    for place, each in enumerate(answers):
        question = order[place]
        values: dict[str, Any] = {**described(question), "answer": each.text}
        if each.error is None:
            values |= {"tokens": len(each.token_ids), "stopped": each.has_stopped}
        elif isinstance(each.error, BadSampleError):
            values["error"] = str(each.error)
        else:
            values["no_answer"] = str(each.error)
        log.add({**values, "model": loaded.name, **({} if shown == "image" else {"shown": shown})})
        advance(1)
    return answered_of(questions.all, log.known)


def _samples(
    questions: QuestionSet,
    todo: Sequence[Question],
    *,
    order: list[Question],
    shown: Shown,
    partners: Mapping[str, Question],
    log: AnswerLog,
) -> Iterator[Sample]:
    """Make samples as they are needed: neighbours about the same image in one, `order` grows by their questions.

    A thread reads ahead of the answers, and `order` with it.
    """
    for _, group in groupby(todo, key=lambda question: (partners.get(question.id, question).sample, question.sample)):
        together: list[Sample] = []
        for question in group:
            try:
                sample = questions.sample(question, images_of=partners.get(question.id))
            except BadSampleError as error:
                log.known[question.id] = {"id": question.id, "answer": "", "error": str(error)}
                continue
            together.append(sample)
            order.append(question)
        if together:
            images = () if shown == "no image" else together[0].images
            yield replace(together[0], images=images, dialogs=[dialog for each in together for dialog in each.dialogs])


def described(question: Question) -> dict[str, Any]:
    """Give what a line of answers says of its question."""
    values: dict[str, Any] = {"id": question.id, "image": question.image}
    if question.kind:
        values["kind"] = question.kind
    return {**values, "prompt": question.prompt, "references": list(question.references)}


def answered_of(questions: Sequence[Question], known: Mapping[str, Mapping[str, Any]]) -> list[Answered]:
    """Join questions and known answers; what has none, or an image that cannot be used, is left out."""
    return [
        Answered(
            id=question.id,
            image=question.image,
            prompt=question.prompt,
            references=question.references,
            answer=known[question.id]["answer"],
            kind=question.kind,
            tokens=known[question.id].get("tokens"),
            stopped=known[question.id].get("stopped"),
            no_answer=known[question.id].get("no_answer", ""),
        )
        for question in questions
        if question.id in known and "error" not in known[question.id]
    ]


def other_images(questions: Sequence[Question], *, seed: int = 0) -> dict[str, Question]:
    """Choose for each question one about another image, by id: of the same prompt where there is one, else any.

    Prompt for prompt the images change places, so that what was asked of which pictures stays as it was, and only the
    link between a question and its own picture is cut.
    """
    by_prompt: dict[str, list[Question]] = {}
    for question in questions:
        by_prompt.setdefault(question.prompt, []).append(question)
    chosen: dict[str, Question] = {}
    rng = Random(seed)
    for same in by_prompt.values():
        chosen |= _exchange(same, rng=rng)
    left = [question for question in questions if question.id not in chosen]
    chosen |= _exchange(left, rng=rng)
    everything = list(questions)
    for question in left:
        if question.id not in chosen:
            others = [other for other in everything if other.image != question.image]
            chosen[question.id] = rng.choice(others) if others else question
    return chosen


def _exchange(questions: Sequence[Question], *, rng: Random) -> dict[str, Question]:
    """Let questions change images in a ring, sorted by image and turned so far that none keeps its own if that can be.

    Those of an image that more than half of the questions are about keep none: they are left to the caller.
    """
    if len(questions) < 2:
        return {}
    shuffled = list(questions)
    rng.shuffle(shuffled)
    rank = {image: place for place, image in enumerate(dict.fromkeys(question.image for question in shuffled))}
    shuffled.sort(key=lambda question: rank[question.image])
    most = max(sum(1 for _ in group) for _, group in groupby(shuffled, key=lambda question: question.image))
    turned = [*shuffled[most:], *shuffled[:most]]
    pairs = zip(shuffled, turned, strict=True)
    return {question.id: other for question, other in pairs if other.image != question.image}
