"""Recipes: every setting of a run, checked strictly, read from YAML and written back.

In: a YAML file, a dict, overrides. Out: a frozen `Recipe`. No torch is imported here.
Usage: `from visgraft.config import Recipe, load_recipe`
"""

from visgraft.config.effects import Effect, changeable_keys, effect_of
from visgraft.config.hints import unknown_key
from visgraft.config.plain_values import flatten
from visgraft.config.recipe import (
    apply_override,
    load_data,
    load_recipe,
    read_recipe,
    read_yaml,
    recipe_to_dict,
    recipe_to_yaml,
    set_key,
)
from visgraft.config.settings import (
    PARTS,
    AugmentSettings,
    DataSettings,
    LanguageSettings,
    LastLayers,
    LoraSettings,
    ModelSettings,
    Part,
    Patterns,
    ProjectionSettings,
    Recipe,
    SamplePromptSettings,
    SourceSettings,
    TileSettings,
    TrainingMode,
    TrainSettings,
)
from visgraft.config.shipped import find_recipe
from visgraft.config.strict import Strict

__all__ = [
    "PARTS",
    "AugmentSettings",
    "DataSettings",
    "Effect",
    "LanguageSettings",
    "LastLayers",
    "LoraSettings",
    "ModelSettings",
    "Part",
    "Patterns",
    "ProjectionSettings",
    "Recipe",
    "SamplePromptSettings",
    "SourceSettings",
    "Strict",
    "TileSettings",
    "TrainSettings",
    "TrainingMode",
    "apply_override",
    "changeable_keys",
    "effect_of",
    "find_recipe",
    "flatten",
    "load_data",
    "load_recipe",
    "read_recipe",
    "read_yaml",
    "recipe_to_dict",
    "recipe_to_yaml",
    "set_key",
    "unknown_key",
]
