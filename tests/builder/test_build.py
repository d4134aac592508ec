"""A recipe becomes the model and the processor that it describes."""

from pathlib import Path

import pytest
import torch

from tests.training.tiny import tiny_recipe
from visgraft.builder.build import apply_modes, build
from visgraft.config import load_recipe
from visgraft.errors import ConfigError


def test_what_the_recipe_says_of_the_join_reaches_model_and_processor(tmp_path: Path) -> None:
    values = tiny_recipe(tmp_path)
    values["model"] |= {
        "image_attention": "causal", "image_size": 64, "keep_class_token": False, "num_frames": 2,
        "projection": {"type": "mlp", "pool": 2}, "template": "chat: {prompt}", "attention": "eager",
    }  # fmt: skip
    values["data"]["max_text_tokens"] = 33
    model, processor = build(load_recipe(values))
    assert model.config.image_attention == "causal"
    assert model.projection.temporal_embedding is not None
    assert model.language.config._attn_implementation == "eager"
    assert model.projection.num_tokens == processor.num_image_tokens == (64 // 16 // 2) ** 2
    assert (processor.image_size, processor.template, processor.max_text_tokens) == (64, "chat: {prompt}", 33)


def test_the_template_is_question_unless_said_and_stays_that_of_a_model_to_start_from(tmp_path: Path) -> None:
    values = tiny_recipe(tmp_path)
    assert build(load_recipe(values))[1].template == "question"
    values["model"]["template"] = "plain"
    model, processor = build(load_recipe(values))
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    values["model"] = {"start_from": str(folder)}
    assert build(load_recipe(values))[1].template == "plain"
    values["model"]["template"] = "question"
    assert build(load_recipe(values))[1].template == "question"


def test_modes_are_set_as_the_recipe_says(tmp_path: Path) -> None:
    recipe = load_recipe(tiny_recipe(tmp_path, lora={"language": {"r": 3, "target_modules": ["q_proj"]}}))
    model, _ = build(recipe)
    report = apply_modes(model, recipe.train, frozen_dtype=torch.bfloat16)
    assert report.modes == {"vision": "frozen", "projection": "full", "language": "lora", "head": "frozen"}
    assert report.lora_targets["language"] == tuple(f"model.layers.{n}.self_attn.q_proj" for n in range(2))
    assert model.language.model.layers[0].self_attn.q_proj.r == {"default": 3}
    assert model.vision.dtype == torch.bfloat16


def test_gradient_checkpointing_that_a_part_does_not_know_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(tiny_recipe(tmp_path, gradient_checkpointing=True, vision="full"))
    model, _ = build(recipe)
    monkeypatch.setattr(type(model.vision), "supports_gradient_checkpointing", False)
    with pytest.raises(
        ConfigError, match=r"train\.gradient_checkpointing: CLIPVisionModel does not know it; say false"
    ):
        apply_modes(model, recipe.train)
