"""A whole training run, top to bottom.

In: a recipe (a path, a dict or a Recipe), or a run to go on with. Out: the run folder, the trained model in `model/`.

    folder = train("recipe.yaml")
    folder = train(resume=folder)        # after Ctrl-C, or whatever else ended it

One step is a budget of text tokens. Every process takes every n-th group of the step, goes through its share in
micro-batches, and adds up gradients of the summed loss divided by the number of supervised tokens of all processes: so
neither the number of processes nor the size of micro-batches changes what is computed.

A step from here on: plan.py says which samples form it, steps.py makes its batches (data/batch.py), gradients.py runs
them forward (model/vlm.py, which asks model/sequence.py who sees whom) and backward, `update` below moves the weights.
"""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from torch import Tensor

from visgraft.atomic import whole_folder
from visgraft.config import Recipe, load_recipe
from visgraft.errors import CheckpointError, ConfigError, ModelError, TooManyBadError, VisgraftError
from visgraft.folder_lock import FolderLock, clear_dead
from visgraft.metrics.score_names import better_of
from visgraft.parsing import parse_json
from visgraft.runs import Run
from visgraft.training.gradients import Gradients, add_gradients, samples_not_finite
from visgraft.training.interrupt import Interrupted as Interrupted
from visgraft.training.interrupt import StopAsked, interrupts
from visgraft.training.optimizer import rate_factor, set_learning_rates
from visgraft.training.progress import TrainProgress, make_progress
from visgraft.training.session import Session
from visgraft.training.setup import open_session
from visgraft.training.sharding import is_sharded, whole, whole_model
from visgraft.training.state import RandomState, find_damage, load_trained, save_state
from visgraft.training.steps import Steps, load_steps
from visgraft.training.summary import note_cost, write_summary
from visgraft.training.text_watch import ENOUGH_TEXTS
from visgraft.training.together import LOOK_EVERY_S, Beside, ending_together
from visgraft.training.validate import answer_sample_prompts, validate

LEAST_SECONDS_TO_SAVE = 5.0  # that are left for it, before any checkpoint has shown how long it takes


def train(
    recipe: str | Path | Mapping[str, Any] | Recipe | None = None,
    *,
    resume: str | Path | None = None,
    folder: str | Path | None = None,
    resume_or_start: bool = False,
    allow_changed: bool = False,
    progress: TrainProgress | None = None,
    stop: Callable[[int], bool] | None = None,
) -> Path:
    """Train a recipe and return the run folder.

    Args:
        recipe: a path, a dict or a Recipe; None resumes a run under its own.
        resume: a run folder to go on with from its newest checkpoint, as if it had never stopped; without a checkpoint
            the run begins again.
        folder: where to make the run folder; None names one by date in the recipe's `output`.
        resume_or_start: go on with the run in `folder` if one is there, else begin it; a finished one stays as it is.
        allow_changed: resume even if data, models, settings or libraries are not those that the run began with; what
            changed is written down in `metrics.jsonl`.
        progress: what the user sees; None shows it on standard error.
        stop: given the number of steps done, after each; True stops the run as Ctrl-C does.

    Raises:
        Interrupted: Ctrl-C, another signal that stops, or `stop`; the run is saved and can be resumed.
        VisgraftError: bad input, a run that another process trains, or a loss that is not finite.
    """
    if recipe is None:
        if resume is None:
            raise ConfigError("train: got neither a recipe nor a run to resume; give one of them")
        recipe = Run.open(resume).folder
    recipe = load_recipe(recipe)
    with (
        FolderLock() as lock,
        progress or make_progress() as shown,
        ending_together(tidy=lambda: leave(shown, lock), leaves=Interrupted),
    ):
        if resume_or_start:
            run = run_to_go_on_with(folder, resume=resume)
            if run is not None and run.status() == "finished" and run.model_path.is_dir():
                shown.say(f"{run.folder}: this run is finished; --resume goes on with it under a longer recipe")
                clear_dead(run.folder)  # it may have been killed as it was about to let go
                return run.folder
            resume = None if run is None else run.folder
        session = open_session(
            recipe, resume=resume, folder=folder, lock=lock, allow_changed=allow_changed, progress=shown
        )
        is_main = session.accelerator.is_main_process
        with interrupts(say=lambda text: shown.say(text) if is_main else None) as signals, closing(session):
            session.signals = signals
            signals.seconds_to_save = lambda: max(LEAST_SECONDS_TO_SAVE, 2 * session.seconds_to_save)
            signals.too_late = lambda number: save_last_step(session, lock=lock, number=number)
            try:
                take_steps(session, lock=lock, stop=stop)
            except TooManyBadError:
                if session.state.step:
                    save_checkpoint(session)  # the finished steps are none the worse for it
                raise
            except StopAsked as asked:
                save_checkpoint(session)
                signals.settle()
                raise Interrupted(session.run.folder, number=asked.number) from None
        finish(session)
    return session.run.folder


def run_to_go_on_with(folder: str | Path | None, *, resume: str | Path | None) -> Run | None:
    """Find the run that is in a folder; None: none was begun there.

    Raises:
        ConfigError: no folder is named, or a run to resume as well.
    """
    if folder is None or resume is not None:
        got = "no folder" if resume is None else f"--resume {resume} too"
        raise ConfigError(f"--resume-or-start: got {got}; name the run's folder, with --output DIR (Python: folder)")
    run = Run(Path(folder).expanduser().absolute())
    return None if run.status() == "new" else Run.open(run.folder)


def take_steps(session: Session, *, lock: FolderLock, stop: Callable[[int], bool] | None) -> None:
    """Take step after step until the run is over, and do after each what is due.

    Raises:
        StopAsked: in all processes, behind a step or in what comes after it.
    """
    steps = load_steps(
        session.planner, session.state.position, epochs=session.recipe.train.epochs, settings=session.loader
    )
    if session.state.step:
        after_step(session)  # what a stopped run still owes its last step
    told = 0
    while not session.is_over:
        train_step(session, steps)
        seen, is_complete = session.watch.num_texts, session.state.epoch_ended or session.is_over
        if seen > told and (is_complete or (not told and seen >= ENOUGH_TEXTS)):
            session.tell_of_texts()
            told = seen
        number = session.signals.number or (stop is not None and stop(session.state.step) and signal.SIGINT)
        wishes = session.each([number, is_checkpoint_due(session), lock.is_lost])
        if any(wishes[2::3]):
            raise CheckpointError(
                f"{session.run.folder}: another process took this run over, as this one did not answer for minutes; "
                "go on with --resume when that one has ended"
            )
        if any(wishes[::3]):
            raise StopAsked(int(max(wishes[::3])))
        if session.state.step:  # nothing has been learned as long as all samples were bad
            after_step(session, is_checkpoint_due=bool(wishes[1]))  # by the first process's clock


# --- One step


def train_step(session: Session, steps: Steps) -> None:
    """Learn from the next step: backward over its micro-batches, update, write down."""
    started = time.monotonic()
    step = next(steps)
    accelerator, state = session.accelerator, session.state
    session.set_bad_samples_aside(step, part="train")
    done = add_gradients(session, step, steps)
    with session.is_changing:
        if done.total:
            record = update(session, done)
        state.position = step.plan.end
        state.epoch_ended = step.plan.end.epoch > step.plan.start.epoch
        if not done.total:
            return  # every sample of the step was bad
        state.step += 1
        state.seconds += time.monotonic() - started
        epoch, seen = session.planner.epochs_done(state.position), session.count_texts(step)
        session.remember_random_state()
        record = {"step": state.step, "epoch": epoch, **record, "sources": seen, "seconds": time.monotonic() - started}
        if accelerator.is_main_process:
            session.record(record)
    if accelerator.is_main_process:
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
        fraction_done=session.fraction_done,
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


# --- Between steps


def after_step(session: Session, *, is_checkpoint_due: bool = False) -> None:
    """Validate, answer the sample prompts and save, each if it is due and was not done yet for this step.

    Raises:
        StopAsked: in all processes, in the middle of it; what was not done yet is done when the run is resumed.
    """
    state, settings, is_main = session.state, session.recipe.train, session.accelerator.is_main_process
    is_best = False
    if session.validation and state.validated_step != state.step and is_due(session, settings.validate_every_steps):
        record = validate(session)
        badness = how_bad(session, record)
        with session.is_changing:
            is_best = math.isfinite(badness) and (state.best_loss is None or badness < state.best_loss)
            if is_best:
                state.best_step, state.best_loss = state.step, badness
            state.validated_step = state.step
            if is_main:
                session.record(record)
                session.progress.validated(record)
        session.watch.close("validation")
        session.tell_of_texts()
    if state.sampled_step != state.step and is_due(session, settings.sample_every_steps):
        records = answer_sample_prompts(session)
        with session.is_changing:
            state.sampled_step = state.step
            for record in records:
                session.run.append("samples", record)
    if is_best or is_checkpoint_due or is_due(session, settings.checkpoint_every_steps):
        save_checkpoint(session)


def how_bad(session: Session, record: Mapping[str, Any]) -> float:
    """Give what the best step has least of: the validation loss or, of a score to choose by, its negative.

    Every process calls it, as only the first has scores; the same comes out in all. Infinite of what was not measured.
    """
    name = session.recipe.train.best_by
    value = record.get("validation_loss" if name is None else name)
    bad = math.inf if value is None else value if name is None or better_of(name) == "lower" else -value
    return bad if name is None else float(session.each([bad])[0])


def is_due(session: Session, every: int | None) -> bool:
    """Say whether what happens every so many steps (None: at the end of every epoch) happens now."""
    now = session.state.epoch_ended if every is None else session.state.step % every == 0
    return now or session.is_over


def is_checkpoint_due(session: Session) -> bool:
    """Say whether so much time has gone by since the last checkpoint that there has to be one."""
    minutes = session.recipe.train.checkpoint_every_minutes
    return minutes is not None and time.monotonic() - session.saved_at >= 60.0 * minutes


def save_checkpoint(session: Session) -> None:
    """Save all that the next step depends on, and remove checkpoints that are neither new nor the best."""
    with session.is_changing:
        note_cost(session)
        states = gather_object([session.random_state])
        trained, moments = whole(session.trained), whole(session.optimizer.state_dict())
        if session.accelerator.is_main_process:
            write_checkpoint(session, trained=trained, moments=moments, random_states=states)
    session.accelerator.wait_for_everyone()


def write_checkpoint(
    session: Session, *, trained: Mapping[str, Tensor], moments: Mapping[str, Any], random_states: list[RandomState]
) -> None:
    """Write the checkpoint of the last finished step, all tensors whole; the first process does so."""
    run, state, begun = session.run, session.state, time.monotonic()
    scaler = session.accelerator.scaler
    state.logs = run.sync_logs()
    folder = run.checkpoint_path(state.step)
    save_state(folder, state, trained=trained, moments=moments, scaler=scaler, random_states=random_states)
    best = () if state.best_step is None else (state.best_step,)
    run.prune_checkpoints(keep=session.recipe.train.keep_checkpoints, protect=best)
    session.saved_at = time.monotonic()
    session.seconds_to_save = session.saved_at - begun


def save_last_step(session: Session, *, lock: FolderLock, number: int) -> None:
    """Save the last finished step while the next one is on its way, as that takes too long to wait for.

    The thread that hears signals calls it. Only the end of a step changes weights, moments and state, and that end
    holds `is_changing`; what the other processes add, their random states, comes beside the step. Behind Ctrl-C the
    step goes on to its end; any other signal ends the process, as who sent it will not wait. Where the processes share
    the weights out, only all together have them, so there the step is finished first.
    """
    if is_sharded(session.model):
        return
    beside = Beside(str(session.run.folder))
    try:
        is_saved = _write_last_step(session, beside, until=time.monotonic() + session.signals.seconds_to_save())
    except (VisgraftError, OSError) as error:  # the step goes on; its own save may find room again
        session.progress.say(f"the last finished step is not saved: {error}")
        return
    if not is_saved or number == signal.SIGINT:
        return
    if session.accelerator.is_main_process:
        session.progress.say(str(Interrupted(session.run.folder)))
    beside.part(is_main=session.accelerator.is_main_process)
    session.close()
    leave(session.progress, lock)
    os._exit(128 + number)


def leave(progress: TrainProgress, lock: FolderLock) -> None:
    """Tidy up in a process that ends in the middle of its work."""
    progress.__exit__()
    lock.release()


def _write_last_step(session: Session, beside: Beside, *, until: float) -> bool:
    """Let the first process write the last step that all have finished; say whether it did."""
    accelerator = session.accelerator
    while time.monotonic() < until:
        with session.is_changing:  # for a moment each time: one of them may be about to finish its step
            step = session.state.step
            states = beside.gather(f"random states of step {step}", json.dumps(session.random_state))
            if states is not None and accelerator.is_main_process:
                if accelerator.num_processes == 1:
                    note_cost(session)
                moments, random_states = session.optimizer.state_dict(), [parse_json(state) for state in states]
                write_checkpoint(session, trained=session.trained, moments=moments, random_states=random_states)
                beside.tell(f"saved step {step}")
                session.progress.say(f"step {step} is saved, for the one behind it takes long")
                return True
        if states is not None and beside.hears(f"saved step {step}"):
            return True
        time.sleep(LOOK_EVERY_S)
    return False


def finish(session: Session) -> None:
    """Write the model, the best by validation or, without validation, the last; then the run's summary."""
    run, recipe, accelerator = session.run, session.recipe, session.accelerator
    step = take_best(session)
    model = whole_model(session.model, trained=session.trained, recipe=recipe, accelerator=accelerator)
    if accelerator.is_main_process:
        is_full = recipe.train.save == "full"
        kept = model.parameters() if is_full else session.trained.values()
        with whole_folder(run.model_path, num_bytes=sum(weight.nbytes for weight in kept)) as folder:
            model.save_pretrained(folder, full=is_full)
            session.processor.save_pretrained(folder)
    note_cost(session)
    if accelerator.is_main_process:
        write_summary(session, model_step=step)
    accelerator.wait_for_everyone()


def take_best(session: Session) -> int:
    """Bring the best weights back; the newest stay where the best are lost. Return the step whose weights they are."""
    state, run = session.state, session.run
    if state.best_step is None or state.best_step == state.step:
        return state.step
    damage = find_damage(run, state.best_step)
    is_lost = any(session.sum([damage is not None]))  # in one process, and all keep the newest
    by = session.recipe.train.best_by or "validation"
    step, text = state.best_step, f"the model is that of step {state.best_step}, the best by {by}"
    if is_lost:
        why = damage or "another process could not read them"
        step, text = state.step, f"the best weights are lost: {why}; the model is that of step {state.step}, the newest"
    else:
        load_trained(run.checkpoints()[state.best_step], trained=session.trained)
    if session.accelerator.is_main_process:
        session.progress.say(text)
    return step
