"""The tree of errors: what catches what."""

import pytest

from visgraft import errors


@pytest.mark.parametrize(
    ("child", "parent"),
    [
        (errors.ConfigError, errors.VisgraftError),
        (errors.DataError, errors.VisgraftError),
        (errors.BadSampleError, errors.DataError),
        (errors.ModelError, errors.VisgraftError),
        (errors.UnsupportedModelError, errors.ModelError),
        (errors.PreflightError, errors.ModelError),
        (errors.CheckpointError, errors.VisgraftError),
        (errors.MissingAssetError, errors.VisgraftError),
    ],
)
def test_an_error_is_caught_by_its_parent(child: type[Exception], parent: type[Exception]) -> None:
    with pytest.raises(parent, match="what a person reads"):
        raise child("what a person reads")


def test_the_docstring_draws_every_error() -> None:
    names = [name for name in vars(errors) if name.endswith("Error")]
    assert [name for name in names if f" {name}" not in str(errors.__doc__)] == []
