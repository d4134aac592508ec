"""A planner over tiny real data and a silent display.

In: nothing. Out: fixtures. Usage: `def test_something(planner, quiet): ...`
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.training.tiny import save_data, save_parts
from visgraft.config import SourceSettings
from visgraft.data.sources import open_sources
from visgraft.processor import Processor
from visgraft.training.plan import Planner
from visgraft.training.progress import TrainProgress, make_progress


@pytest.fixture
def quiet() -> TrainProgress:
    return make_progress(show=False)


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Processor:
    vision, language = save_parts(tmp_path_factory.mktemp("parts"))
    return Processor.from_parts(vision, language)


@pytest.fixture
def make_planner(tmp_path: Path, processor: Processor) -> Callable[..., Planner]:
    def make(*, num_images: int = 12, bad: int = 0, **settings: Any) -> Planner:
        path = save_data(tmp_path / "data", num_images=num_images, bad=bad)
        sources = open_sources([SourceSettings(source="folder", path=path)])
        return Planner(sources, processor, **{"seed": 0, "max_dialogs": 2, "text_tokens_per_step": 80, **settings})

    return make
