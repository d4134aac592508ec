"""The settings themselves: documented, frozen, hashable where they may be."""

import ast
import dataclasses
import tokenize
from pathlib import Path

import pytest

from visgraft.config import settings
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
        and field.lineno not in commented
    ]
    assert undocumented == []


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().name = "other"  # type: ignore[misc]
