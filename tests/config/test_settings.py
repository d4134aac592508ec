"""The settings themselves: documented, frozen, hashable where they may be."""

import ast
import dataclasses
import tokenize
from pathlib import Path
from typing import Any

import pytest

from visgraft.config import changeable_keys, effect_of, settings
from visgraft.config.effects import Effect
from visgraft.config.settings import Recipe


def test_every_field_has_a_line_of_documentation() -> None:
    path = Path(str(settings.__file__))
    with path.open("rb") as file:
        commented = {token.start[0] for token in tokenize.tokenize(file.readline) if token.type == tokenize.COMMENT}
    undocumented = [
        f"{node.name}.{ast.unparse(field.target)}"
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and node.name.endswith(("Settings", "Recipe"))
        for field in node.body
        if isinstance(field, ast.AnnAssign)
        and "ClassVar" not in ast.unparse(field.annotation)
        and commented.isdisjoint({field.lineno, field.lineno - 1})
    ]
    assert undocumented == []


def declared_classes() -> list[Any]:
    return [
        cls for cls in vars(settings).values() if dataclasses.is_dataclass(cls) and cls.__module__ == settings.__name__
    ]


def test_every_field_says_what_it_affects_and_whether_a_resumed_run_may_change_it() -> None:
    silent = [
        f"{cls.__name__}.{declared.name}"
        for cls in declared_classes()
        for declared in dataclasses.fields(cls)
        if not isinstance(declared.metadata.get("effect"), Effect)
        and not dataclasses.is_dataclass(declared.default_factory)  # a group, whose own fields say it
    ]
    assert silent == []


@pytest.mark.parametrize(
    ("key", "effect"),
    [
        ("train.epochs", Effect("result", may_change=True)),
        ("train.seed", Effect("result", may_change=False)),
        ("train.num_workers", Effect("speed", may_change=True)),
        ("name", Effect("disk", may_change=True)),
        ("model.language.name", Effect("result", may_change=False)),
        ("train.lora.language.r", Effect("result", may_change=False)),
        ("train.learning_rate.projection", Effect("result", may_change=False)),
        ("data.train.0.questions", Effect("result", may_change=False)),
        ("data.sample_prompts.1.prompts", Effect("result", may_change=True)),
        ("data.augment.flip", Effect("result", may_change=False)),
    ],
)
def test_the_effect_of_a_setting_is_found_by_its_dotted_key(key: str, effect: Effect) -> None:
    assert effect_of(Recipe, key) == effect
    assert (key in changeable_keys(Recipe)) == (effect.may_change and ".1." not in key)


def test_what_affects_speed_or_disk_alone_may_change_in_the_middle_of_a_run() -> None:
    fixed = [
        f"{cls.__name__}.{declared.name}"
        for cls in declared_classes()
        for declared in dataclasses.fields(cls)
        if (effect := declared.metadata.get("effect")) and effect.affects != "result" and not effect.may_change
    ]
    assert fixed == []


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().name = "other"  # type: ignore[misc]
