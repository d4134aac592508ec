"""Everything that a run needs before its first step: checked, its data opened, its model built, and restored.

In: a recipe, and perhaps a run to go on with. Out: a `Session`. `open_session` is readable top to bottom.

    session = open_session(recipe, resume=None, progress=make_progress())
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list, set_seed
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from visgraft.builder.build import add_token_rows, apply_modes, build_model, build_processor
from visgraft.config import Recipe, TrainSettings
from visgraft.data.batch import Batch
from visgraft.data.prompt import end_token_id
from visgraft.data.sources import BadSample, Part, Quarantine
from visgraft.errors import ConfigError, DataError
from visgraft.folder_lock import FolderLock, refuse_held
from visgraft.metrics import metric_named
from visgraft.model.attention_kernel import choose_attention, set_attention
from visgraft.model.checks.preflight import preflight
from visgraft.model.parts import trained_parameters
from visgraft.model.precision import computing_dtype
from visgraft.model.trainable import PartRow, freeze_unused, parts_table
from visgraft.model.vlm import VisionLanguageModel
from visgraft.processor import Processor
from visgraft.reporting.progress import Fitting
from visgraft.runs import Run
from visgraft.starter import resolve
from visgraft.training.compiling import compile_blocks
from visgraft.training.energy import EnergyMeter
from visgraft.training.fingerprints import (
    Change,
    Fingerprints,
    accept,
    find_changes,
    in_words,
    recipe_changes,
    refuse,
    refuse_recipe,
    take_fingerprints,
)
from visgraft.training.optimizer import build_optimizer
from visgraft.training.plan import Planner, Position
from visgraft.training.progress import TrainProgress
from visgraft.training.session import Session
from visgraft.training.sharding import (
    check_sharing,
    check_strategy,
    check_token_rows_train,
    current_parameters,
    launch_notes,
)
from visgraft.training.state import TrainState, find_damage, load_state, set_random_state
from visgraft.training.trackers import Trackers, check_trackers
from visgraft.training.training_data import TrainingData, open_training_data
from visgraft.training.vision_cache import fill_vision_cache

SET_BY_RECIPE = ("base_rate", "weight_decay", "betas")  # of the optimizer


def open_session(
    recipe: Recipe,
    *,
    resume: str | Path | None = None,
    folder: str | Path | None = None,
    lock: FolderLock | None = None,
    allow_changed: bool = False,
    progress: TrainProgress,
) -> Session:
    """Open a run: check, data, model, optimizer, restore.

    Args:
        recipe: of the run; `starter:` names become folders.
        resume: the run to go on with; one without a checkpoint begins again.
        folder: where to make the run folder; None names one by date.
        lock: is taken by the first process, so that no other run is in the folder; whoever made it releases it.
        allow_changed: go on even if the run to resume depends on something else than it did.
        progress: shows what will train, and what takes long.

    Raises:
        VisgraftError: the run cannot begin; no run folder is made then.
    """
    started = time.monotonic()

    # Check: what can be refused before anything is read. What is wrong from here on ends all processes, said once.
    accelerator = make_accelerator(recipe)
    is_main = accelerator.is_main_process
    energy = EnergyMeter(accelerator.device, counts_processors=accelerator.is_local_main_process)
    if is_main:
        check_before_loading(recipe, resume=resume, folder=folder, allow_changed=allow_changed)
        if lock is not None and resume is not None:
            lock.take(Run.open(resume).folder, say=progress.say)
        for note in launch_notes(accelerator):
            progress.say(note)
    local = resolve(recipe, say=progress.say)

    # Data: opened and tried before any weight is loaded.
    processor = build_processor(local)
    data = open_training_data(local, processor, accelerator=accelerator)

    # Model: built, set to train, tried on a batch; what passes gets a run folder.
    set_seed(recipe.train.seed)  # new weights are drawn from it
    model = build_model(local, image_size=processor.image_size)
    add_token_rows(model, local, processor)
    check_token_rows_train(model, recipe, accelerator)
    now, changes = check_unchanged(recipe, data, processor, model, accelerator, resume=resume, allowed=allow_changed)
    model.stop_also_at(end_token_id(processor.tokenizer, processor.prompt_template))
    rows, notes = prepare_model(model, recipe, filler=data.filler, accelerator=accelerator)
    run = open_run(recipe, accelerator, resume=resume, folder=folder, fingerprints=now, lock=lock, say=progress.say)
    if is_main:
        progress.begin(run.folder, table=parts_as_table(rows), notes=[*notes, *data.remarks])
    loader = data.loader
    if recipe.train.cache_vision is not None:
        planners = [planner for planner in (data.planner, data.validation) if planner is not None]
        cache = fill_vision_cache(local, model, planners, accelerator=accelerator, progress=progress)
        loader = replace(loader, vision_cache=cache)

    # Optimizer: over what trains; then the processes join.
    by_part = trained_parameters(model)
    optimizer = build_optimizer(by_part, recipe.train)
    if recipe.train.compile:
        compile_blocks(model)
    network, prepared = accelerator.prepare(model, optimizer)
    trained = current_parameters(model, [name for inside in by_part.values() for name in inside])

    # Restore: where a stopped run was, or the start of a new one.
    set_seed(recipe.train.seed, device_specific=True)  # dropout
    state = TrainState()
    if resume is not None:
        state = restore(run, trained, optimizer=optimizer, accelerator=accelerator, say=progress.say)
        state.position = settle_position(
            state.position,
            data.planner,
            epochs=recipe.train.epochs,
            is_changed=any(change["what"].startswith("data.train") for change in changes),
            say=progress.say,
        )
        if is_main:
            forget_later(run, state, say=progress.say)
            if run.read_fingerprints() is None:
                progress.say(
                    "this run has kept no fingerprints, as older versions kept none: what has changed since it began "
                    "is not known; it keeps them from here on"
                )
            if changes:
                progress.say(f"what this run depends on has changed:\n{in_words(changes)}")
            accept(run, recipe, now=now, changes=changes, step=state.step)
    return Session(
        recipe=recipe, run=run, accelerator=accelerator, model=model, network=network, processor=processor,
        optimizer=prepared, trained=trained, planner=data.planner, validation=data.validation, watch=data.watch,
        loader=loader.limited(state.micro_batch_positions), state=state, progress=progress, filler=data.filler,
        quarantines=open_quarantines(recipe, run, data, is_main=is_main, changes=changes),
        sample_prompts=data.sample_prompts, questions=data.questions, scored=data.scored, counted_until=started,
        energy=energy, trackers=Trackers(recipe, run.folder) if is_main and recipe.train.report_to else None,
    )  # fmt: skip


# --- Check


def check_before_loading(
    recipe: Recipe, *, resume: str | Path | None = None, folder: str | Path | None = None, allow_changed: bool = False
) -> None:
    """Refuse, before anything is read, what cannot work.

    Raises:
        ConfigError: another recipe than that of the run to resume; a tracker that is not there.
        CheckpointError: there is no such run; it is training; something is where the run folder is to be made.
    """
    if resume is not None:
        refuse_held(Run.open(resume).folder)
        if not allow_changed:
            refuse_recipe(recipe_changes(Run.open(resume), recipe))
    elif folder is not None:
        refuse_held(Path(folder).expanduser())
        Run.check_free(folder)
    check_trackers(recipe.train.report_to)
    check_scores(recipe.train)


def check_scores(settings: TrainSettings) -> None:
    """See that scores exist, can be computed of answers, and that the one to choose by is among them.

    Raises:
        ConfigError: one does not.
        MissingAssetError: one needs what is not installed.
    """
    measured = ["exact_match"] if settings.exact_match_samples else []
    for name in settings.scores:
        metric = metric_named(name)
        if metric.needs != "answers":
            raise ConfigError(f"train.scores: got {name}, which needs no answers; validation measures the loss anyway")
        measured += metric.gives
    if settings.best_by is not None and settings.best_by not in measured:
        raise ConfigError(f"train.best_by: got {settings.best_by!r}, need one of {', '.join(measured)}")


def make_accelerator(recipe: Recipe) -> Accelerator:
    """Make the accelerator of a run; under torchrun or `accelerate launch` it joins the other processes.

    Raises:
        ConfigError: the device lacks the recipe's precision, or the processes share weights in a way that the loop
            does not know.
    """
    # Without cpu=True, accelerate takes each of several processes on a CPU for one on its own.
    cpu = torch.accelerator.current_accelerator(check_available=True) is None
    dtype = computing_dtype(recipe.train.precision, device=PartialState(cpu=cpu).device)
    words = {None: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}
    if AcceleratorState._shared_state:  # one program may train one run in bf16 and the next in fp32
        AcceleratorState._reset_state()
    check_sharing(num_processes=PartialState().num_processes)
    accelerator = Accelerator(cpu=cpu, mixed_precision=words[dtype])
    check_strategy(accelerator)
    return accelerator


def check_unchanged(
    recipe: Recipe,
    data: TrainingData,
    processor: Processor,
    model: VisionLanguageModel,
    accelerator: Accelerator,
    *,
    resume: str | Path | None,
    allowed: bool,
) -> tuple[Fingerprints, list[Change]]:
    """Look at what the run depends on: as it is now, and what of it has changed since the run began.

    The first process looks; all know. What a resumed run may change of its recipe is among the changes.

    Raises:
        ConfigError: something changed that may not.
    """
    seen: list[Any] = [{}, [], []]
    if accelerator.is_main_process:
        now = take_fingerprints(recipe, data=data, processor=processor, model=model)
        seen = [now, [], []]
        if resume is not None:
            run = Run.open(resume)
            seen = [now, recipe_changes(run, recipe), find_changes(run.read_fingerprints(), now)]
    broadcast_object_list(seen)
    now, of_recipe, others = seen
    if resume is not None and not allowed:
        refuse(others, Run.open(resume))
    return now, [*of_recipe, *others]


# --- Model


def prepare_model(
    model: VisionLanguageModel, recipe: Recipe, *, filler: Batch, accelerator: Accelerator
) -> tuple[list[PartRow], Sequence[str]]:
    """Set what trains, move the model to its device and check it on a real batch.

    Returns:
        The rows of the table of parts, and what the check has to say.

    Raises:
        ConfigError: nothing trains, or a setting that the parts cannot take.
        PreflightError: the model does not compute what it should.
    """
    frozen_dtype = computing_dtype(recipe.train.precision, device=accelerator.device)
    report = apply_modes(model, recipe.train, frozen_dtype=frozen_dtype)
    model.to(accelerator.device)
    asked = recipe.model.attention
    set_attention(model, choose_attention(model.language, device=accelerator.device, asked=asked))
    with accelerator.autocast():
        model.train()
        report = freeze_unused(model, report, loss=lambda: _loss(model, filler))
        checked = preflight(model.train(), filler)
    trained = trained_parameters(model)
    rates = {part: recipe.train.learning_rate_of(part) for part, inside in trained.items() if inside}
    return parts_table(model, report, learning_rate=rates), checked.notes


def _loss(model: VisionLanguageModel, batch: Batch) -> Tensor:
    loss = model.loss(batch).loss
    assert loss is not None
    return loss


def parts_as_table(rows: Sequence[PartRow]) -> Fitting:
    """Draw the table of parts; in words where it is too narrow for it."""
    table, lines = Table(box=None, pad_edge=False), Table.grid(padding=(0, 2))
    for name, justify in [("part", "left"), ("trains", "left"), ("parameters", "right"), ("trained", "right"),
                          ("dtype", "left"), ("learning rate", "right"), ("notes", "left")]:  # fmt: skip
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for row in rows:
        rate = "" if row.learning_rate is None else f"{row.learning_rate:g}"
        counts = (f"{row.num_parameters:,}", f"{row.num_trainable:,}")
        table.add_row(row.part, row.mode, *counts, row.dtype, rate, "\n".join(row.notes))
        words = f"{row.mode}: {counts[0]} parameters, {counts[1]} trained, {row.dtype}"
        said = [words + (f", learning rate {rate}" if rate else ""), *row.notes]
        lines.add_row(row.part, Text("; ".join(said), overflow="fold"))
    return Fitting(table, lines)


# --- Run folder, and what it remembers


def open_run(
    recipe: Recipe,
    accelerator: Accelerator,
    *,
    resume: str | Path | None,
    folder: str | Path | None,
    fingerprints: Fingerprints,
    lock: FolderLock | None,
    say: Callable[[str], None],
) -> Run:
    """Make or open the run folder in the first process; the others are sent its path."""
    where: list[Any] = [None]
    if accelerator.is_main_process:
        if resume is None and folder is not None and lock is not None:
            path = Path(folder).expanduser().absolute()
            path.mkdir(parents=True, exist_ok=True)
            lock.take(path, say=say)
        run = Run.create(recipe, folder=folder, fingerprints=fingerprints) if resume is None else Run.open(resume)
        if resume is None and folder is None and lock is not None:
            lock.take(run.folder, say=say)
        where = [str(run.folder)]
    broadcast_object_list(where)
    return Run.open(where[0])


def restore(
    run: Run,
    trained: Mapping[str, nn.Parameter],
    *,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    say: Callable[[str], None],
) -> TrainState:
    """Read the newest whole checkpoint into weights, optimizer and random states; a run that has none begins again.

    Raises:
        CheckpointError: it is not of this model, or none is whole.
    """
    of_recipe = [{key: group[key] for key in SET_BY_RECIPE} for group in optimizer.param_groups]
    found: list[Any] = [None]
    if accelerator.is_main_process and run.checkpoints():
        found = [run.latest_checkpoint(say=say)]
    broadcast_object_list(found)  # a checkpoint that one process can read is that of all
    if found[0] is None:
        if accelerator.is_main_process:
            say(f"{run.folder} holds no checkpoint yet: the run begins again")
        return TrainState()
    _, checkpoint = found[0]
    state, random_states = load_state(checkpoint, trained=trained, optimizer=optimizer, scaler=accelerator.scaler)
    for group, own in zip(optimizer.param_groups, of_recipe, strict=True):
        group.update(own)  # what the recipe says now rules, not what it said when the checkpoint was written
    if accelerator.process_index < len(random_states):
        set_random_state(random_states[accelerator.process_index], device=accelerator.device)
    accelerator.wait_for_everyone()  # the folder may be moved back into its place now
    return state


def forget_later(run: Run, state: TrainState, *, say: Callable[[str], None]) -> None:
    """Forget what was written behind the state that a run goes on from, and tell what that state misses."""
    for log, missing in run.missing_of_logs(state.logs).items():
        say(f"{log}.jsonl has lost at least {missing:,} bytes of records that were there at step {state.step}")
    run.resume_from(state.step, logs=state.logs)
    damage = None if state.best_step is None else find_damage(run, state.best_step)
    if damage is not None:
        say(f"the best weights are lost: {damage}; unless later ones are better, the model will be the newest")


def settle_position(
    position: Position, planner: Planner, *, epochs: float, is_changed: bool, say: Callable[[str], None]
) -> Position:
    """Return where a resumed run goes on: where it stopped, or with the next epoch if its data end before that.

    Args:
        position: where it stopped.
        planner: of the training data.
        epochs: of the run.
        is_changed: the training data are not what they were.
        say: tells the user.

    Raises:
        DataError: the data have become so few that nothing of the run is left.
    """
    if not planner.has_known_length:
        return position  # streams know their own places
    settled = position
    while settled.epoch < epochs and settled.cursor >= planner.num_groups(settled.epoch):
        settled = Position(settled.epoch + 1, 0)
    is_over = planner.epochs_done(settled) >= epochs
    if settled == position and not (is_over and is_changed):
        return position
    what = (
        f"data.train: the run has learned from {position.cursor:,} groups of texts of its epoch {position.epoch + 1}, "
        f"of which there are only {planner.num_groups(position.epoch):,} now"
    )
    if is_over:
        raise DataError(
            f"{what}: nothing is left of train.epochs: {epochs:g}; bring the data back, or set train.epochs to more"
        )
    say(f"{what}: it goes on with epoch {settled.epoch + 1}")
    return settled


def open_quarantines(
    recipe: Recipe, run: Run, data: TrainingData, *, is_main: bool, changes: Sequence[Change] = ()
) -> dict[Part, Quarantine]:
    """Open the lists of bad samples of train and validation: those that the run knows, and what cannot even be read.

    Raises:
        DataError: there are too many of them; of data that changed since, those met again will tell.
    """
    records = [{"part": "train", **record} for record in run.read("quarantine")]  # older runs wrote no part
    planners: dict[Part, Planner | None] = {"train": data.planner, "validation": data.validation}
    quarantines: dict[Part, Quarantine] = {}
    for part, planner in planners.items():
        if planner is None:
            continue
        names = [field.name for field in fields(BadSample)]
        quarantine = quarantines[part] = Quarantine(
            num_samples=planner.num_samples(Position(0, 0)),
            max_bad_fraction=recipe.data.max_bad_fraction,
            known=[BadSample(**{name: each[name] for name in names}) for each in records if each["part"] == part],
            write=(lambda record: run.append("quarantine", record)) if is_main else None,
        )
        for bad in planner.unreadable:
            quarantine.add(bad)
        if planner.has_known_length and not any(change["what"].startswith(f"data.{part}") for change in changes):
            quarantine.check()
    return quarantines
