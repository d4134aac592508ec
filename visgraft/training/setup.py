"""Everything that a run needs before its first step, built, checked and, where it is resumed, restored.

In: a recipe, and perhaps a run to go on with. Out: a `Session`.

    session = open_session(recipe, resume=None, progress=make_progress())
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list, set_seed
from torch import Tensor

from visgraft.builder.build import apply_modes, build
from visgraft.config import Recipe, flatten, load_recipe, recipe_to_dict
from visgraft.data.batch import Batch
from visgraft.data.sample import Sample
from visgraft.data.sources import BadSample, Quarantine, open_sources
from visgraft.data.windows import open_streams
from visgraft.errors import ConfigError, DataError
from visgraft.model.attention_kernel import choose_attention, set_attention
from visgraft.model.checks.preflight import preflight
from visgraft.model.parts import trained_parameters
from visgraft.model.precision import computing_dtype
from visgraft.model.trainable import freeze_unused, parts_table
from visgraft.model.vlm import VisionLanguageModel
from visgraft.processor import Processor
from visgraft.runs import Run, write_whole
from visgraft.starter import resolve
from visgraft.training.compiling import compile_blocks
from visgraft.training.optimizer import build_optimizer
from visgraft.training.plan import Planner, Position
from visgraft.training.progress import TrainProgress
from visgraft.training.session import Session
from visgraft.training.sharding import check_strategy, current_parameters
from visgraft.training.state import TrainState, load_state, set_random_state
from visgraft.training.steps import LoaderSettings, StepDataset
from visgraft.training.stream_plan import StreamPlanner
from visgraft.training.trackers import Trackers, check_trackers
from visgraft.training.validate import own_sample_prompts, pick_questions
from visgraft.training.vision_cache import fill_vision_cache

NUM_SAMPLE_PROMPTS = 8  # questions answered on the way, each about another sample
NUM_FILLER_SAMPLES = 2
# By device, where the recipe does not say. A dense mask makes long rows dear, so elsewhere rows are short.
ROW_POSITIONS = {"cuda": 4096}
MICRO_BATCH_POSITIONS = {"cuda": 32_768}

# What may change when a run is resumed; anything else would make it another run.
CHANGEABLE = {
    *("output", "name", "train.epochs", "train.max_steps", "train.on_nonfinite", "train.num_workers"),
    *("train.keep_checkpoints", "train.checkpoint_every_steps", "train.validate_every_steps"),
    *("data.sample_prompts", "train.sample_every_steps", "train.exact_match_samples", "train.max_new_tokens"),
    *("train.micro_batch_rows", "train.micro_batch_positions", "train.row_positions", "train.logits_chunk"),
    *("train.gradient_checkpointing", "train.save", "train.compile", "train.report_to"),
    *("train.cache_vision", "train.cache_vision_max_gb"),
}


def open_session(
    recipe: Recipe, *, resume: str | Path | None = None, folder: str | Path | None = None, progress: TrainProgress
) -> Session:
    """Build and check a run, make its folder (or open it again) and restore its state."""
    started = time.monotonic()
    if resume is not None:
        check_resumable(load_recipe(Run.open(resume).folder), recipe)
        Run.open(resume).latest_checkpoint()  # or say at once that there is none
    check_trackers(recipe.train.report_to)
    accelerator = make_accelerator(recipe)
    check_strategy(accelerator)
    set_seed(recipe.train.seed)  # new weights are drawn from it
    local = resolve(recipe, progress=progress.say)
    model, processor = build(local)
    planner, validation, sample_prompts, questions = _open_data(local, processor)
    loader = loader_settings(
        recipe,
        device=accelerator.device.type,
        process_index=accelerator.process_index,
        num_processes=accelerator.num_processes,
    )
    filler = processor.finish(first_batch(planner, loader).to(accelerator.device))
    by_part, rows, notes = _prepare_model(recipe, model, filler, accelerator)
    run = _open_run(recipe, accelerator, resume=resume, folder=folder)
    if accelerator.is_main_process:
        progress.begin(run.folder, rows=rows, notes=notes)
    optimizer = build_optimizer(by_part, recipe.train)
    trained = {name: parameter for inside in by_part.values() for name, parameter in inside.items()}
    planners = [planner] if validation is None else [planner, validation]
    cache = fill_vision_cache(local, model, planners, accelerator=accelerator, say=progress.say)
    loader = replace(loader, vision_cache=cache)
    if recipe.train.compile:
        compile_blocks(model)
    network, prepared = accelerator.prepare(model, optimizer)
    trained = current_parameters(model, trained)
    state = TrainState()
    set_seed(recipe.train.seed, device_specific=True)  # dropout
    if resume is not None:
        step, checkpoint = run.latest_checkpoint()
        state, random_states = load_state(checkpoint, trained=trained, optimizer=optimizer, scaler=accelerator.scaler)
        if accelerator.process_index < len(random_states):
            set_random_state(random_states[accelerator.process_index], device=accelerator.device)
        if accelerator.is_main_process:
            run.resume_from(step)
    return Session(
        recipe=recipe, run=run, accelerator=accelerator, model=model, network=network, processor=processor,
        optimizer=prepared, trained=trained, planner=planner, validation=validation, loader=loader,
        quarantine=_open_quarantine(recipe, run, planner, is_main=accelerator.is_main_process), filler=filler,
        sample_prompts=sample_prompts, questions=questions, state=state, progress=progress, counted_until=started,
        trackers=Trackers(recipe, run.folder) if accelerator.is_main_process else None,
    )  # fmt: skip


def make_accelerator(recipe: Recipe) -> Accelerator:
    """Make the accelerator of a run; under torchrun or `accelerate launch` it joins the other processes.

    Raises:
        ConfigError: the device lacks the recipe's precision.
    """
    # Unless told that there is only a CPU, accelerate takes each process of several on it for one on its own.
    cpu = torch.accelerator.current_accelerator(check_available=True) is None
    dtype = computing_dtype(recipe.train.precision, device=PartialState(cpu=cpu).device)
    words = {None: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}
    if AcceleratorState._shared_state:  # one program may train one run in bf16 and the next in fp32
        AcceleratorState._reset_state()
    return Accelerator(cpu=cpu, mixed_precision=words[dtype])


def check_resumable(before: Recipe, now: Recipe) -> None:
    """Refuse to go on with a run under a recipe that would have made another run of it.

    Raises:
        ConfigError: with the first key that differs.
    """
    old, new = flatten(recipe_to_dict(before)), flatten(recipe_to_dict(now))
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key) and not any(key == c or key.startswith(f"{c}.") for c in CHANGEABLE):
            raise ConfigError(
                f"{key}: got {new.get(key, 'the default')}, but the run began with {old.get(key, 'the default')}; "
                f"resume it as it was (only these may change: {', '.join(sorted(CHANGEABLE))}), or start a new run "
                "with model.start_from"
            )


def first_batch(planner: Planner, loader: LoaderSettings) -> Batch:
    """Make a small batch of the first samples that can be used, those with an image and several dialogs first.

    Raises:
        DataError: no sample of the first step can be used.
    """
    plan = next(planner.steps(Position(0, 0), epochs=1.0))
    encoded, bad = StepDataset(planner, replace(loader, process_index=0, num_processes=1)).encode(plan)
    if not encoded:
        reason = [*plan.bad, *bad][0].reason
        raise DataError(f"data.train: no sample of the first step can be used; the first is bad: {reason}")
    encoded.sort(key=lambda sample: (not sample.num_image_tokens, len(sample.dialogs) == 1))  # stable
    chosen = encoded[:NUM_FILLER_SAMPLES]  # in one row, so that the preflight sees whether the mask keeps them apart
    rows = [list(range(len(chosen)))] if loader.layout == "shared" else None
    return planner.processor.collate(chosen, layout=loader.layout, rows=rows)


def _open_data(
    recipe: Recipe, processor: Processor
) -> tuple[Planner, Planner | None, Sequence[Sample], Sequence[Sample]]:
    planner = open_planner(recipe, "train", processor)
    if not planner.has_known_length and recipe.train.max_steps is None:
        raise ConfigError(
            "data.train: holds streams, and nobody knows how long they are; set train.max_steps: N, which the "
            "learning rate follows (and train.epochs to how often they may be read at most)"
        )
    if not recipe.data.validation:
        sample_prompts = pick_questions(planner.sources, processor, number=NUM_SAMPLE_PROMPTS)
        return planner, None, [*sample_prompts, *own_sample_prompts(recipe.data)], []
    validation = open_planner(recipe, "validation", processor, shuffle=False)
    if validation.has_known_length and validation.num_groups(0) == 0:  # said now, not when it is first measured on
        raise DataError(
            f"data.validation: got {len(validation.sources)} samples and none can be used; name another split, or "
            "leave data.validation out"
        )
    number = max(NUM_SAMPLE_PROMPTS, recipe.train.exact_match_samples)
    questions = pick_questions(validation.sources, processor, number=number)
    sample_prompts = [*questions[:NUM_SAMPLE_PROMPTS], *own_sample_prompts(recipe.data)]
    return planner, validation, sample_prompts, questions[: recipe.train.exact_match_samples]


def open_planner(recipe: Recipe, part: str, processor: Processor, *, shuffle: bool = True) -> Planner:
    """Plan the steps over the training data of a recipe (`train`), or over what validates (`validation`)."""
    settings: dict[str, Any] = {
        "seed": recipe.train.seed,
        "max_dialogs": recipe.data.max_dialogs_per_prefix,
        "text_tokens_per_step": recipe.train.text_tokens_per_step,
        "shuffle": shuffle,
    }
    entries = recipe.data.train if part == "train" else recipe.data.validation
    streams = open_streams(entries, key=f"data.{part}", settings=recipe.data)
    if streams is not None:
        return StreamPlanner(streams, processor, **settings)
    return Planner(open_sources(entries, key=f"data.{part}", settings=recipe.data), processor, **settings)


def loader_settings(recipe: Recipe, *, device: str, process_index: int = 0, num_processes: int = 1) -> LoaderSettings:
    """Say how a process of a run on that kind of device makes its batches."""
    return LoaderSettings(
        layout=recipe.train.layout,
        micro_batch_rows=recipe.train.micro_batch_rows,
        micro_batch_positions=recipe.train.micro_batch_positions or MICRO_BATCH_POSITIONS.get(device),
        row_positions=recipe.train.row_positions or ROW_POSITIONS.get(device),
        max_pixels=recipe.data.max_pixels,
        exact_pixels=recipe.data.exact_pixels,
        num_workers=recipe.train.num_workers,
        process_index=process_index,
        num_processes=num_processes,
        pin_memory=device == "cuda",
    )


def _prepare_model(recipe: Recipe, model: VisionLanguageModel, filler: Batch, accelerator: Accelerator) -> Any:
    """Set what trains, move the model to its device and check it on a real batch."""
    frozen_dtype = computing_dtype(recipe.train.precision, device=accelerator.device)
    report = apply_modes(model, recipe.train, frozen_dtype=frozen_dtype)
    model.to(accelerator.device)
    asked = recipe.model.attention
    set_attention(model, choose_attention(model.language, device=accelerator.device, asked=asked))
    with accelerator.autocast():
        model.train()
        report = freeze_unused(model, report, loss=lambda: _loss(model, filler))
        checked = preflight(model.train(), filler)
    by_part = trained_parameters(model)
    rates = {part: recipe.train.learning_rate_of(part) for part, inside in by_part.items() if inside}
    return by_part, parts_table(model, report, learning_rate=rates), checked.notes


def _loss(model: VisionLanguageModel, batch: Batch) -> Tensor:
    loss = model.loss(batch).loss
    assert loss is not None
    return loss


def _open_run(recipe: Recipe, accelerator: Accelerator, *, resume: str | Path | None, folder: str | Path | None) -> Run:
    """Make or open the run folder in the first process and tell the others where it is."""
    where: list[Any] = [None]
    if accelerator.is_main_process:
        run = Run.create(recipe, folder=folder) if resume is None else Run.open(resume)
        if resume is not None:
            write_whole(run.folder / "recipe.yaml", recipe.to_yaml())
        where = [str(run.folder)]
    broadcast_object_list(where)
    return Run.open(where[0])


def _open_quarantine(recipe: Recipe, run: Run, planner: Planner, *, is_main: bool) -> Quarantine:
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
