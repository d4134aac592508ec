from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.tiny import tiny_recipe
from visgraft.builder.build import apply_modes, build, build_processor
from visgraft.config import load_recipe
from visgraft.errors import CheckpointError, ConfigError
from visgraft.estimate.outline import ASSUMED_TOKENS, outline_run
from visgraft.training.plan import Position
from visgraft.training.steps import StepDataset
from visgraft.training.training_data import loader_settings, open_planner

CPU = torch.device("cpu")


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    return tiny_recipe(tmp_path, num_images=16)


def test_the_batches_are_those_that_training_makes_without_their_pixels(values: dict[str, Any]) -> None:
    values["train"]["micro_batch_rows"] = 2
    recipe = load_recipe(values)
    outline = outline_run(recipe, dtype=None, device=CPU)
    planner = open_planner(recipe, "train", build_processor(recipe))
    dataset, finish = StepDataset(planner, loader_settings(recipe, device="cpu")), planner.processor.finish
    real = [tuple(map(finish, dataset[plan].batches)) for plan in planner.steps(Position(0, 0), epochs=1.0)]
    shapes = [[batch.input_ids.shape for batch in batches] for batches in real]
    assert [batch.input_ids.shape for batch in outline.micro_batches] in shapes
    assert outline.num_steps == len(real)
    [same] = [batches for batches in real if batches[0].input_ids.equal(outline.micro_batches[0].input_ids)]
    for hollow, full in zip(outline.micro_batches, same, strict=True):
        assert hollow.vision_inputs["pixel_values"].shape == full.vision_inputs["pixel_values"].shape
        assert hollow.vision_inputs["pixel_values"].is_meta
        for key in ("kind", "segment", "position", "source", "target", "num_image_tokens", "frame_index"):
            assert torch.equal(hollow[key], full[key]), key


def test_the_model_has_the_shapes_and_formats_that_training_gives_it(values: dict[str, Any]) -> None:
    recipe = load_recipe(values)
    outline = outline_run(recipe, dtype=torch.bfloat16, device=CPU)
    real, _ = build(recipe)
    apply_modes(real, recipe.train, frozen_dtype=torch.bfloat16)
    described = {n: (p.shape, p.dtype, p.requires_grad) for n, p in real.named_parameters()}
    assert {n: (p.shape, p.dtype, p.requires_grad) for n, p in outline.model.named_parameters()} == described


def test_max_steps_limits_the_number_of_steps(values: dict[str, Any]) -> None:
    values["train"] |= {"max_steps": 2, "epochs": 3}
    assert outline_run(load_recipe(values), dtype=None, device=CPU).num_steps == 2
    values["train"] |= {"max_steps": None}
    once = outline_run(
        load_recipe({**values, "train": {**values["train"], "epochs": 1}}), dtype=None, device=CPU
    ).num_steps
    several = outline_run(load_recipe(values), dtype=None, device=CPU).num_steps
    assert once is not None
    assert several is not None
    assert abs(several - 3 * once) <= 2


def test_data_that_is_not_there_is_assumed_and_said(values: dict[str, Any]) -> None:
    values["data"] = {"train": [{"source": "folder", "path": "/no/such/pictures"}]}
    outline = outline_run(load_recipe(values), dtype=None, device=CPU)
    assert outline.num_steps is None
    said = " ".join(outline.assumptions)
    assert "/no/such/pictures" in said
    assert f"{ASSUMED_TOKENS} tokens long" in said
    assert sum(batch.num_text_tokens for batch in outline.micro_batches) >= 80


def test_a_reader_that_does_not_exist_is_an_error_all_the_same(values: dict[str, Any]) -> None:
    values["data"] = {"train": [{"source": "foldr", "path": "x"}]}
    with pytest.raises(ConfigError, match="did you mean folder"):
        outline_run(load_recipe(values), dtype=None, device=CPU)


def test_a_part_of_which_only_the_configuration_is_there_is_enough(values: dict[str, Any], tmp_path: Path) -> None:
    for part in ("vision", "language"):
        whole, bare = Path(values["model"][part]), tmp_path / f"bare-{part}"
        bare.mkdir()
        (bare / "config.json").write_bytes((whole / "config.json").read_bytes())
        values["model"][part] = str(bare)
    outline = outline_run(load_recipe(values), dtype=None, device=CPU)
    assert any("no processor can be read" in text for text in outline.assumptions)
    assert outline.model.projection.num_tokens == 5


def test_a_part_without_a_configuration_is_an_error_that_says_what_is_enough(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    values["model"]["language"] = "someone/nothing"
    with pytest.raises(CheckpointError, match=r"someone/nothing: not found.*config\.json is enough here"):
        outline_run(load_recipe(values), dtype=None, device=CPU)


def test_features_from_the_cache_take_the_place_of_pixels(values: dict[str, Any]) -> None:
    values["train"]["cache_vision"] = "disk"
    [batch] = outline_run(load_recipe(values), dtype=None, device=CPU).micro_batches
    assert list(batch.vision_inputs) == ["features"]
    assert batch.vision_inputs["features"].shape == (len(batch.num_image_tokens), 5, 32)
    values["train"]["vision"] = "full"
    [batch] = outline_run(load_recipe(values), dtype=None, device=CPU).micro_batches
    assert list(batch.vision_inputs) == ["pixel_values"]


def test_on_a_gpu_rows_are_long_and_attention_keeps_no_mask(values: dict[str, Any]) -> None:
    values["train"] |= {"text_tokens_per_step": 400, "micro_batch_rows": None}
    on_cpu = outline_run(load_recipe(values), dtype=None, device=CPU)
    on_gpu = outline_run(load_recipe(values), dtype=None, device=torch.device("cuda"))
    assert on_gpu.micro_batches[0].kind.shape[1] > on_cpu.micro_batches[0].kind.shape[1]
    assert on_cpu.model.language.config._attn_implementation == "eager"
    assert not on_cpu.has_block_masks
