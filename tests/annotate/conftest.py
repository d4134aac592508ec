"""A tiny model and photos, which tests leave as they are."""

from pathlib import Path

import pytest

from tests.annotate.made import save_model, save_photos


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("annotate")


@pytest.fixture(scope="session")
def model(made: Path) -> Path:
    return save_model(made)


@pytest.fixture(scope="session")
def photos(made: Path) -> Path:
    """0.png to 6.png, and bad-0.png that is no image."""
    return save_photos(made / "photos", number=7)
