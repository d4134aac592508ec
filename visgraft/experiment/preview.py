"""What the runs of an experiment would be, without running them: what trains, how many steps, how many tokens.

In: an experiment. Out: a `Preview` of each variant. Configurations and data are read where they are there; what needs
weights, a tokenizer or data that are not there has no number (None), and the reason is reported.

    for preview in preview_experiment(experiment): print(preview.variant, preview.trains, preview.steps)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from visgraft.builder.build import build_processor
from visgraft.builder.describe import describe_recipe
from visgraft.config import PARTS, Recipe, recipe_to_dict
from visgraft.data.sources import open_sources
from visgraft.errors import CheckpointError, DataError, MissingAssetError, VisgraftError
from visgraft.experiment.planned import Experiment, PlannedRun
from visgraft.experiment.run_folders import action_for
from visgraft.starter import resolve
from visgraft.training.plan import Planner, Position

NUM_GROUPS = 2_000  # looked at to count a run's steps; a longer run is reckoned from them
NOT_THERE = (CheckpointError, MissingAssetError, DataError, OSError)  # what another machine, or a network, would have


@dataclass(frozen=True)
class Length:
    """How long a run is; `is_exact` is False where it was reckoned from its beginning."""

    steps: int
    text_tokens: int
    supervised_tokens: int
    is_exact: bool


@dataclass(frozen=True)
class Preview:
    """What a variant would be.

    Attributes:
        variant: its name.
        seeds: one run for each.
        trains: part -> training mode in words, of the parts that train.
        parameters: part -> trained parameters, where they can be known.
        num_parameters: of the whole model.
        length: of each of its runs.
        unknown: why something is not known, a line for each reason.
    """

    variant: str
    seeds: Sequence[int]
    trains: dict[str, str]
    parameters: dict[str, int] | None
    num_parameters: int | None
    length: Length | None
    unknown: Sequence[str]

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return asdict(self)


def preview_experiment(experiment: Experiment, *, progress: Callable[[str], None] | None = None) -> list[Preview]:
    """Preview every variant of an experiment.

    Raises:
        VisgraftError: a variant could run nowhere: a pattern matches nothing, a language model is refused.
    """
    lengths: dict[str, Length | str] = {}
    missing: dict[str, MissingAssetError] = {}
    previews = []
    for variant in dict.fromkeys(run.variant for run in experiment.runs):
        own = [run for run in experiment.runs if run.variant == variant]
        recipe = _with_known_parts(experiment, own[0])
        if progress is not None:
            progress(f"looking at {variant}")
        try:
            previews.append(_preview(own, recipe, lengths, missing))
        except VisgraftError as error:
            raise type(error)(f"variants.{variant}: {error}") from error
    return previews


def _with_known_parts(experiment: Experiment, run: PlannedRun) -> Recipe:
    """Return a run's recipe; where it starts from a run that is not finished, with the parts of that run's recipe."""
    by_name = {each.folder_name: each for each in experiment.runs}
    recipe = run.recipe
    while run.starts_from is not None and action_for(experiment.folder / run.starts_from) != "skip":
        run = by_name[run.starts_from]
        recipe = replace(recipe, model=run.recipe.model)
    return recipe


def _preview(
    own: Sequence[PlannedRun],
    recipe: Recipe,
    lengths: dict[str, Length | str],
    missing: dict[str, MissingAssetError],
) -> Preview:
    unknown: list[str] = []
    parameters: dict[str, int] | None = None
    total: int | None = None
    try:
        _fetch(recipe, missing)
        rows = describe_recipe(recipe, name=own[0].variant).rows
        parameters = {str(row.part): row.num_trainable for row in rows if row.num_trainable}
        total = sum(row.num_parameters for row in rows)
    except NOT_THERE as error:
        unknown.append(_one_line(error))
    key = json.dumps(_what_decides_length(recipe), sort_keys=True)
    if key not in lengths:
        try:
            _fetch(recipe, missing)
            lengths[key] = measure_length(recipe)
        except NOT_THERE as error:
            lengths[key] = _one_line(error)
    length = lengths[key]
    if isinstance(length, str):
        unknown += [] if length in unknown else [length]
    return Preview(
        variant=own[0].variant,
        seeds=[run.seed for run in own],
        trains={part: mode_in_words(recipe, part) for part in PARTS if recipe.train.mode_of(part) != "frozen"},
        parameters=parameters,
        num_parameters=total,
        length=None if isinstance(length, str) else length,
        unknown=unknown,
    )


def _fetch(recipe: Recipe, missing: dict[str, MissingAssetError]) -> None:
    """Fetch the starter assets that a recipe names; one that could not be had is not asked for again."""
    model, data = recipe.model, recipe.data
    for name in (
        model.vision,
        model.language and model.language.name,
        *(e.path for e in (*data.train, *data.validation, *data.test)),
    ):
        if name in missing:
            raise missing[name]
        try:
            resolve(name or "")
        except MissingAssetError as error:
            missing[name or ""] = error
            raise


def mode_in_words(recipe: Recipe, part: Any) -> str:
    """Say how a part trains, as a recipe alone tells it."""
    mode = recipe.train.mode_of(part)
    if mode == "lora":
        return f"lora r{recipe.train.lora_of(part).r}"
    return mode if isinstance(mode, str) else " ".join(f"{key} {value}" for key, value in mode.items())


def _what_decides_length(recipe: Recipe) -> dict[str, Any]:
    values = recipe_to_dict(recipe)
    names = ("seed", "epochs", "max_steps", "text_tokens_per_step")
    return {
        "model": values.get("model"),
        "data": values.get("data"),
        "train": {name: getattr(recipe.train, name) for name in names},
    }


def measure_length(recipe: Recipe) -> Length:
    """Count the steps and tokens of a run from its texts; a long one is reckoned from its first groups.

    Raises:
        VisgraftError: its tokenizer or its data cannot be read.
    """
    local = resolve(recipe)
    processor = build_processor(local)
    sources = open_sources(local.data.train, key="data.train", settings=local.data)
    settings = recipe.train
    planner = Planner(
        sources,
        processor,
        seed=settings.seed,
        max_dialogs=recipe.data.max_dialogs_per_prefix,
        text_tokens_per_step=settings.text_tokens_per_step,
    )
    steps = text = supervised = groups = 0
    done = 0.0
    for step in planner.steps(Position(0, 0), epochs=settings.epochs):
        for group in step.groups:
            dialogs = processor.encode_text(planner.sample(group), bad=[])
            text += sum(len(dialog.input_ids) for dialog in dialogs)
            supervised += sum(sum(dialog.supervised) for dialog in dialogs)
        steps, groups, done = steps + 1, groups + len(step.groups), planner.epochs_done(step.end)
        if steps == settings.max_steps:
            return Length(steps, text, supervised, is_exact=True)
        if groups >= NUM_GROUPS:
            break
    if done >= settings.epochs:
        return Length(steps, text, supervised, is_exact=True)
    factor = settings.epochs / done
    if settings.max_steps is not None:
        factor = min(factor, settings.max_steps / steps)
    return Length(round(steps * factor), round(text * factor), round(supervised * factor), is_exact=False)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
