"""Building, saving and loading print nothing, and what a user set for transformers stays set."""

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import CLIPConfig, CLIPModel
from transformers.utils import logging

from tests.tiny import SQUARE
from visgraft import VisionLanguageModel
from visgraft.model.hf_logging import quiet_transformers


def test_building_saving_and_loading_print_nothing(
    part_folder: Callable[[str], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with quiet_transformers():
        both = CLIPModel(CLIPConfig(vision_config=SQUARE, text_config=SQUARE, projection_dim=8))
        both.save_pretrained(tmp_path / "both")  # with a text tower, which is to be ignored
    languages = [part_folder(name) for name in ("opt", "gpt2", "qwen3")]
    capfd.readouterr()
    for language in languages:
        model = VisionLanguageModel.from_parts(tmp_path / "both", language)
        model.save_pretrained(tmp_path / "model", full=True)
        VisionLanguageModel.from_pretrained(tmp_path / "model")
    assert capfd.readouterr() == ("", "")


def test_what_was_set_comes_back_whatever_happens() -> None:
    level = logging.get_verbosity()
    logging.set_verbosity_info()
    hook = logging.set_tqdm_hook(None)
    try:
        with pytest.raises(KeyError), quiet_transformers():
            assert logging.get_verbosity() == logging.ERROR
            raise KeyError
        assert logging.get_verbosity() == logging.INFO
        assert logging.set_tqdm_hook(hook) is None
    finally:
        logging.set_verbosity(level)
        logging.set_tqdm_hook(hook)


def test_bars_are_gone_and_what_they_count_is_still_there(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet_transformers():
        assert list(logging.tqdm(range(3), desc="Loading weights")) == [0, 1, 2]
    assert capfd.readouterr() == ("", "")
