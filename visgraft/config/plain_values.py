"""Turn settings back into plain values, nested or dotted: only what differs from the defaults.

In: a settings dataclass. Out: dicts, lists, numbers and text, fit for YAML and JSON.
Usage: `to_plain(recipe)` is `{"model": {"vision": ..., "language": ...}}`
"""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from visgraft.config.hints import rest_field, shorthand_of


def to_plain(value: Any) -> Any:
    """Turn settings into dicts, lists and plain values that load back to equal settings."""
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if not is_dataclass(value) or isinstance(value, type):
        return value
    rest = rest_field(type(value))
    plain = {}
    for field in fields(value):
        item = getattr(value, field.name)
        default = field.default_factory() if callable(field.default_factory) else field.default
        if field is rest:
            plain.update(to_plain(item))
        elif item != default:
            plain[field.name] = to_plain(item)
    short = shorthand_of(type(value))
    return plain[short] if short is not None and set(plain) == {short} else plain


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested settings into dotted ones: `{"train": {"epochs": 3}}` into `{"train.epochs": 3}`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
