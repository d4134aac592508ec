"""The abstract model says what the joined model has, and is none itself."""

from typing import get_type_hints

import pytest

from tests.tiny import joined
from visgraft.model.joined import JoinedModel


def test_everything_that_is_declared_is_there() -> None:
    model = joined()
    for name in JoinedModel.__annotations__:
        declared = get_type_hints(JoinedModel)[name]
        assert isinstance(getattr(model, name), getattr(declared, "__origin__", declared)), name
    assert JoinedModel.__abstractmethods__ and not type(model).__abstractmethods__


def test_the_abstract_model_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="abstract"):
        JoinedModel(joined().config)  # type: ignore[abstract]
