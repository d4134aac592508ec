"""Strict conversion: what a type hint takes, what it refuses, and what the refusal says."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from visgraft.config import Recipe, Strict
from visgraft.config.hints import Bound, describe, dotted_keys, unknown_key
from visgraft.config.settings import LanguageSettings, TrainingMode
from visgraft.errors import ConfigError


@dataclass(frozen=True)
class _Inner:
    size: Annotated[int, Bound(at_least=1)] = 1


@dataclass(frozen=True)
class _Outer:
    name: str
    inner: _Inner = field(default_factory=_Inner)
    many: tuple[_Inner, ...] = ()
    any: Any = None


def convert(value: Any, hint: Any) -> Any:
    return Strict(_Outer).convert(value, hint, "key")


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        ("1e-4", float, 1e-4),  # YAML 1.1 reads it as text
        (3, float, 3.0),
        ("1e3", int, 1000),
        (2.0, int, 2),
        (2**60 + 1, int, 2**60 + 1),
        (None, int | None, None),
        ("x", str | None, "x"),
        ([1, 2], tuple[int, ...], (1, 2)),
        ((1, 2), list[int], [1, 2]),
        ([0.5, 1], tuple[float, float], (0.5, 1.0)),
        ({"b": 1}, dict[Literal["a", "b"], float] | float, {"b": 1.0}),
        (2, dict[Literal["a", "b"], float] | float, 2.0),
        ({"x": [None]}, Any, {"x": [None]}),
        ("lora", TrainingMode, "lora"),
        ({"last_layers": 2}, TrainingMode, {"last_layers": 2}),
        ("name", LanguageSettings | None, LanguageSettings("name")),
        (_Inner(2), _Inner, _Inner(2)),
        ({"name": "n", "many": [{"size": 3}]}, _Outer, _Outer("n", many=(_Inner(3),))),
    ],
)
def test_a_value_that_fits_becomes_its_type(value: Any, hint: Any, expected: Any) -> None:
    result = convert(value, hint)
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize(
    ("value", "hint", "message"),
    [
        ("many", float, "key: got 'many', need a number$"),
        (True, int, "key: got true, need a whole number$"),
        (True, float, "key: got true, need a number$"),
        (1.5, int, "key: got 1.5, need a whole number$"),
        (float("nan"), float, "key: got nan, need a number$"),
        ("inf", float, "key: got 'inf', need a number$"),
        (None, float, "key: got null, need a number$"),
        ("yes", bool, "key: got 'yes', need true or false$"),
        (5, str, "key: got 5, need text; put it in quotes if it is meant as text$"),
        ([], str, "key: got a list of 0, need text$"),
        ({}, str, "key: got an empty mapping, need text$"),
        (0, Annotated[int, Bound(at_least=1)] | None, "key: got 0, need a whole number of at least 1 or null$"),
        (2, Annotated[float, Bound(above=0, at_most=1)], "key: got 2, need a number above 0 and at most 1$"),
        ("frozn", TrainingMode, "got 'frozn', need frozen, full or lora, .*; did you mean frozen\\?"),
        ({"last_layer": 1}, TrainingMode, r"key\.last_layer: unknown key; did you mean key\.last_layers\?"),
        ({"patterns": ["a"], "last_layers": 1}, TrainingMode, r"key\.\w+: unknown key"),
        ({"patterns": "a"}, TrainingMode, r"key\.patterns: got 'a', need a list of text$"),
        ([1], tuple[float, float], r"key: got a list of 1, need \[a number, a number\]$"),
        ([1, "x"], list[int], r"key\.1: got 'x', need a whole number$"),
        ("x", list[int], "key: got 'x', need a list of a whole number$"),
        ({"c": 1}, dict[Literal["a", "b"], float], r"key\.c: unknown key; allowed here: a, b$"),
        ({1: 1}, dict[str, float], "key: got the key 1, need text as keys$"),
        (5, _Inner, "key: got 5, need {size}$"),
        ({"size": 0}, _Inner, r"key\.size: got 0, need a whole number of at least 1$"),
        ({}, _Outer, r"key\.name: missing; need text$"),
        (
            {"name": "n", "inner": {"sise": 1}},
            _Outer,
            r"key\.inner\.sise: unknown key; did you mean key\.inner\.size\?",
        ),
        ({"name": "n", "size": 1}, _Outer, r"key\.size: unknown key; did you mean inner\.size\?"),
        ({"name": "n", "zzz": 1}, _Outer, r"key\.zzz: unknown key; allowed here: name, inner, many, any$"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_in_words(value: Any, hint: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        convert(value, hint)


def test_an_unknown_key_is_named_with_its_dotted_path_as_typed() -> None:
    with pytest.raises(ConfigError, match=r"^train\.learnig_rate: unknown key; did you mean train\.learning_rate\?$"):
        Strict(Recipe).convert({"train": {"learnig_rate": 1}}, Recipe, "")
    with pytest.raises(ConfigError, match=r"^epochs: unknown key; did you mean train\.epochs\?$"):
        Strict(Recipe).convert({"epochs": 1}, Recipe, "")


def test_a_reader_can_refuse_its_own_unknown_keys_in_the_same_words() -> None:
    error = unknown_key("colums", allowed=["columns"], path="data.train.0")
    assert str(error) == "data.train.0.colums: unknown key; did you mean data.train.0.columns?"


def test_every_setting_is_described_without_python_words() -> None:
    assert describe(Recipe) == "{model, train, data, output, name}"
    assert describe(float | dict[Literal["a", "b"], float] | None) == "a number, {a|b: a number} or null"


def test_dotted_keys_lists_nested_settings() -> None:
    assert {"model", "model.projection.pool", "train.learning_rate", "data.max_pixels"} <= set(dotted_keys(Recipe))
