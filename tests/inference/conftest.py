"""A tiny pair whose answers differ from image to image and from question to question."""

import pytest

from tests.tiny import randomise
from tests.training.tiny import save_parts
from visgraft import Processor, VisionLanguageModel


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return save_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def pair(parts: tuple[str, str]) -> tuple[VisionLanguageModel, Processor]:
    model = VisionLanguageModel.from_parts(*parts)
    for seed, part in enumerate((model.vision, model.projection, model.language)):
        randomise(part, seed=seed)
    return model, Processor.from_parts(*parts)
