"""The shapes that are drawn are those that the model makes, over encoders, language models and projections."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.tiny import IMAGE_SIDE, LANGUAGES, VISIONS, fresh, joined, random_ids, random_pixels
from visgraft.builder.shapes import shapes_of, stages_of
from visgraft.model.vision import encode


def processor_of(model: Any, *, side: int | None) -> Any:
    return SimpleNamespace(image_size=side, num_image_tokens=model.projection.num_tokens)


@pytest.mark.parametrize(
    ("language", "vision"), [*((name, "clip") for name in LANGUAGES), *(("llama", name) for name in VISIONS)]
)
def test_shapes_are_those_of_the_tensors(language: str, vision: str) -> None:
    side = IMAGE_SIDE.get(vision, 32)
    model = fresh(language, vision, image_size=side)
    shapes = shapes_of(model, processor_of(model, side=side))
    pixels = random_pixels(1, vision=vision)
    with torch.no_grad():
        features = encode(model.vision, {"pixel_values": pixels}, settings=model.config.vision_settings)
        tokens = model.encode_images({"pixel_values": pixels})
        out = model(input_ids=random_ids(1, 4), pixel_values=pixels)
    assert shapes["pixels"] == list(pixels.shape[1:])
    assert shapes["features"] == list(features.shape[1:])
    assert shapes["image_tokens"] == list(tokens.shape[1:])
    assert shapes["hidden"] == model.language.config.hidden_size
    assert shapes["vocabulary"] == out.logits.shape[-1]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "linear, LayerNorm"),
        ({"projection": {"type": "mlp"}}, "linear, GELU, linear"),
        ({"projection": {"pool": 2}}, "mean of 2 x 2 patches, linear, LayerNorm"),
        ({"projection": {"pixel_shuffle": 2}, "num_frames": 3}, "2 x 2 patches side by side, linear, LayerNorm, 3 f"),
    ],
)
def test_stages_say_what_each_part_is_made_of(settings: dict[str, Any], words: str) -> None:
    model = fresh("opt_post_norm", **settings)
    vision, projection, language, head = stages_of(model, processor_of(model, side=32))
    assert vision.what == "clip_vision_model, 2 layers"
    assert projection.what.startswith(words)
    assert projection.gives == f"{model.projection.num_tokens} x 16 image tokens"
    assert (language.what, head.gives) == ("opt, 2 layers, 32 wide", "T x 96 logits")


def test_images_of_their_own_size_have_no_fixed_pixels() -> None:
    assert shapes_of(joined(), processor_of(joined(), side=None))["pixels"] is None
