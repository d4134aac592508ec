"""What a run will be like, read off its recipe: the model's shapes and the batches of its first steps, without weights.

In: a recipe. Out: a model on the meta device with what trains set, the largest of the first steps, laid out as training
lays it out, and what had to be assumed because it could not be read.

    outline = outline_run(load_recipe("recipe.yaml"), dtype=torch.bfloat16, device=torch.device("cuda"))
    outline.model, outline.micro_batches, outline.assumptions
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from visgraft.builder.build import apply_modes, build_processor
from visgraft.builder.describe import empty_model, quantization_of
from visgraft.config import Recipe, TileSettings
from visgraft.data.batch import Batch, EncodedSample, collate
from visgraft.data.images.tiles import rows_end
from visgraft.data.prompt import EncodedDialog
from visgraft.errors import CheckpointError, DataError, MissingAssetError
from visgraft.model.attention_kernel import FLEX, choose_attention, set_attention
from visgraft.model.vision import measure
from visgraft.model.vision_inputs import dummy_inputs
from visgraft.model.vlm import VisionLanguageModel
from visgraft.processor import Processor
from visgraft.starter import resolve
from visgraft.training.plan import Position
from visgraft.training.steps import make_batches, micro_batches
from visgraft.training.training_data import loader_settings, open_planner
from visgraft.training.vision_cache import why_off

NUM_STEPS = 16  # planned to find a large one
ASSUMED_TOKENS = 64  # of one text with prompt and answer, half of it supervised, where the data cannot be read


@dataclass(frozen=True)
class Outline:
    """What a run will be like.

    Attributes:
        recipe: with folders in the place of `starter:` names.
        model: on the meta device, with what trains set.
        quantization: of the language model's linears once they are loaded: 4bit, 8bit or None.
        has_block_masks: it will compute with FlexAttention, which keeps no mask; `model` has its plain kernel.
        micro_batches: of the largest step planned, pixels on the meta device.
        num_positions: positions of an average step of one process, pads included.
        num_groups: images with their texts of an average step, over all processes.
        num_steps: of the whole run; None where the data cannot be read.
        assumptions: what could not be read, and what is taken instead.
    """

    recipe: Recipe
    model: VisionLanguageModel
    quantization: str | None
    has_block_masks: bool
    micro_batches: Sequence[Batch]
    num_positions: int
    num_groups: float
    num_steps: int | None
    assumptions: Sequence[str]


def outline_run(
    recipe: Recipe,
    *,
    dtype: torch.dtype | None,
    device: torch.device,
    num_processes: int = 1,
    say: Callable[[str], None] | None = None,
) -> Outline:
    """Outline a run from its recipe alone; no weights and no images are read.

    Args:
        recipe: parts by name or folder; of a folder, config.json is enough.
        dtype: the format of frozen weights; None is float32.
        device: where it will run; a kind of device that is not here will do.
        num_processes: among how many a step is shared out; the batches are those of the first.
        say: called with a line at each download.

    Raises:
        CheckpointError: the configuration of a part cannot be read.
        ConfigError: a setting that the parts cannot take.
        UnsupportedModelError: the language model does not follow the mask.
    """
    local = resolve(recipe, say=say)
    processor, assumptions = _processor_or_reason(local)
    try:
        size = processor.image_size if processor else local.model.image_size
        model = empty_model(local, image_size=size, processor=processor)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}; its config.json is enough here: put it into a folder and give --set model.vision=FOLDER or "
            "--set model.language.name=FOLDER"
        ) from error
    apply_modes(model, local.train, frozen_dtype=dtype)
    attention = choose_attention(model.language, device=device, asked=local.model.attention)
    set_attention(model, None if attention == FLEX else attention)
    steps, num_groups = _assumed_steps(local, model, num_processes=num_processes)
    num_steps, is_read = None, False
    if processor is not None:
        try:
            steps, num_groups, num_steps = _planned_steps(local, model, processor, num_processes=num_processes)
            is_read = True
        except (DataError, MissingAssetError, OSError) as error:
            assumptions.append(f"the data cannot be read ({error})")
    if not is_read:
        assumptions.append(f"texts are taken to be {ASSUMED_TOKENS} tokens long, one about each image")
    settings = loader_settings(local, device=device.type)
    collated = processor.collate if processor is not None else partial(collate, pad_token_id=0)
    laid_out = [
        make_batches(micro_batches(step, settings=settings), collated, layout=settings.layout) for step in steps
    ]
    sizes = [sum(batch.kind.numel() for batch in batches) for batches in laid_out]
    largest = max(laid_out, key=lambda batches: max(batch.kind.numel() for batch in batches))
    average = round(sum(sizes) / len(sizes))
    quantization = quantization_of(model, local)
    has_block_masks = attention == FLEX
    return Outline(
        local, model, quantization, has_block_masks, largest, average, num_groups, num_steps, tuple(assumptions)
    )


def _processor_or_reason(recipe: Recipe) -> tuple[Processor | None, list[str]]:
    try:
        return build_processor(recipe), []
    except CheckpointError as error:
        if recipe.model.start_from is not None:
            raise
        return None, [f"image size as in the encoder's configuration, as no processor can be read ({error})"]


def _planned_steps(
    recipe: Recipe, model: VisionLanguageModel, processor: Processor, *, num_processes: int
) -> tuple[list[list[EncodedSample]], float, int | None]:
    """Plan the first steps as training would; give the first process's samples, groups a step, and the run's steps."""
    settings = recipe.train
    planner = open_planner(recipe, "train", processor)
    planned = planner.steps(Position(0, 0), epochs=settings.epochs, num_processes=num_processes)
    plans = list(islice(planned, NUM_STEPS))
    steps = [
        [
            EncodedSample(processor.encode_text(sample, bad=[]), *_images(recipe, model, len(sample.images)))
            for sample in map(planner.sample, plan.groups)
        ]
        for plan in plans
    ]
    if not any(steps):
        raise DataError("no sample of the first steps can be used")
    num_steps = settings.max_steps
    if planner.has_known_length:
        of_epochs = max(len(plans), round(settings.epochs * len(plans) / planner.epochs_done(plans[-1].end)))
        num_steps = min(of_epochs, num_steps or of_epochs)
    return [step for step in steps if step], sum(plan.num_groups for plan in plans) / len(plans), num_steps


def _assumed_steps(
    recipe: Recipe, model: VisionLanguageModel, *, num_processes: int
) -> tuple[list[list[EncodedSample]], float]:
    length = min(ASSUMED_TOKENS, recipe.data.max_text_tokens)
    ids = tuple(range(1, length + 1))
    dialog = EncodedDialog(ids, tuple(2 * index >= length for index in range(length)), 4 * length, False)
    sample = EncodedSample((dialog,), *_images(recipe, model, 1))
    number = -(-recipe.train.text_tokens_per_step // length)
    return [[sample] * -(-number // num_processes)], number


def _images(recipe: Recipe, model: VisionLanguageModel, number: int) -> tuple[dict[str, Tensor], tuple[int, ...]]:
    """Make what stands for images in a batch, without pixels, and count their tokens."""
    if number == 0:
        return {}, ()
    separators: dict[str, Tensor] = {}
    texts = model.config.text_before_images
    before = [0 if texts is None else len(texts["next" if index else "first"]) for index in range(number)]
    tokens = [model.projection.num_tokens + length for length in before]
    if model.config.tiles is not None:  # each tile a row of its own: the most that an image can become
        ends = rows_end((model.config.tiles["max"], 1), TileSettings(**model.config.tiles)) * number
        number = len(ends)
        separators = {"ends_row": torch.tensor(ends)} if model.config.has_row_separator else {}
        tokens = [model.projection.num_tokens + (bool(separators) and ended) for ended in ends]
    if recipe.train.cache_vision is not None and why_off(recipe, model) is None:
        shape = measure(model.vision.config, settings=model.config.vision_settings)
        size, dtype = (number, shape.num_tokens, shape.width), next(model.vision.parameters()).dtype
        return {"features": torch.empty(size, dtype=dtype, device="meta"), **separators}, tuple(tokens)
    black = dummy_inputs(model.vision.config, image_size=model.config.image_size, device="cpu")
    inputs = {name: value.expand(number, *value.shape[1:]) for name, value in black.items()}
    inputs["pixel_values"] = inputs["pixel_values"].to("meta")
    return {**inputs, **separators}, tuple(tokens)
