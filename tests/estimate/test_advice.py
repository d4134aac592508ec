from dataclasses import replace
from itertools import pairwise

import pytest

from visgraft.config import Recipe, load_recipe
from visgraft.errors import ConfigError
from visgraft.estimate.advice import Change, advise
from visgraft.estimate.gpus import Gpu
from visgraft.estimate.step_cost import StepCost

WHOLE = StepCost(
    {"weights": 400, "gradients": 100, "optimizer": 200, "activations": 1000, "logits": 100},
    {}, loading_bytes=0, num_positions=1600, flops_per_position=1.0,
)  # fmt: skip


def cost_of(recipe: Recipe) -> StepCost:
    """A stand-in whose memory follows the settings as real memory does."""
    sizes, train = dict(WHOLE.sizes), recipe.train
    positions = train.micro_batch_positions or WHOLE.num_positions
    share = (
        positions / WHOLE.num_positions / (5 if train.gradient_checkpointing else 1) / recipe.model.projection.pool**2
    )
    sizes["activations"], sizes["logits"] = round(1000 * share), round(100 * share)
    if train.language != "full":
        sizes |= {"gradients": 5, "optimizer": 10, "weights": 200}
    if recipe.model.language and recipe.model.language.quantization:
        sizes["weights"] = 60
    return replace(WHOLE, sizes=sizes, num_positions=positions)


def changes(memory: int, **train: object) -> list[Change]:
    recipe = load_recipe({"model": {"vision": "eye", "language": "tongue"}, "train": {"language": "full", **train}})
    return list(advise(recipe, cost_of(recipe), gpu=Gpu("gpu", memory), cost_of=cost_of))


def test_what_fits_needs_no_change() -> None:
    assert changes(2000) == []


def test_changes_that_leave_the_result_alone_come_first() -> None:
    [only] = changes(1400)
    assert only.setting.startswith("train.micro_batch_positions=")
    assert only.saved_bytes == 1800 - only.total_bytes
    assert only.total_bytes <= 1400


def test_each_change_stands_on_those_before_it_until_it_fits() -> None:
    found = changes(200)
    settings = [change.setting for change in found]
    assert settings[0] == "train.micro_batch_positions=64"
    assert settings[1:] == [
        "train.gradient_checkpointing=true", "train.language=lora", "model.language.quantization=4bit",
    ]  # fmt: skip
    totals = [1800, *(change.total_bytes for change in found)]
    assert [change.saved_bytes for change in found] == [a - b for a, b in pairwise(totals)]
    assert totals[-1] <= 200 < totals[-2]


def test_a_small_change_that_makes_it_fit_is_kept() -> None:
    settings = {"gradient_checkpointing": True, "micro_batch_positions": 100, "language": "lora"}
    small = replace(WHOLE, sizes={**WHOLE.sizes, "weights": 10**6}, num_positions=100)
    recipe = load_recipe({"model": {"vision": "eye", "language": "tongue"}, "train": settings})
    smaller = replace(small, sizes={**small.sizes, "activations": 900}, num_positions=100)
    gpu = Gpu("gpu", smaller.total_bytes)
    [only] = advise(recipe, small, gpu=gpu, cost_of=lambda _: smaller)
    assert only.saved_bytes == 100


def test_what_is_done_already_is_not_proposed_again() -> None:
    found = [
        change.setting for change in changes(10, gradient_checkpointing=True, micro_batch_positions=64, language="lora")
    ]
    assert found[0] == "model.language.quantization=4bit"
    assert not any(setting.startswith(("train.gradient", "train.language")) for setting in found)


def test_a_change_that_the_parts_cannot_take_is_left_out() -> None:
    def without_pooling(recipe: Recipe) -> StepCost:
        if recipe.model.projection.pool > 1:
            raise ConfigError("a grid of 7 x 7")
        return cost_of(recipe)

    recipe = load_recipe({"model": {"vision": "eye", "language": "tongue"}})
    gpu = Gpu("gpu", 1)
    found = list(advise(recipe, WHOLE, gpu=gpu, cost_of=without_pooling))
    assert found
    assert not any("pool" in change.setting for change in found)


@pytest.mark.parametrize("memory", [10, 300, 700, 1100, 1500])
def test_every_proposed_setting_is_one_that_a_recipe_takes(memory: int) -> None:
    recipe: Recipe | dict[str, object] = {"model": {"vision": "eye", "language": "tongue"}}
    for change in changes(memory, vision="full"):
        recipe = load_recipe(recipe, overrides=[change.setting])
