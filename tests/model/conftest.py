"""Tiny parts as local folders, as a user has them who downloaded a checkpoint.

In: nothing. Out: fixtures. Usage: `def test_something(part_folder): model = from_parts(part_folder("clip"), ...)`
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny import VISION_CONFIGS, bare_language, bare_vision
from visgraft.model.hf_logging import quiet_transformers


@pytest.fixture(scope="session")
def part_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give the folder of an encoder or a language model of tests/tiny.py; tests leave it as it is."""
    root = tmp_path_factory.mktemp("parts")

    def make(name: str) -> Path:
        folder = root / name
        if not folder.is_dir():
            with quiet_transformers():
                (bare_vision if name in VISION_CONFIGS else bare_language)(name).save_pretrained(folder)
        return folder

    return make
