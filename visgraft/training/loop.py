"""A whole training run, top to bottom.

In: a recipe (a path, a dict or a Recipe), or a run to go on with. Out: the run folder, the trained model in `model/`.

    folder = train("recipe.yaml")
    folder = train(resume=folder)        # after Ctrl-C

One step is a budget of text tokens. Every process takes every n-th group of the step, goes through its share in
micro-batches, and adds up gradients of the summed loss divided by the number of supervised tokens of all processes: so
neither the number of processes nor the size of micro-batches changes what is computed.

A step from here on: plan.py says which samples form it, steps.py makes its batches (data/batch.py), gradients.py runs
them forward (model/vlm.py, which asks model/sequence.py who sees whom) and backward, `update` below moves the weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object

from visgraft.atomic import whole_folder
from visgraft.config import Recipe, load_recipe
from visgraft.errors import ConfigError, ModelError
from visgraft.reporting.progress import TrainProgress, make_progress
from visgraft.runs import Run
from visgraft.training.gradients import Gradients, add_gradients, samples_not_finite
from visgraft.training.interrupt import Interrupted as Interrupted
from visgraft.training.interrupt import interrupts
from visgraft.training.optimizer import rate_factor, set_learning_rates
from visgraft.training.session import Session
from visgraft.training.setup import open_session
from visgraft.training.sharding import is_sharded, whole, whole_model
from visgraft.training.state import get_random_state, load_trained, save_state
from visgraft.training.steps import Step, Steps, load_steps
from visgraft.training.summary import note_cost, write_summary
from visgraft.training.validate import answer_sample_prompts, validate


def train(
    recipe: str | Path | Mapping[str, Any] | Recipe | None = None,
    *,
    resume: str | Path | None = None,
    folder: str | Path | None = None,
    progress: TrainProgress | None = None,
    stop: Callable[[int], bool] | None = None,
) -> Path:
    """Train a recipe and return the run folder.

    Args:
        recipe: a path, a dict or a Recipe; None resumes a run under its own.
        resume: a run folder to go on with from its newest checkpoint, as if it had never stopped.
        folder: where to make the run folder; None names one by date in the recipe's `output`.
        progress: what the user sees; None shows it on standard error.
        stop: given the number of steps done, after each; True stops the run as Ctrl-C does.

    Raises:
        Interrupted: Ctrl-C or `stop`; the run is saved and can be resumed.
        VisgraftError: bad input, or a loss that is not finite.
    """
    if recipe is None:
        if resume is None:
            raise ConfigError("train: got neither a recipe nor a run to resume; give one of them")
        recipe = Run.open(resume).folder
    recipe = load_recipe(recipe)
    with progress or make_progress() as shown:
        session = open_session(recipe, resume=resume, folder=folder, progress=shown)
        steps = load_steps(session.planner, session.state.position, epochs=recipe.train.epochs, settings=session.loader)
        with interrupts(say=shown.say) as is_interrupted, closing(session):
            if session.state.step:
                after_step(session)  # what a stopped run still owes its last step
            while not session.is_over:
                train_step(session, steps)
                is_to_stop = is_interrupted() or (stop is not None and stop(session.state.step))
                if any(session.sum([is_to_stop])):  # in one process, and all stop here
                    save_checkpoint(session)
                    raise Interrupted(session.run.folder)
                after_step(session)
        finish(session)
    return session.run.folder


# --- One step


def train_step(session: Session, steps: Steps) -> None:
    """Learn from the next step: backward over its micro-batches, update, write down."""
    started = time.monotonic()
    step = next(steps)
    accelerator, state = session.accelerator, session.state
    set_bad_samples_aside(session, step)
    done = add_gradients(session, step, steps)
    if done.total:
        record = update(session, done)
    state.position = step.plan.end
    state.epoch_ended = step.plan.end.epoch > step.plan.start.epoch
    if not done.total:
        return  # every sample of the step was bad
    state.step += 1
    state.seconds += time.monotonic() - started
    epoch, seen = session.planner.epochs_done(state.position), session.count_texts(step)
    record = {"step": state.step, "epoch": epoch, **record, "sources": seen, "seconds": time.monotonic() - started}
    if accelerator.is_main_process:
        session.record(record)
        session.progress.step(record, fraction=session.fraction_done)


def update(session: Session, done: Gradients) -> dict[str, Any]:
    """Clip, check that the numbers are numbers, and take the optimizer's step; return what to write down."""
    state, settings, step, total = session.state, session.recipe.train, done.step, done.total
    norm = float(whole(session.accelerator.clip_grad_norm_(session.trained.values(), settings.clip_norm or math.inf)))
    loss_sum = sum(float(part.sum()) for part in done.losses)
    sums = dict(zip(("loss", *step.counts()), session.sum([loss_sum, *step.counts().values()]), strict=True))
    has_scaler = session.accelerator.scaler is not None  # infinite gradients are its business: it skips by itself
    is_finite = math.isfinite(sums["loss"]) and (has_scaler or math.isfinite(norm))
    skipped = [] if is_finite else sorted(set(gather_object(samples_not_finite(session, done))))
    if not is_finite and settings.on_nonfinite == "stop":
        save_checkpoint(session)  # as it was before this step
        raise ModelError(
            f"step {state.step + 1}: the loss or its gradient is not finite; samples: {', '.join(skipped) or 'any'}. "
            "Look at them, lower train.learning_rate, or resume with train.on_nonfinite: skip"
        )
    factor = rate_factor(
        state.step,
        progress=session.fraction_done,
        warmup_steps=settings.warmup_steps,
        schedule=settings.schedule,
    )
    rates = set_learning_rates(session.optimizer, factor)
    if is_finite or has_scaler:
        session.optimizer.step()
    session.optimizer.zero_grad()
    state.samples += int(sums["samples"])
    state.supervised_tokens += total
    return {
        "loss": sums["loss"] / total,
        "loss_per_character": sums["loss"] / max(1, sums["answer_characters"]),
        "supervised_tokens": total,
        **{name: int(sums[name]) for name in ("text_tokens", "image_tokens", "samples", "dialogs", "truncated")},
        "padding": sums["pads"] / sums["positions"],
        "learning_rate": rates,
        "grad_norm": norm,
        **({"skipped": skipped} if skipped else {}),
    }


def set_bad_samples_aside(session: Session, step: Step) -> None:
    """Put the bad samples of all processes into quarantine; too many of them end the run in every process."""
    session.quarantine.expect(session.planner.num_samples(step.plan.end))
    if any(session.sum([len(step.bad)])):
        for bad in gather_object(list(step.bad)):
            session.quarantine.add(bad)


# --- Between steps


def after_step(session: Session) -> None:
    """Validate, answer the sample prompts and save, each if it is due and was not done yet for this step."""
    state, settings, is_main = session.state, session.recipe.train, session.accelerator.is_main_process
    is_best = False
    if session.validation and state.validated_step != state.step and is_due(session, settings.validate_every_steps):
        record = validate(session)
        is_best = state.best_loss is None or record["validation_loss"] < state.best_loss
        if is_best:
            state.best_step, state.best_loss = state.step, record["validation_loss"]
        state.validated_step = state.step
        if is_main:
            session.record(record)
            session.progress.validated(record)
    if state.sampled_step != state.step and is_due(session, settings.sample_every_steps):
        state.sampled_step = state.step
        if is_main or is_sharded(session.model):
            answer_sample_prompts(session)
    if is_best or is_due(session, settings.checkpoint_every_steps):
        save_checkpoint(session)


def is_due(session: Session, every: int | None) -> bool:
    """Say whether what happens every so many steps (None: at the end of every epoch) happens now."""
    now = session.state.epoch_ended if every is None else session.state.step % every == 0
    return now or session.is_over


def save_checkpoint(session: Session) -> None:
    """Save all that the next step depends on, and remove checkpoints that are neither new nor the best."""
    accelerator, run, state = session.accelerator, session.run, session.state
    note_cost(session)
    states = gather_object([get_random_state(accelerator.device)])
    trained, moments = whole(session.trained), whole(session.optimizer.state_dict())
    if accelerator.is_main_process:
        with run.new_checkpoint(state.step) as folder:
            save_state(folder, state, trained=trained, moments=moments, scaler=accelerator.scaler, random_states=states)
        best = () if state.best_step is None else (state.best_step,)
        run.prune_checkpoints(keep=session.recipe.train.keep_checkpoints, protect=best)
    accelerator.wait_for_everyone()


def finish(session: Session) -> None:
    """Write the model, the best by validation or, without validation, the last; then the run's summary."""
    state, run = session.state, session.run
    if state.best_step is not None and state.best_step != state.step:
        load_trained(run.checkpoints()[state.best_step], trained=session.trained)
        session.progress.say(f"the model is that of step {state.best_step}, the best by validation")
    recipe, accelerator = session.recipe, session.accelerator
    model = whole_model(session.model, trained=session.trained, recipe=recipe, accelerator=accelerator)
    if session.accelerator.is_main_process:
        with whole_folder(run.model_path) as folder:
            model.save_pretrained(folder, full=session.recipe.train.save == "full")
            session.processor.save_pretrained(folder)
    note_cost(session)
    if session.accelerator.is_main_process:
        write_summary(session)
    session.accelerator.wait_for_everyone()
