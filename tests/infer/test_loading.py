"""A saved model answers as it did, and what cannot be loaded is said."""

from pathlib import Path

import pytest
import torch

from tests.infer.asked import QUESTIONS, ask, picture
from visgraft import Processor, VisionLanguageModel
from visgraft.errors import CheckpointError, ConfigError
from visgraft.infer import answer, load


def test_a_saved_model_answers_as_it_did_before(pair: tuple[VisionLanguageModel, Processor], tmp_path: Path) -> None:
    model, processor = pair
    run = tmp_path / "run"
    model.save_pretrained(run / "model", full=True)
    processor.save_pretrained(run / "model")
    (run / "recipe.yaml").write_text("model: {vision: a, language: b}\n")
    samples = [ask(*QUESTIONS, images=(picture(0),))]
    expected = answer(model, processor, samples, max_new_tokens=6)
    loaded = load(str(run), device="cpu", precision="fp32")
    assert answer(*loaded, samples, max_new_tokens=6) == expected
    halved, _ = load(str(run / "model"), device="cpu", precision="bf16")
    assert halved.language.get_input_embeddings().weight.dtype == torch.bfloat16
    assert next(halved.projection.parameters()).dtype == torch.float32
    assert len(answer(halved, processor, samples, max_new_tokens=6)) == len(QUESTIONS)


def test_a_model_that_is_not_there_and_a_device_that_is_not_are_said(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"holds no config\.json: give a run folder, a model folder or a Hub name"
    ):
        load(str(tmp_path), device="cpu")
    with pytest.raises(ConfigError, match="device: got teapot, which this machine and this torch do not have"):
        load(str(tmp_path), device="teapot")
    with pytest.raises(ConfigError, match="precision: got fp16, which needs a GPU"):
        load(str(tmp_path), device="cpu", precision="fp16")
