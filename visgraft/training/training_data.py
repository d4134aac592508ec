"""The data of a run, opened: the steps over them, how batches are made, and what is asked on the way.

In: a recipe and a processor. Out: `TrainingData`. Nothing here draws from a random state of the run.

    data = open_training_data(recipe, processor, accelerator=accelerator)
    planner = open_planner(recipe, "train", processor)              # the steps alone
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from accelerate import Accelerator

from visgraft.config import DataSettings, Recipe
from visgraft.data.batch import Batch, EncodedSample
from visgraft.data.findings import overlap_finding, unused_columns_in_words
from visgraft.data.first_look import check_every_source, unused_image_columns
from visgraft.data.images.opening import open_image
from visgraft.data.messages import asked
from visgraft.data.overlap import image_overlap
from visgraft.data.processes import ALONE, Processes
from visgraft.data.sample import Sample, references_of
from visgraft.data.sources import BadSample, Quarantine, Sources, epoch_order, open_sources
from visgraft.data.windows import open_streams
from visgraft.errors import BadSampleError, ConfigError, DataError
from visgraft.processor import Processor
from visgraft.training.plan import Planner, Position
from visgraft.training.steps import LoaderSettings, StepDataset
from visgraft.training.stream_plan import StreamPlanner
from visgraft.training.text_watch import TextWatch

NUM_SAMPLE_PROMPTS = 8  # questions answered on the way, each about another sample
NUM_FILLER_SAMPLES = 2
# By device, where the recipe does not say. A dense mask makes long rows expensive, so elsewhere rows are short.
ROW_POSITIONS = {"cuda": 4096}
MICRO_BATCH_POSITIONS = {"cuda": 32_768}


@dataclass(frozen=True)
class TrainingData:
    """The data of a run; the fields are those of `Session` of the same names.

    `remarks` are what is worth knowing about it before the first step.
    """

    planner: Planner
    validation: Planner | None
    loader: LoaderSettings
    filler: Batch
    sample_prompts: Sequence[Sample]
    questions: Sequence[Sample]
    scored: Sequence[Sample]
    watch: TextWatch
    remarks: Sequence[str]


def open_training_data(recipe: Recipe, processor: Processor, *, accelerator: Accelerator) -> TrainingData:
    """Open all data of a recipe (no `starter:` names), and see that they can be trained and validated on.

    Raises:
        DataError: they cannot be read, or no sample can be used.
        ConfigError: a stream without a number of steps; an image of `data.sample_prompts` that cannot be used.
    """
    processes = Processes(accelerator.process_index, accelerator.num_processes)
    planner = open_planner(recipe, "train", processor, processes=processes)
    if not planner.has_known_length and recipe.train.max_steps is None:
        raise ConfigError(
            "data.train: holds streams, whose length is not known; set train.max_steps: N, which the "
            "learning rate follows (and train.epochs to how often they may be read at most)"
        )
    validation = None
    if recipe.data.validation:
        validation = open_planner(recipe, "validation", processor, shuffle=False, processes=processes)
        if validation.has_known_length and validation.num_groups(0) == 0:  # said now, not when it is first measured on
            raise DataError(
                f"data.validation: got {len(validation.sources)} samples and none can be used; name another split, or "
                "leave data.validation out"
            )
    watch = TextWatch(processor, settings=recipe.data)
    remarks: list[str] = []
    for each in (planner, validation):
        if each is not None:
            check_every_source(each.sources, processor, unfinished=each.unfinished)
            remarks += remarks_of(each.sources)
            each.watch = watch
            remarks += watch.know(each.remarks())
    if validation is not None:
        remarks += check_overlap(planner.sources, validation.sources)
    num_scored = recipe.train.exact_match_samples if validation is not None else 0
    asked_of = (planner if validation is None else validation).sources
    questions = pick_questions(asked_of, processor, number=max(NUM_SAMPLE_PROMPTS, num_scored))
    loader = loader_settings(
        recipe,
        device=accelerator.device.type,
        process_index=accelerator.process_index,
        num_processes=accelerator.num_processes,
    )
    if validation is not None and not questions:  # a question shows that one sample is good
        first_good_samples(validation, loader)
    return TrainingData(
        planner=planner,
        validation=validation,
        loader=loader,
        filler=processor.finish(first_batch(planner, loader).to(accelerator.device)),
        sample_prompts=[*questions[:NUM_SAMPLE_PROMPTS], *own_sample_prompts(recipe.data)],
        questions=questions[:num_scored],
        scored=_scored(asked_of, processor, recipe) if validation is not None else (),
        watch=watch,
        remarks=remarks,
    )


def remarks_of(sources: Sources) -> list[str]:
    """List what the readers have to say, and columns that look like images and are not used."""
    remarks = []
    for entry in sources.opened:
        notes = list(entry.notes)
        unused = unused_image_columns(entry)
        if unused:
            notes.append(" ".join(unused_columns_in_words(unused)))
        remarks += [f"data: {sources.part} {entry.name}: {note}" for note in notes]
    return remarks


def check_overlap(train: Sources, validation: Sources) -> list[str]:
    """Say how many validation images stand in training too, as far as that is known without opening them.

    Raises:
        DataError: more than `data.max_overlap_fraction` of them.
    """
    both = image_overlap(train, validation)
    found = overlap_finding("overlapping_images", *both, part=validation.part, what="images", settings=train.settings)
    for finding in found:
        if finding.level == "error":
            raise DataError(f"data.validation: {finding.text} {finding.advice}")
        return [f"data: {finding.where}: {finding.text} {finding.advice}"]
    return []


def open_planner(
    recipe: Recipe, part: str, processor: Processor, *, shuffle: bool = True, processes: Processes | None = None
) -> Planner:
    """Plan the steps over the training data of a recipe (`train`), or over what validates (`validation`).

    With `processes`, all of them must plan the same steps, and each reads its part of the texts.
    """
    settings: dict[str, Any] = {
        "seed": recipe.train.seed,
        "max_dialogs": recipe.data.max_dialogs_per_prefix,
        "text_tokens_per_step": recipe.train.text_tokens_per_step,
        "shuffle": shuffle,
        "layout": recipe.train.layout,
        "processes": processes,
    }
    entries = recipe.data.train if part == "train" else recipe.data.validation
    streams = open_streams(entries, key=f"data.{part}", settings=recipe.data)
    if streams is not None:
        return StreamPlanner(streams, processor, **settings)
    sources = open_sources(entries, key=f"data.{part}", settings=recipe.data, processes=processes or ALONE)
    return Planner(sources, processor, **settings)


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


def first_batch(planner: Planner, loader: LoaderSettings) -> Batch:
    """Make a small batch of the first samples that can be used, those with an image and several dialogs first.

    Raises:
        DataError: no sample can be used, or too many are bad before the first that can.
    """
    encoded = first_good_samples(planner, loader)
    encoded.sort(key=lambda sample: (not sample.num_image_tokens, len(sample.dialogs) == 1))  # stable
    chosen = encoded[:NUM_FILLER_SAMPLES]  # in one row, so that the preflight sees whether the mask keeps them apart
    rows = [list(range(len(chosen)))] if loader.layout == "shared" else None
    return planner.processor.collate(chosen, layout=loader.layout, rows=rows)


def first_good_samples(planner: Planner, loader: LoaderSettings) -> list[EncodedSample]:
    """Encode the samples of the first step in which one can be used.

    Raises:
        DataError: no sample can be used, or too many are bad before the first that can.
    """
    dataset = StepDataset(planner, replace(loader, process_index=0, num_processes=1))
    met = Quarantine(num_samples=0, max_bad_fraction=planner.sources.settings.max_bad_fraction)
    first: BadSample | None = None
    for plan in planner.steps(Position(0, 0), epochs=1.0):
        encoded, bad = dataset.encode(plan)
        if encoded:
            return encoded
        met.expect(planner.num_samples(plan.end))
        for each in (*plan.bad, *bad):
            first = first or each
            met.add(each)
    why = "it is empty" if first is None else f"the first is bad: {first.where}: {first.reason}"
    raise DataError(
        f"data.{planner.sources.part}: got {met.num_samples:,} samples and none can be used ({why}); repair them, or "
        "name other data"
    )


def _scored(sources: Sources, processor: Processor, recipe: Recipe) -> list[Sample]:
    """Pick what is answered for `train.scores`; what else the sample accepts as an answer to the same counts too."""
    if not recipe.train.scores:
        return []
    return pick_questions(sources, processor, number=recipe.train.score_samples, is_merged=True)


def pick_questions(sources: Sources, processor: Processor, *, number: int, is_merged: bool = False) -> list[Sample]:
    """Pick a fixed number of questions: one dialog each of samples that can be used, the same in every run.

    `is_merged`: all answers of a sample to one request (its five captions) are references of the one that is picked.
    """
    questions: list[Sample] = []
    for index in epoch_order(len(sources), seed=0, epoch=0).tolist():
        if len(questions) == number:
            break
        try:
            sample = sources[index]
            chosen = replace(sample, dialogs=[Random(index).choice(sample.dialogs)])
            processor.encode(chosen, max_pixels=sources.settings.max_pixels)
        except BadSampleError:
            continue  # the training or validation loss meets it too, and reports it
        questions.append(_merged(chosen, sample) if is_merged else chosen)
    return questions


def _merged(chosen: Sample, sample: Sample) -> Sample:
    [dialog] = chosen.dialogs
    same = [
        other[-1] for other in sample.dialogs if other[-1].request == dialog[-1].request and other[:-1] == dialog[:-1]
    ]
    accepted = [text for turn in same for text in references_of(turn)]
    return replace(chosen, dialogs=[[*dialog[:-1], replace(dialog[-1], references=tuple(accepted))]])


def own_sample_prompts(settings: DataSettings) -> list[Sample]:
    """Make a question of each prompt about each image of `data.sample_prompts`; it has no expected answer.

    Raises:
        ConfigError: an image cannot be used.
    """
    questions: list[Sample] = []
    for number, own in enumerate(settings.sample_prompts):
        try:
            open_image(own.image, max_pixels=settings.max_pixels)
        except BadSampleError as error:
            raise ConfigError(
                f"data.sample_prompts.{number}.image: {own.image}: {error}; name an image file"
            ) from error
        for prompt in own.prompts:
            questions.append(Sample(images=[own.image], dialogs=[[asked(prompt, num_images=1)]], id=f"own:{own.image}"))
    return questions
