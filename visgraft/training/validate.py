"""How good a model is in the middle of its training: loss on held-out data, and answers to fixed questions.

In: a session. Out: numbers for `metrics.jsonl`, answers for `samples.jsonl`. Nothing here touches weights or any
random state, so a run that validates more often is the same run.

    record = validate(session)
    records = answer_sample_prompts(session)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from visgraft.atomic import whole_file
from visgraft.data.images.opening import open_image
from visgraft.data.sample import Sample
from visgraft.errors import BadSampleError
from visgraft.inference import Answer, answer_each
from visgraft.metrics import metric_named
from visgraft.metrics.text_match import exact_match
from visgraft.model.attention_kernel import dense_attention
from visgraft.training.compiling import uncompiled
from visgraft.training.interrupt import StopAsked
from visgraft.training.plan import Position
from visgraft.training.session import Session
from visgraft.training.sharding import gathered, is_sharded
from visgraft.training.steps import load_steps

T = TypeVar("T")

PICTURE_SIDE = 320  # pixels, of the longer side of a sample image that a run keeps


@torch.no_grad()
def validate(session: Session) -> dict[str, Any]:
    """Measure loss on the validation data and, if the recipe asks for it, the share of right answers.

    Returns:
        What to write down; None stands for what was not measured, as no sample could be used.

    Raises:
        StopAsked: in all processes, between two batches; the state holds what was measured so far, and the next call
            takes it up there.
        TooManyBadError: in all processes, too many of the samples are bad.
    """
    assert session.validation is not None
    accelerator, model, state = session.accelerator, session.model, session.state
    position, sums = _validated_so_far(session)
    model.eval()
    for step in load_steps(session.validation, position, epochs=1.0, settings=session.loader):
        session.set_bad_samples_aside(step, part="validation")
        # Processes that share the weights out run the model together, one that has no batch left with the filler.
        num_more = max(session.each([len(step.batches)])) - len(step.batches) if is_sharded(model) else 0
        for batch in (*step.batches, *[None] * int(num_more)):
            with accelerator.autocast():
                finished = session.filler if batch is None else session.processor.finish(batch.to(accelerator.device))
                losses = model.loss(finished).target_losses
            if batch is None:
                continue
            assert losses is not None
            sums[0] += float(losses.sum())
            sums[1] += batch.target.numel()
            sums[2] += batch.num_answer_characters
        position = step.plan.end
        if any(session.each([session.signals.number])):
            break
    each = session.each(sums)
    so_far = {"position": [*position], "sums": [each[at : at + 3] for at in range(0, len(each), 3)]}
    state.validated_so_far = so_far if all(map(math.isfinite, each)) else None  # JSON holds no other numbers
    model.train()
    session.stop_if_asked()
    loss_sum, num_tokens, num_characters = session.sum(sums)
    record = {
        "step": state.step,
        "validation_loss": loss_sum / num_tokens if num_tokens else None,
        "validation_loss_per_character": loss_sum / num_characters if num_characters else None,
    }
    if session.questions:
        score = _asked(session, score_questions)
        if score is not None:
            record["exact_match"] = score
    if session.scored:
        record |= _asked(session, score_answers) or {}
    state.validated_so_far = None
    return record


def _validated_so_far(session: Session) -> tuple[Position, list[float]]:
    """Give where a validation begins, and this process's sums: of loss, tokens and characters.

    What a stopped one had measured is this process's own where there are as many as then, else the first one's.
    """
    done, accelerator = session.state.validated_so_far, session.accelerator
    if done is None:
        return Position(0, 0), [0.0, 0.0, 0.0]
    sums = done["sums"]
    if len(sums) != accelerator.num_processes:
        sums = [[sum(of_all) for of_all in zip(*sums, strict=True)], *[[0.0] * 3] * accelerator.num_processes]
    return Position(*done["position"]), list(sums[accelerator.process_index])


def _asked(session: Session, ask: Callable[[Session], T]) -> T | None:
    """Let the first process ask the model (all of them, where they share the weights out); None: this one did not.

    Raises:
        StopAsked: in all processes, if a signal came to one that asks.
    """
    result, number = None, 0
    if session.accelerator.is_main_process or is_sharded(session.model):
        try:
            result = ask(session)
        except StopAsked as asked:
            number = asked.number
    number = int(max(session.each([number])))
    if number:
        raise StopAsked(number)
    return result


def score_questions(session: Session) -> float:
    """Answer the fixed validation questions by generation; return the share that is right as a whole string."""
    answers = [each.text for each in _answers(session, session.questions)]
    accepted = [[turn.answer, *turn.references] for turn in (sample.dialogs[0][-1] for sample in session.questions)]
    return exact_match(answers, references=accepted).value


def score_answers(session: Session) -> dict[str, float]:
    """Answer the fixed questions of `train.scores`; return each score by its name."""
    answers = [each.text for each in _answers(session, session.scored)]
    references = [sample.dialogs[0][-1].references for sample in session.scored]
    scores: dict[str, float] = {}
    for name in session.recipe.train.scores:
        computed = metric_named(name).compute(answers, references=references)
        scores |= {given: each.value for given, each in computed.items()}
    return scores


def answer_sample_prompts(session: Session) -> list[dict[str, Any]]:
    """Answer the fixed sample prompts; return what to write down, and keep the images in small.

    Returns:
        A record for each prompt; none in any process but the first.

    Raises:
        StopAsked: in all processes, between two tokens.
    """
    return _asked(session, _answer_sample_prompts) or []


def _answer_sample_prompts(session: Session) -> list[dict[str, Any]]:
    answers = _answers(session, session.sample_prompts)
    if not session.accelerator.is_main_process:
        return []
    records = []
    for number, (sample, said) in enumerate(zip(session.sample_prompts, answers, strict=True)):
        turn = sample.dialogs[0][-1]
        record: dict[str, Any] = {"step": session.state.step, "id": sample.id, "prompt": turn.request}
        record |= {"answer": said.text} if said.error is None else {"answer": "", "error": str(said.error)}
        expected = [accepted for accepted in (turn.answer, *turn.references) if accepted]
        picture = _keep_picture(session, sample, number=number)
        records.append({**record, "stopped": said.has_stopped, "expected": expected, "image": picture})
    return records


def _keep_picture(session: Session, sample: Sample, *, number: int) -> str | None:
    """Keep the first image of a sample prompt in the run folder, small; return its path there."""
    if not sample.images:
        return None
    path = session.run.folder / "sample_prompts" / f"{number}.jpg"
    if not path.exists():
        image = open_image(sample.images[0], max_pixels=session.recipe.data.max_pixels)
        image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
        with whole_file(path) as building:
            image.save(building, format="JPEG", quality=90)
    return f"sample_prompts/{path.name}"


def _answers(session: Session, questions: Sequence[Sample]) -> list[Answer]:
    """Answer some questions; a prompt that leaves no room for an answer costs itself alone, and is told.

    Raises:
        BadSampleError: an image, which was there when the run began, cannot be used any more.
    """
    limit = session.recipe.train.max_new_tokens

    def stop_if_asked(*_: Any) -> None:
        if is_sharded(session.model):
            session.stop_if_asked()  # every process is here
        elif session.signals.number:
            raise StopAsked(session.signals.number)

    listening = session.model.language.register_forward_pre_hook(stop_if_asked, prepend=True)
    try:
        with session.accelerator.autocast(), uncompiled(), dense_attention(session.model), gathered(session.model):
            answers = [*answer_each(session.model, session.processor, questions, max_new_tokens=limit)]
    finally:
        listening.remove()
        session.model.train()
    errors = [each.error for each in answers if each.error is not None]
    for error in errors:
        if isinstance(error, BadSampleError):
            raise error
    if errors and session.accelerator.is_main_process:
        session.progress.say(f"{len(errors)} of {len(answers)} questions have no answer: {errors[0]}")
    return answers
