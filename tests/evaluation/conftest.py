"""A tiny model whose answers differ from image to image, and a data set that it is asked about."""

from pathlib import Path

import pytest

from tests.tiny import randomise
from tests.training.tiny import save_data, save_parts
from visgraft import Processor, VisionLanguageModel


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test keeps its answers in a cache of its own."""
    monkeypatch.setenv("VISGRAFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with first/ and second/, two models, data/ with 8 images, and test.yaml, the recipe that names it."""
    folder = tmp_path_factory.mktemp("evaluation")
    vision, language = save_parts(folder)
    for number, name in enumerate(("first", "second")):
        model = VisionLanguageModel.from_parts(vision, language)
        randomise(model.projection, seed=number)
        model.save_pretrained(folder / name)
        Processor.from_parts(vision, language).save_pretrained(folder / name)
    data = save_data(folder / "data", num_images=8)
    (folder / "test.yaml").write_text(f"data: {{test: [{{source: folder, path: {data}}}]}}\n")
    return folder
