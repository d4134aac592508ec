"""Load a recipe from YAML, a dict or a Recipe, with overrides; write one as YAML.

In: a file of settings (only what differs from the defaults) and overrides such as `train.epochs=3`.
Out: a checked `Recipe`, or a ConfigError with the key as it was typed.
Usage: `recipe = load_recipe("recipe.yaml", overrides=["train.epochs=3"])`
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from visgraft.config.hints import got
from visgraft.config.plain_values import to_plain
from visgraft.config.renamed import take_version, use_new_keys
from visgraft.config.settings import PARTS, DataSettings, Recipe
from visgraft.config.shipped import find_recipe
from visgraft.config.strict import Strict
from visgraft.errors import ConfigError
from visgraft.parsing import parse_yaml


class _Loader(yaml.SafeLoader):
    """YAML as PyYAML's safe loader has it, except that a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep=deep)
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = key_node.value
            if key in seen:
                problem = f"the key {key!r} is given twice; keep one"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            seen.add(key)
        return mapping


def load_recipe(
    source: str | Path | Mapping[str, Any] | Recipe, *, overrides: Sequence[str] = (), folder: Path | None = None
) -> Recipe:
    """Load and check a recipe.

    `source` is a YAML file, a run folder, the name of a shipped recipe, a dict of the same form, or a Recipe. What says
    no `version` is of today's form, but that of a run folder may be older. Relative paths of sources and models are
    looked for beside the file (of a dict in `folder`), then in the working directory. Raises ConfigError.
    """
    if isinstance(source, Recipe):
        values = recipe_to_dict(source)
    elif isinstance(source, Mapping):
        values = copy.deepcopy(dict(source))
        take_version(values)
    else:
        path = find_recipe(source)
        path = path / "recipe.yaml" if path.is_dir() else path
        values, folder = read_recipe(path), path.absolute().parent
    for override in overrides:
        apply_override(values, override)
    recipe: Recipe = Strict(Recipe, folder=folder).convert(values, Recipe, "")
    _check(recipe)
    return recipe


def load_data(source: str | Path) -> tuple[DataSettings, Recipe | None]:
    """Load what a recipe says of data, and the whole; a file with nothing but `data` will do. Raises ConfigError."""
    path = find_recipe(source)
    path = path / "recipe.yaml" if path.is_dir() else path
    values = read_recipe(path)
    if "model" in values:
        recipe = load_recipe(source)
        return recipe.data, recipe
    unknown = [key for key in values if key not in ("data", "name", "output")]
    if unknown:
        raise ConfigError(f"{source}: {unknown[0]}: there is no model section; need a whole recipe, or data alone")
    strict = Strict(DataSettings, folder=path.absolute().parent)
    data: DataSettings = strict.convert(values.get("data") or {}, DataSettings, "data")
    return data, None


def read_recipe(
    path: Path,
    *,
    what: str = "recipe",
    need: str = "a YAML file, a run folder that holds recipe.yaml, or a name that `visgraft recipes` lists",
) -> dict[str, Any]:
    """Read the values of a recipe's file, unchecked; those of a run's recipe get today's keys. Raises ConfigError."""
    values = read_yaml(path, what=what, need=need)
    version = take_version(values)
    if (path.parent / "environment.json").is_file():  # written into each run folder
        use_new_keys(values, version=version)
    return values


def read_yaml(path: Path, *, what: str, need: str) -> dict[str, Any]:
    """Read a mapping from a YAML file. Raises ConfigError, which says what the file was to be."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such {what}; need {need}")
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"), loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: cannot be read: {_yaml_problem(error)}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file in UTF-8, need YAML") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        keys = f" with {', '.join(_KEYS)}" if what == "recipe" else ""
        raise ConfigError(f"{path}: got {type(values).__name__}, need a mapping{keys}")
    return values


_KEYS = [f.name for f in fields(Recipe)]


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else str(error)


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set one dotted key in place: `train.epochs=3`, `data.train.0.limit=5`; the value is read as YAML."""
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"--set {override}: need KEY=VALUE with a dotted key, such as train.epochs=3")
    try:
        value = parse_yaml(text, loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value cannot be read: {_yaml_problem(error)}") from error
    try:
        set_key(values, dotted.strip(), value)
    except ConfigError as error:
        raise ConfigError(f"--set {error}") from error


def set_key(values: dict[str, Any], dotted: str, value: Any) -> None:
    """Set one dotted key in place to a value; `data.train.1` one past the end adds an entry. Raises ConfigError."""
    keys = dotted.split(".")
    holder: Any = values
    for depth, key in enumerate(keys[:-1]):
        path = ".".join(keys[: depth + 1])
        place = _place(holder, key, path)
        below = holder[place] if isinstance(holder, list) else holder.get(place)
        if not isinstance(below, (dict, list)):
            # a bare text may stand for a mapping; any other plain value gives way to the mapping or list asked for
            is_short = path == "model.language" and isinstance(below, str)
            below = {"name": below} if is_short else [] if keys[depth + 1].isdecimal() else {}
            holder[place] = below
        holder = below
    holder[_place(holder, keys[-1], dotted)] = value


def _place(holder: dict[str, Any] | list[Any], key: str, path: str) -> Any:
    """Return the key of a dict or the index of a list; the index one past the end adds an entry."""
    if isinstance(holder, dict):
        return key
    if not key.isdecimal() or int(key) > len(holder):
        raise ConfigError(f"{path}: got {key!r}, need the number of an entry, 0 to {len(holder)}")
    if int(key) == len(holder):
        holder.append(None)
    return int(key)


def _check(recipe: Recipe) -> None:
    """Check what no single type can say."""
    model, train = recipe.model, recipe.train
    if model.start_from is None:
        for part in ("vision", "language"):
            if getattr(model, part) is None:
                raise ConfigError(
                    f"model.{part}: missing; name a model on the Hub or a local folder, or set start_from"
                )
    else:
        own = [key for key in recipe_to_dict(recipe)["model"] if key not in ("start_from", "template", "attention")]
        if own:
            raise ConfigError(
                f"model.{own[0]}: cannot be set with model.start_from, which brings its own; remove one of the two"
            )
    can_be_quantized = train.language in ("frozen", "lora") or "patterns" in train.language
    if model.language and model.language.quantization and not can_be_quantized:
        raise ConfigError(
            f"train.language: got {got(train.language)}, but weights of {model.language.quantization} "
            "(model.language.quantization) cannot train; say lora or frozen"
        )
    for part in PARTS:
        mode = train.mode_of(part)
        if isinstance(mode, dict) and not mode.get("patterns", True):
            raise ConfigError(f"train.{part}.patterns: got an empty list, need at least one pattern; or say frozen")
        if mode != "frozen":
            train.learning_rate_of(part)
    if not recipe.data.validation:
        for key in ("validate_every_steps", "exact_match_samples", "scores"):
            if getattr(train, key):
                raise ConfigError(
                    f"train.{key}: got {got(getattr(train, key))}, but there is no data.validation; add a source"
                )
    if train.best_by is not None and not (train.scores or train.exact_match_samples):
        raise ConfigError(
            f"train.best_by: got {train.best_by}, but nothing is scored; set train.scores: [{train.best_by}]"
        )


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """Return what differs from the defaults, as plain values that load back to an equal recipe."""
    values: dict[str, Any] = to_plain(recipe)
    return values


def recipe_to_yaml(recipe: Recipe) -> str:
    """Write its version and what differs from the defaults as YAML that loads back to an equal recipe."""
    return recipe.to_yaml()
