"""The one function that says whether a recipe fits, how long it takes, and what to change."""

from pathlib import Path
from typing import Any

import pytest

from tests.training.tiny import tiny_recipe
from visgraft.errors import ConfigError, MaskSizeError
from visgraft.estimate.estimate import estimate
from visgraft.estimate.gpus import GPUS, this_computer
from visgraft.model import language


def test_a_gpu_is_given_by_its_name_or_as_it_is(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    named = estimate(recipe, gpu="rtx4090")
    assert named == estimate(recipe, gpu=GPUS["rtx4090"])
    assert named.fits and named.changes == [] and named.trial is None
    assert named.seconds_per_step is not None and named.num_steps is not None
    assert named.seconds == float(f"{named.seconds_per_step * named.num_steps:.4g}")
    with pytest.raises(ConfigError, match="got 'rtx409'; did you mean rtx4090"):
        estimate(recipe, gpu="rtx409")


def test_where_only_the_memory_is_known_there_is_no_time(tmp_path: Path) -> None:
    found = estimate(tiny_recipe(tmp_path), gpu="24GB")
    assert found.seconds_per_step is None and found.seconds is None
    assert "name a GPU" in found.basis


def test_changes_are_tried_where_it_does_not_fit_and_reported_as_they_are_found(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, language="full", text_tokens_per_step=4000)
    total = estimate(recipe, gpu="24GB").cost.total_bytes
    said: list[str] = []
    found = estimate(recipe, gpu=f"{(total - 1000) / 0.98 / 2**30:.9f}GB", say=said.append)
    assert not found.fits
    assert found.changes[0].setting.startswith("train.micro_batch_positions=")
    assert [line for line in said if line.startswith("with ")] == [
        f"with {change.setting} {change.total_bytes / 2**30:.2f} GiB" for change in found.changes
    ]


def test_the_values_for_programs_say_the_same(tmp_path: Path) -> None:
    found = estimate(tiny_recipe(tmp_path), gpu=this_computer(), measure=False)
    values: dict[str, Any] = found.as_json()
    assert values["fits"] is found.fits
    assert values["total_bytes"] == sum(values["parts"].values()) == found.cost.total_bytes
    assert values["time"]["steps"] == found.num_steps
    assert values["measured"] is None


def test_on_request_steps_are_measured_here(tmp_path: Path) -> None:
    found = estimate(tiny_recipe(tmp_path), gpu=this_computer(), measure=True)
    assert found.trial is not None
    assert found.basis == "measured here, 2 steps on cpu"
    assert found.seconds_per_step in (*found.trial.seconds, sum(found.trial.seconds) / 2)


def test_micro_batches_whose_masks_are_too_large_are_halved_as_in_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(tmp_path, num_images=16, text_tokens_per_step=4000)
    whole = estimate(recipe, gpu=this_computer(), measure=False)
    monkeypatch.setattr(language, "MAX_MASK_BYTES", 20_000)
    halved = estimate(recipe, gpu=this_computer(), measure=False)
    assert halved.cost.sizes["activations"] < whole.cost.sizes["activations"]
    assert halved.num_steps == whole.num_steps
    monkeypatch.setattr(language, "MAX_MASK_BYTES", 50)
    with pytest.raises(MaskSizeError, match="a dense attention mask of 1 rows"):
        estimate(recipe, gpu=this_computer(), measure=False)
