"""What differs between recipes, what each of them trains, and which of their losses may stand beside one another.

In: recipes as they ran. Out: dotted keys with their values, defaults included; short words; keys that are equal for
runs on equal data.

    differences(comparison.variants)["train.learning_rate"]    # {"small": 0.0001, "large": 0.001}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from visgraft.compare.variants import RunData, Variant
from visgraft.config import PARTS, Recipe, effect_of
from visgraft.config.plain_values import to_plain
from visgraft.parsing import parse_json

ABSENT = "—"  # a key that the recipe does not have


def all_settings(recipe: Recipe) -> dict[str, Any]:
    """Give every setting of a recipe by its dotted key, defaults included; where files are kept is of no interest."""
    return {key: value for key, value in _flat(recipe, "").items() if effect_of(Recipe, key).affects != "disk"}


def _flat(value: Any, key: str) -> dict[str, Any]:
    if is_dataclass(value) and not isinstance(value, type):
        items: list[tuple[Any, Any]] = [(field.name, getattr(value, field.name)) for field in fields(value)]
    elif isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, tuple) and any(map(is_dataclass, value)):
        items = list(enumerate(value))
    else:
        return {key: to_plain(value)}
    flat: dict[str, Any] = {}
    for name, item in items:
        flat |= _flat(item, f"{key}.{name}" if key else str(name))
    return flat


def without_seed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what runs of one variant may differ in."""
    return {key: value for key, value in settings.items() if key != "train.seed"}


def different_settings(settings: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Give the keys whose values are not the same in all of these: key -> value in each, in their order."""
    found = {}
    for key in dict.fromkeys(key for each in settings for key in each):
        values = [each.get(key, ABSENT) for each in settings]
        if len({json.dumps(value, default=str) for value in values}) > 1:
            found[key] = values
    return found


def differences(variants: Sequence[Variant]) -> dict[str, dict[str, Any]]:
    """Give the settings that are not the same in all variants: key -> variant -> value."""
    found = different_settings([without_seed(variant.settings) for variant in variants])
    names = [variant.name for variant in variants]
    return {key: dict(zip(names, values, strict=True)) for key, values in found.items()}


def as_text(value: object) -> str:
    """Write a setting's value as a user would."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if isinstance(value, (str, int)) else json.dumps(value, ensure_ascii=False)


def what_trains(recipe: Recipe) -> str:
    """Say in a few words what a recipe trains: `projection + language (LoRA)`."""
    words: list[str] = []
    for part in sorted(PARTS, key=lambda part: part != "projection"):  # the one that nearly always trains comes first
        mode = recipe.train.mode_of(part)
        if mode == "full":
            words.append(part)
        elif mode == "lora":
            words.append(f"{part} (LoRA)")
        elif isinstance(mode, dict):
            [(name, value)] = mode.items()
            words.append(f"{part} (last {value})" if name == "last_layers" else f"{part} (patterns)")
    return " + ".join(words) or "nothing"


def data_key(run: RunData, split: str) -> str:
    """Give a text that is equal for runs whose `training` or `validation` data is the same."""
    data = run.recipe.data
    entries = to_plain(data.train if split == "training" else data.validation)
    mixing = [data.mixing_temperature, data.group_across_sources] if split == "training" else []
    return json.dumps([entries, *mixing], sort_keys=True, default=str) if entries else ""


def data_name(run: RunData, split: str) -> str:
    """Name a run's data in a few words: `coco (val), easy_vqa`."""
    entries = run.recipe.data.train if split == "training" else run.recipe.data.validation
    names = []
    for entry in entries:
        details = [entry.split if isinstance(entry.split, str) else f"held out {entry.split['validation']}"]
        details += [f"first {entry.limit:,}"] if entry.limit else []
        details += [f"{key} {value}" for key, value in entry.options.items()]
        where = f" {Path(entry.path).name}" if entry.path else ""
        names.append(f"{entry.source}{where} ({', '.join(map(str, details))})")
    return " + ".join(names) or "none"


def tokenizer_key(run: RunData) -> str:
    """Give a text that is equal where losses per token may be compared: the same vocabulary.

    The run's own model folder tells; without it, what the recipe names.
    """
    file = run.folder / "model" / "tokenizer.json"
    if file.is_file():
        try:
            model = parse_json(file.read_bytes())["model"]
            kept = json.dumps([model.get("vocab"), model.get("merges")], sort_keys=True)
            return hashlib.sha256(kept.encode()).hexdigest()
        except (ValueError, KeyError, TypeError, AttributeError):
            pass  # of another form than usual: its name has to do
    model = run.recipe.model
    if model.language is None:
        return f"start_from {model.start_from}"
    return f"{model.language.name} {model.language_revision or ''}"


def has_one_tokenizer(runs: Sequence[RunData]) -> bool:
    """Say whether all runs have the same tokenizer; runs of one named language model have, model folder or not."""
    by_name = {(run.recipe.model.language.name if run.recipe.model.language else run.folder) for run in runs}
    return len(by_name) == 1 or len({tokenizer_key(run) for run in runs}) == 1
