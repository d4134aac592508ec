"""Japanese StableLM alpha is a causal LM like any other; that it is the right one, the imports prove."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.tiny import bare_vision, batch, randomise, samples
from tests.warm_python import warm_python
from visgraft.model.cache import CACHE_NAME
from visgraft.model.japanese_stablelm import JapaneseStableLMConfig, rotary_factors
from visgraft.model.vlm import VisionLanguageModel

IDS = torch.randint(3, 90, (2, 9), generator=torch.Generator().manual_seed(0))


def tiny() -> PreTrainedModel:
    config = JapaneseStableLMConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64
    )
    return randomise(AutoModelForCausalLM.from_config(config), seed=1).eval()  # type: ignore[return-value]


def test_the_inner_size_is_eight_thirds_rounded_up() -> None:
    assert JapaneseStableLMConfig(hidden_size=64).intermediate_size == 256
    assert JapaneseStableLMConfig(hidden_size=4096).intermediate_size == 11008


def test_queries_and_keys_are_scaled_by_their_distance_alone() -> None:
    config = JapaneseStableLMConfig(hidden_size=32, num_attention_heads=2, rotary_pct=0.5, max_position_embeddings=64)
    _, _, scale = rotary_factors(config, torch.arange(10)[None])
    product = scale[0, 0, :, None] / scale[0, 0, None]  # query row, key column
    torch.testing.assert_close(product[5, 2], product[9, 6])
    assert (product[5, 2] < 1).all()  # what is further away weighs less


def test_cached_steps_equal_one_forward() -> None:
    model = tiny()
    whole = model(IDS).logits
    first = model(IDS[:, :5], use_cache=True)
    second = model(IDS[:, 5:], past_key_values=first[CACHE_NAME])
    torch.testing.assert_close(second.logits, whole[:, 5:], atol=1e-5, rtol=0)
    torch.testing.assert_close(model(IDS, logits_to_keep=1).logits, whole[:, -1:], atol=1e-6, rtol=0)


def test_checkpointed_layers_have_the_same_gradients() -> None:
    model = tiny()
    grads = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train().zero_grad()
        model(IDS).logits.sum().backward()
        grads.append(model.transformer.layers[0].attention.query_key_value.weight.grad.clone())
    torch.testing.assert_close(*grads)


def test_it_is_saved_and_found_by_the_auto_classes(tmp_path: Path) -> None:
    model = tiny()
    model.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), JapaneseStableLMConfig)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(IDS).logits, model(IDS).logits)


def test_it_takes_an_image_prefix() -> None:
    model = VisionLanguageModel.from_parts(bare_vision("clip"), tiny())
    shared, rows = (model.loss(batch(samples(), layout=layout)).loss for layout in ("shared", "rows"))
    torch.testing.assert_close(shared, rows, atol=1e-5, rtol=0)
    model.logits_bytes = 4 * 96 * 3  # logits in chunks of three rows
    torch.testing.assert_close(model.loss(batch(samples())).loss, shared, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_a_process_that_touches_the_model_alone_knows_the_family(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    code = (
        "import sys; from visgraft import VisionLanguageModel; from transformers import AutoModelForCausalLM\n"
        "print(type(AutoModelForCausalLM.from_pretrained(sys.argv[1])).__name__)"
    )
    found = subprocess.run([*warm_python(), "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "JapaneseStableLMForCausalLM"
