"""A way to run the program in this process, and a tiny run that it can be asked about."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.tiny import randomise
from tests.training.tiny import save_data, save_parts
from visgraft import Processor, VisionLanguageModel, recipe_to_yaml
from visgraft.cli import main
from visgraft.config import load_recipe


@dataclass(frozen=True)
class Outcome:
    """What a run of the program left behind."""

    status: int
    out: str
    err: str


Visgraft = Callable[..., Outcome]


@pytest.fixture
def visgraft(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Visgraft:
    """Run the program with these arguments; standard output and error are no terminal."""
    monkeypatch.setenv("COLUMNS", "100")

    def run(*args: object) -> Outcome:
        capsys.readouterr()
        status = main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        return Outcome(status, out, err)

    assert not sys.stdout.isatty()
    return run


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny-clip/, tiny-llama/, photos/ and run/, which tests leave as it is."""
    folder = tmp_path_factory.mktemp("cli")
    vision, language = save_parts(folder)
    photos = save_data(folder / "photos", num_images=4)
    model = VisionLanguageModel.from_parts(vision, language)
    randomise(model.projection, seed=1)
    run = folder / "run"
    model.save_pretrained(run / "model")
    Processor.from_parts(vision, language).save_pretrained(run / "model")
    recipe = load_recipe(
        {
            "model": {"vision": vision, "language": language},
            "train": {"precision": "fp32", "text_tokens_per_step": 40},
            "data": {"train": [{"source": "folder", "path": photos}]},
            "output": str(folder / "runs"),
        }
    )
    (run / "recipe.yaml").write_text(recipe_to_yaml(recipe))
    torch.manual_seed(0)
    return folder
