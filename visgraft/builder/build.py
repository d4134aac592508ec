"""A model and its processor as a recipe describes them, with what trains set.

In: a recipe. Out: model and processor; the report of what trains.

    model, processor = build(recipe)
    report = apply_modes(model, recipe.train, frozen_dtype=torch.bfloat16)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from visgraft.config import PARTS, Recipe, TrainSettings
from visgraft.data.prompt import end_token_id
from visgraft.errors import ConfigError
from visgraft.model.activation_checkpointing import checkpoint_activations
from visgraft.model.attention_kernel import FLEX
from visgraft.model.parts import input_embedding, part_module
from visgraft.model.quantization import quantization_config
from visgraft.model.storage.pretrained import load_config
from visgraft.model.trainable import Trainable, set_trainable, train_token_rows
from visgraft.model.vlm import VisionLanguageModel
from visgraft.processor import Processor
from visgraft.runs import find_model


def build(recipe: Recipe) -> tuple[VisionLanguageModel, Processor]:
    """Load or make what `recipe.model` names, part by part; answers end as the template's do."""
    processor = build_processor(recipe)
    model = build_model(recipe, image_size=processor.image_size)
    add_token_rows(model, recipe, processor)
    model.stop_also_at(end_token_id(processor.tokenizer, processor.prompt_template))
    return model, processor


def add_token_rows(model: VisionLanguageModel, recipe: Recipe, processor: Processor) -> None:
    """Give the model a row for each of `model.language.new_tokens`, to be trained; see `num_rows_of`."""
    new_tokens = recipe.model.language.new_tokens if recipe.model.language else ()
    if new_tokens:
        num_rows = num_rows_of(processor, at_least=input_embedding(model).shape[0])
        if num_rows > input_embedding(model).shape[0]:
            model.resize_token_embeddings(num_rows)
        model.new_token_ids = tuple(sorted(processor.tokenizer.convert_tokens_to_ids(list(new_tokens))))


def num_rows_of(processor: Processor, *, at_least: int) -> int:
    """Say how many rows the token embeddings need for a processor's tokenizer."""
    return max(at_least, 1 + max(processor.tokenizer.get_vocab().values()))


def check_token_rows(processor: Processor, *, num_rows: int) -> None:
    """See that every token that can come up has a row.

    Raises:
        ConfigError: naming those that have none.
    """
    tokenizer = processor.tokenizer
    ends = {end_token_id(tokenizer, processor.prompt_template), tokenizer.bos_token_id, tokenizer.eos_token_id}
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special} - ends
    without = sorted((i, t) for t, i in tokenizer.get_vocab().items() if i >= num_rows and i not in special)
    if without:
        named = ", ".join(repr(token) for _, token in without[:5]) + (", ..." if len(without) > 5 else "")
        raise ConfigError(
            f"model.language: {len(without)} tokens of its tokenizer have no row in its embeddings, which have "
            f"{num_rows:,}: {named}. Leave them out of the tokenizer and name them in model.language.new_tokens, which "
            "gives them rows to train, or take the tokenizer that belongs to the model"
        )


def build_model(recipe: Recipe, *, image_size: int | None) -> VisionLanguageModel:
    """Load or make the model that `recipe.model` names; nothing is cast and nothing set to train.

    Args:
        recipe: says which parts are joined, and how.
        image_size: side of the pixels that its processor makes; None = as the encoder takes them.

    Raises:
        CheckpointError: a part or a model to start from cannot be loaded.
        UnsupportedModelError: the language model does not follow the mask.
        ConfigError: a setting that the parts cannot take.
    """
    settings = recipe.model
    is_chosen_later = settings.attention in (None, FLEX)  # by device, once the model is on it
    loading: dict[str, Any] = {} if is_chosen_later else {"attn_implementation": settings.attention}
    if settings.start_from is not None:
        return VisionLanguageModel.from_pretrained(find_model(settings.start_from), **loading)
    assert settings.vision is not None and settings.language is not None, "load_recipe requires both"
    if settings.language.quantization is not None:
        loading["quantization_config"] = quantization_config(settings.language.quantization)
    return VisionLanguageModel.from_parts(
        settings.vision,
        settings.language.name,
        language_init=settings.language.init,
        vision_revision=settings.vision_revision,
        language_revision=settings.language_revision,
        **join_settings(recipe, image_size=image_size),
        **loading,
    )


def join_settings(recipe: Recipe, *, image_size: int | None) -> dict[str, Any]:
    """Return how `VisionLanguageModel.from_parts` joins the two parts of a recipe whose pixels have that size."""
    names = ("image_attention", "num_frames", "feature_layer", "keep_class_token")
    settings = {name: getattr(recipe.model, name) for name in names}
    # what the image processor makes need not be the size in the encoder's config (DINOv2: 224 and 518)
    return {
        **settings,
        "projection": asdict(recipe.model.projection),
        "tiles": _tiles(recipe),
        "image_size": image_size,
    }


def _tiles(recipe: Recipe) -> dict[str, Any] | None:
    return None if recipe.model.tiles is None else asdict(recipe.model.tiles)


def build_processor(recipe: Recipe) -> Processor:
    """Load or make the processor of what `recipe.model` names; no weights are read.

    Raises:
        CheckpointError: a part lacks its image processor, its config or its tokenizer.
        ConfigError: a setting that the parts cannot take.
    """
    settings = recipe.model
    if settings.start_from is not None:
        processor = Processor.from_pretrained(find_model(settings.start_from))
        template = settings.template or processor.template
    else:
        assert settings.vision is not None and settings.language is not None, "load_recipe requires both"
        names = (settings.vision, settings.language.name)
        projection = asdict(settings.projection)
        processor = Processor.from_parts(*names, **_reading(recipe), projection=projection, tiles=_tiles(recipe))
        template = settings.template or "question"
        _add_tokens(processor, settings.language.new_tokens)
    before = processor.text_before_images
    made = _with_settings(processor, template=template, max_text_tokens=recipe.data.max_text_tokens)
    if made.text_before_images != before:
        own = "images in front of the text" if before is None else f"its images in {processor.template!r}"
        raise ConfigError(
            f"model.template: got {template!r}, but the model was made with {own}: leave template out, or give one "
            "that has the same text in front of {image}"
        )
    if settings.language is not None and not settings.language.new_tokens:
        config = load_config(settings.language.name, revision=settings.language_revision).get_text_config(decoder=True)
        check_token_rows(made, num_rows=config.vocab_size)
    return made


def _add_tokens(processor: Processor, new_tokens: Sequence[str]) -> None:
    known = processor.tokenizer.get_vocab()
    twice = [token for token in new_tokens if token in known]
    if twice:
        raise ConfigError(
            f"model.language.new_tokens: the tokenizer has {', '.join(map(repr, twice))} already; leave out what it has"
        )
    processor.tokenizer.add_tokens(list(new_tokens))


def _reading(recipe: Recipe) -> dict[str, Any]:
    """Return the settings that model and processor must share."""
    names = ("image_size", "feature_layer", "keep_class_token", "vision_revision", "language_revision")
    return {name: getattr(recipe.model, name) for name in names}


def apply_modes(
    model: VisionLanguageModel, settings: TrainSettings, *, frozen_dtype: torch.dtype | None = None
) -> Trainable:
    """Set what trains, and what is computed twice to save memory, as `recipe.train` says; see `set_trainable`.

    Raises:
        ConfigError: what `set_trainable` raises, or gradient checkpointing that a part does not know.
    """
    report = set_trainable(
        model,
        modes={part: settings.mode_of(part) for part in PARTS},
        lora={part: settings.lora_of(part) for part in PARTS},
        frozen_dtype=frozen_dtype,
    )
    if model.new_token_ids:
        report = train_token_rows(model, report, model.new_token_ids)
    vocabulary = input_embedding(model).shape[0]
    model.logits_bytes = min(model.logits_bytes, settings.logits_chunk * vocabulary * torch.float32.itemsize)
    for part in ("vision", "language") if settings.gradient_checkpointing else ():
        module: Any = part_module(model, part)
        if part == "vision" and report.modes["vision"] == "frozen":
            continue  # it runs without gradients, so nothing is kept
        if not module.supports_gradient_checkpointing:
            raise ConfigError(f"train.gradient_checkpointing: {type(module).__name__} does not know it; say false")
        checkpoint_activations(module)
    return report


def _with_settings(processor: Processor, *, template: str, max_text_tokens: int) -> Processor:
    return Processor(
        processor.image_processor,
        processor.tokenizer,
        num_image_tokens=processor.num_image_tokens,
        image_size=processor.image_size,
        template=template,
        max_text_tokens=max_text_tokens,
        max_positions=processor.max_positions,
        images_take_positions=processor.images_take_positions,
        extent_per_token=processor.extent_per_token,
        tiles=processor.tiles,
    )
