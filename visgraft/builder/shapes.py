"""The joined model as stages that an image and a text go through, each with what it is and the shape it gives.

In: a model (on the meta device will do: no weight is read) and its processor. Out: one `Stage` a part, in the order of
the pipeline, and the shapes as plain values.

    stages = stages_of(model, processor)
    stages[0]        # Stage(part="vision", what="clip_vision_model, 12 layers", gives="197 x 768")
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from visgraft.config import Part
from visgraft.model.vision import measure
from visgraft.model.vlm import VisionLanguageModel
from visgraft.processor import Processor


@dataclass(frozen=True)
class Stage:
    """One part of the joined model.

    Attributes:
        part: vision, projection, language or head.
        what: its kind and size in words.
        gives: the shape of what leaves it, for one image and one text of T tokens.
    """

    part: Part
    what: str
    gives: str


def shapes_of(model: VisionLanguageModel, processor: Processor) -> dict[str, Any]:
    """Give the sizes along the way; `pixels` is None where images keep a size of their own.

    Returns:
        `pixels` [3, H, W], `features` [P before the projection, D_vision], `image_tokens` [P, width where they enter],
        `hidden` (the language model's width) and `vocabulary` (the head's rows).
    """
    features = measure(model.vision.config, settings=model.config.vision_settings)
    side, config = processor.image_size, model.language.config.get_text_config(decoder=True)
    head: Any = model.get_output_embeddings()
    return {
        "pixels": None if side is None else [getattr(model.vision.config, "num_channels", 3), side, side],
        "features": [features.num_tokens, features.width],
        "image_tokens": [processor.num_image_tokens, model.prefix_injection.width],
        "hidden": int(config.hidden_size),
        "vocabulary": int(head.weight.shape[0]),
    }


def stages_of(model: VisionLanguageModel, processor: Processor) -> list[Stage]:
    """Give the stages in the order of the pipeline."""
    shapes = shapes_of(model, processor)
    config = model.language.config.get_text_config(decoder=True)
    is_transformer = isinstance(getattr(model.vision.config, "patch_size", None), int)  # others count otherwise
    layers = getattr(model.vision.config, "num_hidden_layers", None) if is_transformer else None
    vision = model.vision.config.model_type + (f", {layers} layers" if layers else "")
    language = f"{config.model_type}, {config.num_hidden_layers} layers, {shapes['hidden']:,} wide"
    if model.prefix_injection.at == "first_layer":
        language += "; image tokens enter its first layer"
    features, image_tokens = (f"{rows:,} x {width:,}" for rows, width in (shapes["features"], shapes["image_tokens"]))
    num_image = shapes["image_tokens"][0]
    return [
        Stage("vision", vision, f"{features} features"),
        Stage("projection", _projection(model), f"{image_tokens} image tokens"),
        Stage("language", language, f"({num_image:,} + T) x {shapes['hidden']:,} states"),
        Stage("head", f"a vocabulary of {shapes['vocabulary']:,} tokens", f"T x {shapes['vocabulary']:,} logits"),
    ]


def _projection(model: VisionLanguageModel) -> str:
    settings = model.projection.settings
    kind = "linear, LayerNorm" if settings.type == "linear" else "linear, GELU, linear"
    if settings.pool > 1:
        kind = f"mean of {settings.pool} x {settings.pool} patches, {kind}"
    if settings.pixel_shuffle > 1:
        kind = f"{settings.pixel_shuffle} x {settings.pixel_shuffle} patches side by side, {kind}"
    return kind + (f", {model.config.num_frames} frames" if model.config.num_frames else "")
