"""An experiment file: a base recipe, named variants of it, perhaps a grid; read as strictly as a recipe.

In: YAML. Out: `ExperimentSettings` and the values of the base recipe.

    base: my.yaml                         # a recipe to begin with, or a shipped one's name, or
    recipe: {train: {epochs: 5}}          # its settings; beside `base` they come over it, key by key
    seeds: 2                              # runs of each variant
    variants:
      projection: {}                      # the recipe as it is
      lora: {train.language: lora}        # what is different, as --set takes it
      second: {model.start_from: {variant: lora}, train.epochs: 10}     # begins with the model of another variant
    grid:
      model.image_attention: [bidirectional, causal]                    # each variant with each of them

Usage: `settings, recipe, folder = read_experiment("experiment.yaml")`
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from visgraft.config import Recipe, Strict, find_recipe, read_recipe, read_yaml
from visgraft.config.hints import Bound
from visgraft.config.renamed import take_version
from visgraft.config.shipped import shipped_recipe
from visgraft.errors import ConfigError


@dataclass(frozen=True)
class ExperimentSettings:
    """What an experiment file may say."""

    name: str | None = None  # of the experiment's folder; null: the file's own name
    base: str | None = None  # recipe to begin with: a file beside this one, or a shipped recipe's name
    recipe: dict[str, Any] = field(default_factory=dict)  # settings of the base recipe; over those of `base`
    variants: dict[str, dict[str, Any] | None] = field(default_factory=dict)  # name -> dotted settings
    grid: dict[str, list[Any]] = field(default_factory=dict)  # dotted setting -> values, each variant with each
    seeds: Annotated[int, Bound(at_least=1)] = 1  # runs of each variant, from train.seed on


def read_experiment(path: str | Path) -> tuple[ExperimentSettings, dict[str, Any], Path]:
    """Read an experiment file.

    Returns:
        What it says, the values of its base recipe, and the folder in which the recipe's paths are looked for.

    Raises:
        ConfigError: no such file, an unknown key, a wrong type, or a base recipe with one.
    """
    file = find_recipe(path)
    values = read_yaml(file, what="experiment", need="a YAML file, or a name that `visgraft recipes` lists")
    settings: ExperimentSettings = Strict(ExperimentSettings).convert(values, ExperimentSettings, "")
    folder, recipe = file.absolute().parent, dict(settings.recipe)
    take_version(recipe)
    if settings.base is not None:
        base = Path(settings.base).expanduser()
        base = base if base.is_absolute() else folder / base
        if not base.exists():
            base = shipped_recipe(settings.base) or base
        need = "a YAML file beside this one, or a name that `visgraft recipes` lists"
        recipe, folder = _merged(read_recipe(base, what="base recipe", need=need), recipe), base.parent
    if not recipe:
        raise ConfigError(f"{path}: names no recipe; give base (a recipe's file), recipe (its settings), or both")
    try:
        Strict(Recipe, folder=folder).convert(
            recipe, Recipe, ""
        )  # its keys and types; what is missing, variants may bring
    except ConfigError as error:
        raise ConfigError(f"{'recipe' if settings.base is None else settings.base}: {error}") from error
    return settings, recipe, folder


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lay settings over others: mappings key by key, anything else as a whole."""
    merged = copy.deepcopy(dict(below))
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged
