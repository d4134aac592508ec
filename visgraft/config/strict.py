"""Turn plain values (from YAML, JSON or Python) into typed settings, by the type hints alone.

In: a value, a type hint and its dotted path as typed. Out: the value as that type, or a ConfigError that says what was
got, what is allowed and what was probably meant; nothing is guessed, nothing is dropped.
Usage: `Strict(Recipe).convert({"model": {...}}, Recipe, "")`
"""

import difflib
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from visgraft.config.hints import (
    Bound,
    LocalPath,
    describe,
    dotted_keys,
    got,
    join,
    keys_known,
    kind_of,
    kinds_taken,
    literals,
    rest_field,
    shorthand_of,
    takes_text,
    unknown_key,
)
from visgraft.config.renamed import new_key
from visgraft.errors import ConfigError


@dataclass(frozen=True)
class Strict:
    """Convert plain values to the settings of one root dataclass; nothing is guessed, nothing is dropped."""

    root: type
    folder: Path | None = None  # where relative paths are looked for first

    def convert(self, value: Any, hint: Any, path: str, *, shown: Any = None) -> Any:
        """Convert one value; `shown` is the wider hint that an error describes."""
        origin, args = get_origin(hint), get_args(hint)
        shown = hint if shown is None else shown
        if hint is Any:
            return value
        if origin is Annotated:
            return self._marked(value, args[0], args[1:], path, shown)
        if origin in (Union, types.UnionType):
            return self._union(value, hint, path, shown)
        if is_dataclass(hint) and isinstance(hint, type):
            return self._settings(value, hint, path, shown)
        if typing.is_typeddict(hint):
            return self._typed_dict(value, hint, path, shown)
        if origin is dict:
            return self._dict(value, args, path, shown)
        if origin in (list, tuple):
            return self._sequence(value, origin, args, path, shown)
        return self._scalar(value, hint, path, shown)

    def _fail(self, value: object, shown: Any, path: str) -> NoReturn:
        message = f"{path or 'recipe'}: got {got(value)}, need {describe(shown)}"
        choices = [c for c in literals(shown) if isinstance(value, str)]
        near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.6)
        if near:
            message += f"; did you mean {near[0]}?"
        elif takes_text(shown) and kind_of(value) == "scalar" and not isinstance(value, str):
            message += "; put it in quotes if it is meant as text"
        raise ConfigError(message)

    def _marked(self, value: Any, hint: Any, marks: tuple[Any, ...], path: str, shown: Any) -> Any:
        result = self.convert(value, hint, path, shown=shown)
        for mark in marks:
            if isinstance(mark, Bound) and not mark.holds(result):
                self._fail(value, shown, path)
            if isinstance(mark, LocalPath):
                result = find_beside(result, folder=self.folder)
        return result

    def _union(self, value: Any, hint: Any, path: str, shown: Any) -> Any:
        members = [member for member in get_args(hint) if kind_of(value) in kinds_taken(member)]
        if not members:
            self._fail(value, shown, path)
        if isinstance(value, Mapping):
            known = {id(member): keys_known(member) for member in members}
            best = max(members, key=lambda member: len(known[id(member)] & value.keys()))
            if len(members) > 1 and value and not known[id(best)] & value.keys():
                raise unknown_key(str(next(iter(value))), allowed=sorted(set().union(*known.values())), path=path)
            return self.convert(value, best, path)
        for member in members:
            try:
                return self.convert(value, member, path, shown=shown)
            except ConfigError:
                if member is members[-1]:
                    raise
        raise AssertionError("the loop returns or raises")

    def _settings(self, value: Any, settings: type, path: str, shown: Any) -> Any:
        short = shorthand_of(settings)
        if short is not None and isinstance(value, str):
            value = {short: value}
        if isinstance(value, settings):
            return value
        value = self._mapping(value, path, shown)
        hints = get_type_hints(settings, include_extras=True)
        rest = rest_field(settings)
        declared = {f.name: f for f in fields(settings) if f is not rest}
        extra = {key: value[key] for key in value if key not in declared}
        if extra and rest is None:
            if (new := new_key(join(path, next(iter(extra))))) is not None:
                raise ConfigError(f"{join(path, next(iter(extra)))}: is called {new} today; rename it")
            raise unknown_key(next(iter(extra)), allowed=declared, path=path, elsewhere=dotted_keys(self.root))
        arguments = {
            name: self.convert(value[name], hints[name], join(path, name)) for name in declared if name in value
        }
        for name, field in declared.items():
            if name not in value and field.default is MISSING and field.default_factory is MISSING:
                raise ConfigError(f"{join(path, name)}: missing; need {describe(hints[name])}")
        if rest is not None and extra:
            arguments[rest.name] = extra
        return settings(**arguments)

    def _typed_dict(self, value: Any, hint: Any, path: str, shown: Any) -> dict[str, Any]:
        value = self._mapping(value, path, shown)
        hints = get_type_hints(hint, include_extras=True)
        for key in value:
            if key not in hints:
                raise unknown_key(key, allowed=hints, path=path)
        for key in hints:
            if key not in value:
                raise ConfigError(f"{join(path, key)}: missing; need {describe(hints[key])}")
        return {key: self.convert(value[key], hints[key], join(path, key)) for key in value}

    def _dict(self, value: Any, args: tuple[Any, ...], path: str, shown: Any) -> dict[str, Any]:
        value = self._mapping(value, path, shown)
        allowed = get_args(args[0]) if get_origin(args[0]) is Literal else tuple(value)
        for key in value:
            if key not in allowed:
                raise unknown_key(key, allowed=allowed, path=path)
        return {key: self.convert(value[key], args[1], join(path, key)) for key in value}

    def _mapping(self, value: Any, path: str, shown: Any) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            self._fail(value, shown, path)
        for key in value:
            if not isinstance(key, str):
                raise ConfigError(f"{path or 'recipe'}: got the key {key!r}, need text as keys")
        return value

    def _sequence(self, value: Any, origin: Any, args: tuple[Any, ...], path: str, shown: Any) -> Any:
        if not isinstance(value, (list, tuple)):
            self._fail(value, shown, path)
        is_open = origin is list or args[-1] is Ellipsis
        if not is_open and len(value) != len(args):
            self._fail(value, shown, path)
        each = [args[0]] * len(value) if is_open else list(args)
        return origin(
            self.convert(item, hint, join(path, i)) for i, (item, hint) in enumerate(zip(value, each, strict=True))
        )

    def _scalar(self, value: Any, hint: Any, path: str, shown: Any) -> Any:
        if get_origin(hint) is Literal:
            is_right = isinstance(value, str) and value in get_args(hint)
        elif hint in (int, float):
            number = _number(value, whole=hint is int)
            if number is None:
                self._fail(value, shown, path)
            return number
        else:
            is_right = isinstance(value, hint)
        if not is_right:
            self._fail(value, shown, path)
        return value


def _number(value: Any, *, whole: bool) -> float | int | None:
    """Read a number; YAML 1.1 takes `1e-4` (no dot) for text, so text that is a number counts as one."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    if whole and isinstance(value, int):
        return value
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    if not math.isfinite(number) or (whole and not number.is_integer()):
        return None
    return int(number) if whole else number


def find_beside(path: str, *, folder: Path | None) -> str:
    """Make a path that exists absolute: `~` is expanded, then the recipe's folder is tried, then the working directory.

    What exists in neither (a Hub name, a missing file) stays as typed.
    """
    try:
        expanded = Path(path).expanduser()
    except RuntimeError as error:  # "~name" of no user
        raise ConfigError(f"got the path {path!r}: {error}; write the folder in full") from error
    for base in [folder, Path.cwd()]:
        if base is not None and (base / expanded).exists():
            return str((base / expanded).absolute())
    return str(expanded) if path.startswith("~") else path
