"""How good a model is in the middle of its training: loss on held-out data, and answers to fixed questions.

In: a session. Out: numbers for `metrics.jsonl`, answers for `samples.jsonl`. Nothing here touches weights or any
random state, so a run that validates more often is the same run.

    record = validate(session)
    answer_sample_prompts(session)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from visgraft.atomic import whole_file
from visgraft.data.images.opening import open_image
from visgraft.data.sample import Sample
from visgraft.inference import answer
from visgraft.metrics.text_match import exact_match
from visgraft.model.attention_kernel import dense_attention
from visgraft.training.compiling import uncompiled
from visgraft.training.plan import Position
from visgraft.training.session import Session
from visgraft.training.sharding import gathered, is_sharded
from visgraft.training.steps import load_steps

PICTURE_SIDE = 320  # pixels, of the longer side of a sample image that a run keeps


@torch.no_grad()
def validate(session: Session) -> dict[str, Any]:
    """Measure loss on the validation data and, if the recipe asks for it, the share of right answers."""
    assert session.validation is not None
    accelerator, model = session.accelerator, session.model
    loss_sum, num_tokens, num_characters = 0.0, 0, 0
    model.eval()
    for step in load_steps(session.validation, Position(0, 0), epochs=1.0, settings=session.loader):
        # Processes that share the weights out run the model together, one that has no batch left with the filler.
        num_more = max(session.each([len(step.batches)])) - len(step.batches) if is_sharded(model) else 0
        for batch in (*step.batches, *[None] * int(num_more)):
            with accelerator.autocast():
                finished = session.filler if batch is None else session.processor.finish(batch.to(accelerator.device))
                losses = model.loss(finished).target_losses
            if batch is None:
                continue
            assert losses is not None
            loss_sum += float(losses.sum())
            num_tokens += batch.target.numel()
            num_characters += batch.num_answer_characters
    model.train()
    loss_sum, num_tokens, num_characters = session.sum([loss_sum, num_tokens, num_characters])
    record = {
        "step": session.state.step,
        "validation_loss": loss_sum / max(1, num_tokens),
        "validation_loss_per_character": loss_sum / max(1, num_characters),
    }
    if session.questions and (accelerator.is_main_process or is_sharded(model)):
        record["exact_match"] = score_questions(session)
    return record


def score_questions(session: Session) -> float:
    """Answer the fixed validation questions by generation; return the share that is right as a whole string."""
    answers = _answers(session, session.questions)
    accepted = [[turn.answer, *turn.references] for turn in (sample.dialogs[0][-1] for sample in session.questions)]
    return exact_match(answers, references=accepted).value


def answer_sample_prompts(session: Session) -> None:
    """Answer the fixed sample prompts and write the answers down, beside the images in small."""
    stopped: list[bool] = []
    texts = _answers(session, session.sample_prompts, stopped=stopped)
    if not session.accelerator.is_main_process:
        return
    for number, (sample, text, has_stopped) in enumerate(zip(session.sample_prompts, texts, stopped, strict=True)):
        turn = sample.dialogs[0][-1]
        record = {"step": session.state.step, "id": sample.id, "prompt": turn.request, "answer": text}
        expected = [accepted for accepted in (turn.answer, *turn.references) if accepted]
        picture = _keep_picture(session, sample, number=number)
        session.run.append("samples", {**record, "stopped": has_stopped, "expected": expected, "image": picture})


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


def _answers(session: Session, questions: Sequence[Sample], *, stopped: list[bool] | None = None) -> list[str]:
    limit = session.recipe.train.max_new_tokens
    with session.accelerator.autocast(), uncompiled(), dense_attention(session.model), gathered(session.model):
        texts = answer(session.model, session.processor, questions, max_new_tokens=limit, stopped=stopped)
    session.model.train()
    return texts
