"""A tiny pair whose answers differ from image to image, and a server of it that tests share."""

from collections.abc import Iterator

import pytest

from tests.serving.asked import Pair, served
from tests.tiny import randomise
from tests.training.tiny import save_parts
from visgraft import Processor, VisionLanguageModel


@pytest.fixture(scope="session")
def serving_pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    parts = save_parts(tmp_path_factory.mktemp("served"))
    model = VisionLanguageModel.from_parts(*parts)
    for seed, part in enumerate((model.vision, model.projection, model.language)):
        randomise(part, seed=seed)
    return model, Processor.from_parts(*parts)


@pytest.fixture(scope="module")
def url(serving_pair: Pair) -> Iterator[str]:
    """The address of a server that the tests of a file share and leave as it is."""
    with served(serving_pair) as (address, _):
        yield address
