"""What the type hints of a settings dataclass allow, in words and as sets.

In: type hints (dataclass, TypedDict, Literal, union, list, dict, number, text, `Annotated` with the marks below).
Out: descriptions and near misses for error messages, and the kinds of value that a hint takes.
Usage: `describe(Annotated[int, Bound(at_least=1)])` is "a whole number of at least 1"
"""

import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from visgraft.config.effects import takes_the_rest
from visgraft.errors import ConfigError


@dataclass(frozen=True)
class Bound:
    """The limits of a number, as a mark in `Annotated[int, Bound(at_least=1)]`."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None

    def holds(self, value: float) -> bool:
        """Say whether the value lies inside."""
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
        )

    def __str__(self) -> str:
        limits = [("of at least", self.at_least), ("above", self.above), ("at most", self.at_most)]
        return " and ".join(f"{word} {limit:g}" for word, limit in limits if limit is not None)


@dataclass(frozen=True)
class LocalPath:
    """A mark for text that may name a file or folder, which is then looked for beside the recipe."""


def shorthand_of(settings: type) -> str | None:
    """Name the field that a bare text stands for: `language: NAME` is short for `language: {name: NAME}`."""
    return getattr(settings, "SHORTHAND", None)


def rest_field(settings: type) -> Field[Any] | None:
    """Find the field that takes the keys which are no field of the dataclass."""
    return next((f for f in fields(settings) if takes_the_rest(f)), None)


def unknown_key(key: str, *, allowed: Iterable[str], path: str = "", elsewhere: Iterable[str] = ()) -> ConfigError:
    """Make the error for a key that is not allowed, with the nearest right one.

    `path` is the dotted path of the mapping that holds the key; `elsewhere` are dotted keys of other mappings.
    """
    allowed = list(allowed)
    near = difflib.get_close_matches(key, allowed, n=1, cutoff=0.6)
    moved = [other for other in elsewhere if other.rpartition(".")[2] == key]
    if near or len(moved) == 1:
        hint = f"did you mean {join(path, near[0]) if near else moved[0]}?"
    else:
        hint = f"allowed here: {', '.join(allowed)}"
    return ConfigError(f"{join(path, key)}: unknown key; {hint}")


def join(path: str, key: object) -> str:
    """Lengthen a dotted path by one key."""
    return f"{path}.{key}" if path else str(key)


def describe(hint: Any) -> str:
    """Say in words what a type hint allows."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return " ".join([describe(args[0]), *(str(mark) for mark in args[1:] if isinstance(mark, Bound))])
    if origin is Literal:
        return _either([str(arg) for arg in args])
    if origin in (Union, types.UnionType):
        return _either([describe(arg) for arg in args])
    if origin is dict:
        keys = "|".join(get_args(args[0])) if get_origin(args[0]) is Literal else describe(args[0])
        return f"{{{keys}: {describe(args[1])}}}"
    if origin in (list, tuple):
        each = [describe(arg) for arg in args if arg is not Ellipsis]
        return f"a list of {each[0]}" if len(each) < 2 else f"[{', '.join(each)}]"
    if typing.is_typeddict(hint):
        subs = get_type_hints(hint, include_extras=True)
        return f"{{{', '.join(f'{key}: {describe(sub)}' for key, sub in subs.items())}}}"
    if is_dataclass(hint):
        short = "text or " if isinstance(hint, type) and shorthand_of(hint) else ""
        return f"{short}{{{', '.join(f.name for f in fields(hint) if not takes_the_rest(f))}}}"
    words = {str: "text", int: "a whole number", float: "a number", bool: "true or false", types.NoneType: "null"}
    return words.get(hint, "any value")


def _either(choices: list[str]) -> str:
    return choices[0] if len(choices) == 1 else f"{', '.join(choices[:-1])} or {choices[-1]}"


def got(value: object) -> str:
    """Say in words what a value is."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return f"a mapping with {', '.join(map(str, value))}" if value else "an empty mapping"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    return repr(value) if isinstance(value, (str, int, float)) else f"{value} (a {type(value).__name__})"


def kind_of(value: object) -> str:
    """Sort a value: null, mapping, list or scalar."""
    if value is None:
        return "null"
    return "mapping" if isinstance(value, Mapping) else "list" if isinstance(value, (list, tuple)) else "scalar"


def kinds_taken(hint: Any) -> set[str]:
    """List the kinds of value that a hint takes."""
    origin = get_origin(hint)
    if is_dataclass(hint) and isinstance(hint, type):
        return {"mapping", "scalar"} if shorthand_of(hint) else {"mapping"}
    if origin is dict or typing.is_typeddict(hint):
        return {"mapping"}
    if origin in (list, tuple):
        return {"list"}
    if origin is Annotated:
        return kinds_taken(get_args(hint)[0])
    return {"null"} if hint is types.NoneType else {"scalar"}


def keys_known(hint: Any) -> set[str]:
    """List the keys that a mapping-like hint knows."""
    if get_origin(hint) is dict:
        return set(get_args(get_args(hint)[0]))
    return {f.name for f in fields(hint)} if is_dataclass(hint) else set(get_type_hints(hint))


def takes_text(hint: Any) -> bool:
    """Say whether a hint takes text of any content."""
    if get_origin(hint) in (Union, types.UnionType, Annotated):
        return any(takes_text(arg) for arg in get_args(hint))
    return hint is str


def literals(hint: Any) -> list[str]:
    """List the words that a hint takes."""
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return [choice for arg in get_args(hint) for choice in literals(arg)]


def dotted_keys(settings: type, *, path: str = "") -> list[str]:
    """List every key of a settings dataclass and of those nested in it, as dotted paths."""
    keys = []
    for name, hint in get_type_hints(settings).items():
        if name.isupper():
            continue
        keys.append(join(path, name))
        if is_dataclass(hint) and isinstance(hint, type):
            keys += dotted_keys(hint, path=join(path, name))
    return keys
