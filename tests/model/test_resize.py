"""Embeddings and head may be given more rows, tied or not, with LoRA or without, and the model is saved and loaded."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.tiny import random_pixels
from tests.training.tiny import save_parts
from visgraft import VisionLanguageModel
from visgraft.config import LoraSettings
from visgraft.model.lora import add_lora, find_lora_targets


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("has_lora", [False, True])
@pytest.mark.parametrize("is_tied", [False, True])
def test_a_resized_model_is_saved_and_loaded(is_tied: bool, has_lora: bool, full: bool, tmp_path: Path) -> None:
    vision, name = save_parts(tmp_path)
    language = AutoModelForCausalLM.from_pretrained(name)
    language.config.tie_word_embeddings = is_tied
    language.tie_weights()
    language.save_pretrained(tmp_path / "language")
    model = VisionLanguageModel.from_parts(vision, tmp_path / "language")
    if has_lora:
        add_lora(model.language, LoraSettings(r=2), targets=find_lora_targets(model.language, part="language"))
    ids, pixels = torch.tensor([[5, 9, 7]]), random_pixels(1)
    before = model.eval()(input_ids=ids, pixel_values=pixels).logits
    num_rows = model.get_input_embeddings().weight.shape[0]
    table = model.resize_token_embeddings(num_rows + 3)
    assert model.config.text_config.vocab_size == table.weight.shape[0] == num_rows + 3
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == is_tied
    after = model(input_ids=ids, pixel_values=pixels).logits
    torch.testing.assert_close(after[..., :num_rows], before, atol=1e-6, rtol=0)
    ids[0, 1] = num_rows + 2
    expected = model(input_ids=ids, pixel_values=pixels).logits
    for folder in ("first", "again"):
        model.save_pretrained(tmp_path / folder, full=full)
        model = VisionLanguageModel.from_pretrained(tmp_path / folder)
        assert torch.equal(model(input_ids=ids, pixel_values=pixels).logits, expected)
