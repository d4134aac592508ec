"""What to change where a recipe does not fit: the changes that cost least first, each with what it saves.

In: a recipe, its estimate, and a function that estimates another recipe. Out: changes, one on top of the other.

    for change in advise(recipe, estimate, gpu=find_gpu("24GB"), estimate_of=estimate_of):
        print(change.setting, change.saved_bytes, change.total_bytes)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from visgraft.config import Recipe, load_recipe, recipe_to_dict
from visgraft.errors import ConfigError
from visgraft.estimate.estimate import Estimate
from visgraft.estimate.gpus import Gpu

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


def advise(
    recipe: Recipe, estimate: Estimate, *, gpu: Gpu, estimate_of: Callable[[Recipe], Estimate]
) -> Iterator[Change]:
    """Go through changes, each on top of those before it, until the recipe fits or nothing is left.

    Args:
        recipe: as it is.
        estimate: its own.
        gpu: what it has to fit into.
        estimate_of: estimates a changed recipe.
    """
    for propose in (_fewer_positions, _checkpointing, _lora_language, _quantized, _lora_vision, _fewer_image_tokens):
        if estimate.fits(gpu):
            return
        proposed = propose(recipe, estimate, gpu.memory_bytes)
        if proposed is None:
            continue
        setting, costs = proposed
        try:
            changed = load_recipe(recipe_to_dict(recipe), overrides=[setting])
            then = estimate_of(changed)
        except ConfigError:  # the parts cannot take it (a grid that 2 does not divide)
            continue
        saved = estimate.total_bytes - then.total_bytes
        if saved >= WORTH_SAYING * estimate.total_bytes or then.fits(gpu):
            yield Change(setting, costs, saved, then.total_bytes)
            recipe, estimate = changed, then


def _fewer_positions(recipe: Recipe, estimate: Estimate, memory_bytes: int) -> tuple[str, str] | None:
    grows = estimate.sizes["activations"] + estimate.sizes["logits"]
    room = memory_bytes - (estimate.total_bytes - grows)
    most = estimate.num_positions // 2
    positions = max(LEAST_POSITIONS, min(most, int(0.9 * estimate.num_positions * room / grows)))
    if positions > most:
        return None
    return f"train.micro_batch_positions={positions}", "same result, in smaller pieces: a little slower"


def _checkpointing(recipe: Recipe, estimate: Estimate, memory_bytes: int) -> tuple[str, str] | None:
    if recipe.train.gradient_checkpointing:
        return None
    return "train.gradient_checkpointing=true", "same result, about a third slower"


def _quantized(recipe: Recipe, estimate: Estimate, memory_bytes: int) -> tuple[str, str] | None:
    language = recipe.model.language
    is_possible = language is not None and language.quantization is None and language.init == "pretrained"
    if not is_possible or recipe.train.language not in ("frozen", "lora"):
        return None
    return "model.language.quantization=4bit", "the frozen language model is rounded to 4 bits"


def _lora_language(recipe: Recipe, estimate: Estimate, memory_bytes: int) -> tuple[str, str] | None:
    if recipe.train.language in ("frozen", "lora"):
        return None
    return "train.language=lora", "another training: adapters instead of all weights"


def _lora_vision(recipe: Recipe, estimate: Estimate, memory_bytes: int) -> tuple[str, str] | None:
    if recipe.train.vision in ("frozen", "lora"):
        return None
    return "train.vision=lora", "another training: adapters instead of all weights"


def _fewer_image_tokens(recipe: Recipe, estimate: Estimate, memory_bytes: int) -> tuple[str, str] | None:
    if recipe.model.start_from is not None or recipe.model.projection.pool * recipe.model.projection.pixel_shuffle > 1:
        return None
    return "model.projection.pool=2", "another model: a quarter of the image tokens"
