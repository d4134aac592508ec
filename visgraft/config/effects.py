"""What a setting affects, and whether a resumed run may change it: said once, where the setting is declared.

In: the declaration of a field. Out: its metadata, and the effect of a setting by its dotted key.

    epochs: float = setting("result", 1.0, may_change=True)
    effect_of(Recipe, "train.epochs")          # Effect(affects="result", may_change=True)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from typing import Any, Literal, get_args, get_type_hints

# result: what is learned, or what is measured, answered and reported of it.
# speed: how fast it runs and in how much memory; results are equal up to rounding.
# disk: what is kept on disk, and where; nothing of what is learned or measured.
Affects = Literal["result", "speed", "disk"]


@dataclass(frozen=True)
class Effect:
    """What a setting affects; `may_change`: whether a run may be resumed with another value of it."""

    affects: Affects
    may_change: bool


def setting(
    affects: Affects,
    default: Any = MISSING,
    *,
    may_change: bool = False,
    make: Callable[[], Any] | None = None,
    takes_the_rest: bool = False,
) -> Any:
    """Declare the field of a setting.

    Args:
        affects: what it has an effect on.
        default: its value where a recipe says nothing; without it (and `make`), a recipe must say something.
        may_change: whether a run may be resumed with another value.
        make: makes the default, where that is no plain value.
        takes_the_rest: the one field of a dataclass that takes every key which is no field.
    """
    metadata = {"effect": Effect(affects, may_change), "takes_the_rest": takes_the_rest}
    if make is not None:
        return field(default_factory=make, metadata=metadata)
    return field(default=default, metadata=metadata)


def takes_the_rest(declared: Field[Any]) -> bool:
    """Say whether a field takes the keys that are no field of its dataclass."""
    return bool(declared.metadata.get("takes_the_rest"))


def effect_of(settings: type, key: str) -> Effect:
    """Give the effect of a setting by its dotted key, such as `train.lora.r` or `data.train.0.limit`.

    A key that leads below the declared settings (`train.learning_rate.projection`, a reader's own option) has the
    effect of the last one on its way.
    """
    found: Effect | None = None
    inside: type | None = settings
    for word in key.split("."):
        declared = {} if inside is None else {each.name: each for each in fields(inside)}
        if word in declared:
            assert inside is not None
            found = declared[word].metadata.get("effect", found)
            inside = settings_in(get_type_hints(inside)[word])
    assert found is not None, f"{key} is no setting of {settings.__name__}"
    return found


def changeable_keys(settings: type) -> list[str]:
    """List the dotted keys that a run may be resumed with other values of."""
    return sorted(key for key, effect in _effects(settings, "") if effect.may_change)


def _effects(settings: type, path: str) -> Iterator[tuple[str, Effect]]:
    """List the effects of all settings that stand by themselves; a list of settings is one."""
    for declared in fields(settings):
        key = f"{path}.{declared.name}" if path else declared.name
        if "effect" in declared.metadata:
            yield key, declared.metadata["effect"]
        else:
            inside = settings_in(get_type_hints(settings)[declared.name])
            assert inside is not None, f"{key} says no effect"
            yield from _effects(inside, key)


def settings_in(hint: Any) -> type | None:
    """Find the dataclass of settings that a type hint holds: itself, one of a union, or what a list is of."""
    if isinstance(hint, type) and is_dataclass(hint):
        return hint
    return next((found for each in get_args(hint) if (found := settings_in(each)) is not None), None)
