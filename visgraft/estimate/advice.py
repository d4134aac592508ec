"""What to change where a recipe does not fit: the changes that cost least first, each with what it saves.

In: a recipe, what its steps cost, and a function that says it of another recipe. Out: changes, one on top of the other.

    for change in advise(recipe, cost, gpu=find_gpu("24GB"), cost_of=cost_of):
        print(change.setting, change.saved_bytes, change.total_bytes)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from visgraft.config import Recipe, load_recipe, recipe_to_dict
from visgraft.errors import ConfigError
from visgraft.estimate.gpus import Gpu
from visgraft.estimate.step_cost import StepCost

LEAST_POSITIONS = 64  # of a micro-batch: less than a sample
WORTH_SAYING = 0.02  # of the total: a change that saves less, and does not make it fit, is left out


@dataclass(frozen=True)
class Change:
    """A change to a recipe.

    Attributes:
        setting: as `--set` takes it, `train.gradient_checkpointing=true`.
        costs: what one pays for it.
        saved_bytes: less than with the changes before it.
        total_bytes: what the run then takes.
    """

    setting: str
    costs: str
    saved_bytes: int
    total_bytes: int


def advise(recipe: Recipe, cost: StepCost, *, gpu: Gpu, cost_of: Callable[[Recipe], StepCost]) -> Iterator[Change]:
    """Go through changes, each on top of those before it, until the recipe fits or nothing is left.

    Args:
        recipe: as it is.
        cost: its own.
        gpu: what it has to fit into.
        cost_of: estimates a changed recipe.
    """
    for propose in (_fewer_positions, _checkpointing, _lora_language, _quantized, _lora_vision, _fewer_image_tokens):
        if cost.fits(gpu):
            return
        proposed = propose(recipe, cost, gpu.memory_bytes)
        if proposed is None:
            continue
        setting, costs = proposed
        try:
            changed = load_recipe(recipe_to_dict(recipe), overrides=[setting])
            then = cost_of(changed)
        except ConfigError:  # the parts cannot take it (a grid that 2 does not divide)
            continue
        saved = cost.total_bytes - then.total_bytes
        if saved >= WORTH_SAYING * cost.total_bytes or then.fits(gpu):
            yield Change(setting, costs, saved, then.total_bytes)
            recipe, cost = changed, then


def _fewer_positions(recipe: Recipe, cost: StepCost, memory_bytes: int) -> tuple[str, str] | None:
    grows = cost.sizes["activations"] + cost.sizes["logits"]
    room = memory_bytes - (cost.total_bytes - grows)
    most = cost.num_positions // 2
    positions = max(LEAST_POSITIONS, min(most, int(0.9 * cost.num_positions * room / grows)))
    if positions > most:
        return None
    return f"train.micro_batch_positions={positions}", "same result, in smaller pieces: a little slower"


def _checkpointing(recipe: Recipe, cost: StepCost, memory_bytes: int) -> tuple[str, str] | None:
    if recipe.train.gradient_checkpointing:
        return None
    return "train.gradient_checkpointing=true", "same result, about a third slower"


def _quantized(recipe: Recipe, cost: StepCost, memory_bytes: int) -> tuple[str, str] | None:
    language = recipe.model.language
    is_possible = language is not None and language.quantization is None and language.init == "pretrained"
    if not is_possible or recipe.train.language not in ("frozen", "lora"):
        return None
    return "model.language.quantization=4bit", "the frozen language model is rounded to 4 bits"


def _lora_language(recipe: Recipe, cost: StepCost, memory_bytes: int) -> tuple[str, str] | None:
    if recipe.train.language in ("frozen", "lora"):
        return None
    return "train.language=lora", "another training: adapters instead of all weights"


def _lora_vision(recipe: Recipe, cost: StepCost, memory_bytes: int) -> tuple[str, str] | None:
    if recipe.train.vision in ("frozen", "lora"):
        return None
    return "train.vision=lora", "another training: adapters instead of all weights"


def _fewer_image_tokens(recipe: Recipe, cost: StepCost, memory_bytes: int) -> tuple[str, str] | None:
    if recipe.model.start_from is not None or recipe.model.projection.pool * recipe.model.projection.pixel_shuffle > 1:
        return None
    return "model.projection.pool=2", "another model: a quarter of the image tokens"
