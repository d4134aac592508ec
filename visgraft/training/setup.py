"""Everything that a run needs before its first step: checked, its data opened, its model built, and restored.

In: a recipe, and perhaps a run to go on with. Out: a `Session`. `open_session` is readable top to bottom.

    session = open_session(recipe, resume=None, progress=make_progress())
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list, set_seed
from rich.table import Table
from torch import Tensor, nn

from visgraft.atomic import write_whole
from visgraft.builder.build import apply_modes, build_model, build_processor
from visgraft.config import Recipe, changeable_keys, effect_of, flatten, load_recipe, recipe_to_dict
from visgraft.data.batch import Batch
from visgraft.data.sources import BadSample, Quarantine
from visgraft.errors import ConfigError
from visgraft.model.attention_kernel import choose_attention, set_attention
from visgraft.model.checks.preflight import preflight
from visgraft.model.parts import trained_parameters
from visgraft.model.precision import computing_dtype
from visgraft.model.trainable import PartRow, freeze_unused, parts_table
from visgraft.model.vlm import VisionLanguageModel
from visgraft.reporting.progress import TrainProgress
from visgraft.runs import Run
from visgraft.starter import resolve
from visgraft.training.compiling import compile_blocks
from visgraft.training.optimizer import build_optimizer
from visgraft.training.plan import Planner, Position
from visgraft.training.session import Session
from visgraft.training.sharding import check_strategy, current_parameters
from visgraft.training.state import TrainState, load_state, set_random_state
from visgraft.training.trackers import Trackers, check_trackers
from visgraft.training.training_data import open_training_data
from visgraft.training.vision_cache import fill_vision_cache


def open_session(
    recipe: Recipe, *, resume: str | Path | None = None, folder: str | Path | None = None, progress: TrainProgress
) -> Session:
    """Open a run: check, data, model, optimizer, restore.

    Args:
        recipe: of the run; `starter:` names become folders.
        resume: the run to go on with.
        folder: where to make the run folder; None names one by date.
        progress: shows what will train, and what takes long.

    Raises:
        VisgraftError: the run cannot begin; no run folder is made then.
    """
    started = time.monotonic()

    # Check: what can be refused before anything is read.
    check_before_loading(recipe, resume=resume)
    accelerator = make_accelerator(recipe)
    is_main = accelerator.is_main_process
    local = resolve(recipe, say=progress.say)

    # Data: opened and tried before any weight is loaded.
    processor = build_processor(local)
    data = open_training_data(local, processor, accelerator=accelerator)

    # Model: built, set to train, tried on a batch; what passes gets a run folder.
    set_seed(recipe.train.seed)  # new weights are drawn from it
    model = build_model(local, image_size=processor.image_size)
    rows, notes = prepare_model(model, recipe, filler=data.filler, accelerator=accelerator)
    run = open_run(recipe, accelerator, resume=resume, folder=folder)
    if is_main:
        progress.begin(run.folder, table=parts_as_table(rows), notes=notes)
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
    names = [name for inside in by_part.values() for name in inside]
    trained = current_parameters(model, names)

    # Restore: where a stopped run was, or the start of a new one.
    set_seed(recipe.train.seed, device_specific=True)  # dropout
    state = TrainState() if resume is None else restore(run, trained, optimizer=optimizer, accelerator=accelerator)
    return Session(
        recipe=recipe, run=run, accelerator=accelerator, model=model, network=network, processor=processor,
        optimizer=prepared, trained=trained, planner=data.planner, validation=data.validation,
        loader=loader.limited(state.micro_batch_positions),
        quarantine=open_quarantine(recipe, run, data.planner, is_main=is_main), filler=data.filler,
        sample_prompts=data.sample_prompts, questions=data.questions, state=state, progress=progress,
        counted_until=started, trackers=Trackers(recipe, run.folder) if is_main and recipe.train.report_to else None,
    )  # fmt: skip


# --- Check


def check_before_loading(recipe: Recipe, *, resume: str | Path | None) -> None:
    """Refuse, before anything is read, what cannot work.

    Raises:
        ConfigError: another recipe than that of the run to resume; a tracker that is not there.
        CheckpointError: the run to resume has no checkpoint.
    """
    if resume is not None:
        check_resumable(load_recipe(Run.open(resume).folder), recipe)
        Run.open(resume).latest_checkpoint()
    check_trackers(recipe.train.report_to)


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
    accelerator = Accelerator(cpu=cpu, mixed_precision=words[dtype])
    check_strategy(accelerator)
    return accelerator


def check_resumable(before: Recipe, now: Recipe) -> None:
    """Refuse to go on with a run under a recipe that would have made another run of it.

    Raises:
        ConfigError: with the first key that differs.
    """
    old, new = flatten(recipe_to_dict(before)), flatten(recipe_to_dict(now))
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key) and not effect_of(Recipe, key).may_change:
            raise ConfigError(
                f"{key}: got {new.get(key, 'the default')}, but the run began with {old.get(key, 'the default')}; "
                f"resume it as it was (only these may change: {', '.join(changeable_keys(Recipe))}), "
                "or start a new run with model.start_from"
            )


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


def parts_as_table(rows: Sequence[PartRow]) -> Table:
    """Draw the table of parts."""
    table = Table(box=None, pad_edge=False)
    for name, justify in [("part", "left"), ("trains", "left"), ("parameters", "right"), ("trained", "right"),
                          ("dtype", "left"), ("learning rate", "right"), ("notes", "left")]:  # fmt: skip
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for row in rows:
        rate = "" if row.learning_rate is None else f"{row.learning_rate:g}"
        counts = (f"{row.num_parameters:,}", f"{row.num_trainable:,}")
        table.add_row(row.part, row.mode, *counts, row.dtype, rate, "\n".join(row.notes))
    return table


# --- Run folder, and what it remembers


def open_run(recipe: Recipe, accelerator: Accelerator, *, resume: str | Path | None, folder: str | Path | None) -> Run:
    """Make or open the run folder in the first process; the others are sent its path."""
    where: list[Any] = [None]
    if accelerator.is_main_process:
        run = Run.create(recipe, folder=folder) if resume is None else Run.open(resume)
        if resume is not None:
            write_whole(run.folder / "recipe.yaml", recipe.to_yaml())
        where = [str(run.folder)]
    broadcast_object_list(where)
    return Run.open(where[0])


def restore(
    run: Run, trained: Mapping[str, nn.Parameter], *, optimizer: torch.optim.Optimizer, accelerator: Accelerator
) -> TrainState:
    """Read the newest checkpoint into weights, optimizer and random states; forget what was logged after it.

    Raises:
        CheckpointError: it is not of this model, or incomplete.
    """
    step, checkpoint = run.latest_checkpoint()
    state, random_states = load_state(checkpoint, trained=trained, optimizer=optimizer, scaler=accelerator.scaler)
    if accelerator.process_index < len(random_states):
        set_random_state(random_states[accelerator.process_index], device=accelerator.device)
    if accelerator.is_main_process:
        run.resume_from(step)
    return state


def open_quarantine(recipe: Recipe, run: Run, planner: Planner, *, is_main: bool) -> Quarantine:
    """Open the list of bad samples: those that the run knows, and those that cannot even be read."""
    names = [field.name for field in fields(BadSample)]
    known = [BadSample(**{name: record[name] for name in names}) for record in run.read("quarantine")]
    quarantine = Quarantine(
        num_samples=planner.num_samples(Position(0, 0)),
        max_bad_fraction=recipe.data.max_bad_fraction,
        known=known,
        write=(lambda record: run.append("quarantine", record)) if is_main else None,
    )
    for bad in planner.unreadable:
        quarantine.add(bad)
    return quarantine
