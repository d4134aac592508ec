"""A saved model answers as it did, and what cannot be loaded is said."""

from pathlib import Path

import pytest
import torch

from tests.inference.asked import QUESTIONS, ask, picture
from tests.tiny import LANGUAGES, fresh
from visgraft import Processor, VisionLanguageModel
from visgraft.errors import CheckpointError, ConfigError
from visgraft.inference import answer, load
from visgraft.model.trainable import set_trainable


def test_a_saved_model_answers_as_it_did_before(pair: tuple[VisionLanguageModel, Processor], tmp_path: Path) -> None:
    model, processor = pair
    run = tmp_path / "run"
    model.save_pretrained(run / "model", full=True)
    processor.save_pretrained(run / "model")
    (run / "recipe.yaml").write_text("model: {vision: a, language: b}\n")
    samples = [ask(*QUESTIONS, images=(picture(0),))]
    expected = answer(model, processor, samples, max_new_tokens=6)
    loaded = load(str(run), device="cpu", precision="fp32")
    stops = loaded[0].generation_config.eos_token_id  # model.generate ends where answers do
    assert processor.tokenizer.eos_token_id in (stops if isinstance(stops, list) else [stops])
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


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_language_model_read_in_its_format_is_bit_by_bit_the_one_cast_to_it(language: str, tmp_path: Path) -> None:
    fresh(language).save_pretrained(tmp_path, full=True)
    cast = VisionLanguageModel.from_pretrained(tmp_path)
    straight = VisionLanguageModel.from_pretrained(tmp_path, language_dtype=torch.bfloat16)
    assert straight.get_input_embeddings().weight.dtype == torch.bfloat16
    assert_bit_equal(cast, straight)


def test_lora_and_named_parts_read_in_their_format_are_bit_by_bit_those_cast_to_it(
    parts: tuple[str, str], tmp_path: Path
) -> None:
    model = VisionLanguageModel.from_parts(*parts)
    set_trainable(model, modes={"language": "lora"}, frozen_dtype=torch.bfloat16)
    lora = {name: p for name, p in model.named_parameters() if p.requires_grad and "lora" in name}
    for index, parameter in enumerate(lora.values()):
        torch.nn.init.normal_(parameter, std=0.3 + index / 100)
    model.save_pretrained(tmp_path)
    straight = VisionLanguageModel.from_pretrained(tmp_path, language_dtype=torch.bfloat16)
    kept = dict(straight.named_parameters())
    assert all(torch.equal(kept[name], parameter) for name, parameter in lora.items())  # unrounded
    assert_bit_equal(VisionLanguageModel.from_pretrained(tmp_path), straight)


def assert_bit_equal(cast: VisionLanguageModel, straight: VisionLanguageModel) -> None:
    """Compare every weight once both are ready to answer."""
    for model in (cast, straight):
        set_trainable(model, modes={}, frozen_dtype=torch.bfloat16)
    expected, found = cast.state_dict(), straight.state_dict()
    assert found.keys() == expected.keys()
    different = [n for n, t in expected.items() if t.dtype != found[n].dtype or not torch.equal(t, found[n])]
    assert different == []
