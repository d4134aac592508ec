"""A tiny twin has every kind of layer of a large model, runs, and hides nothing that the large one does."""

from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

from visgraft.model.checks.tiny_twin import shrink, shrink_whole, tiny_like


def on_meta(config: Any) -> Any:
    with torch.device("meta"):
        return hf.AutoModelForCausalLM.from_config(config)


def needs(name: str) -> Any:
    if not hasattr(hf, name):
        pytest.skip(f"this transformers has no {name} yet")
    return getattr(hf, name)


def test_the_tiny_twin_has_the_kernel_and_every_kind_of_layer_of_the_model() -> None:
    config = hf.Gemma3TextConfig(
        num_hidden_layers=26, sliding_window=512, attn_implementation="eager", vocab_size=300, hidden_size=640
    )
    tiny = shrink(config)
    assert tiny.layer_types == ["sliding_attention", "full_attention"]
    assert (tiny.num_hidden_layers, tiny.sliding_window, tiny.hidden_size) == (2, 5, 32)
    assert config.num_hidden_layers == 26
    twin = tiny_like(on_meta(config))
    assert twin is not None
    assert twin.config._attn_implementation == "eager"


def test_a_long_context_with_scaled_rotary_positions_is_checked_on_plain_ones() -> None:
    scaling = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
    config = hf.Phi3Config(pad_token_id=0, rope_parameters=scaling, original_max_position_embeddings=4096)
    tiny = shrink(config)
    assert tiny.rope_parameters["rope_type"] == "default"
    model: Tensor = hf.AutoModelForCausalLM.from_config(tiny)(input_ids=torch.arange(4)[None]).logits
    assert model.shape == (1, 4, 64)


def test_what_else_is_said_of_rotary_positions_is_kept() -> None:
    config = needs("Ministral3Config")(pad_token_id=0)
    tiny = shrink(config)
    assert tiny.rope_parameters["llama_4_scaling_beta"] == config.rope_parameters["llama_4_scaling_beta"]
    assert tiny_like(on_meta(config)) is not None


def test_what_differs_from_layer_to_layer_goes_with_the_layers_that_are_kept() -> None:
    config = needs("Gemma4UnifiedTextConfig")()
    tiny = shrink(config)
    assert tiny.to_dict()["per_layer_config"] == {"1": {"head_dim": 16}}
    assert tiny.per_layer_config[0].head_dim == 8
    assert tiny_like(on_meta(config)) is not None


def test_where_the_layers_of_a_kind_are_follows_them() -> None:
    config = needs("Zamba2Config")()
    tiny = shrink(config)
    assert tiny.layers_block_type == ["linear_attention", "hybrid"]
    assert tiny.hybrid_layer_ids == [1]
    assert tiny_like(on_meta(config)) is not None


@pytest.mark.parametrize("name", ["ZambaConfig", "Gemma3nTextConfig"])
def test_layers_that_share_something_come_twice(name: str) -> None:
    config = needs(name)()
    twin = tiny_like(on_meta(config))
    assert twin is not None
    assert twin.config.num_hidden_layers == 4


@pytest.mark.parametrize(("name", "weights"), [("KimiLinearConfig", 200_000), ("BailingHybridConfig", 200_000)])
def test_large_states_are_tiny_too(name: str, weights: int) -> None:
    twin = tiny_like(on_meta(needs(name)()))
    assert twin is not None
    assert twin.num_parameters() < weights


def test_scales_that_begin_at_zero_hide_nothing() -> None:
    twin = tiny_like(on_meta(hf.Gemma3nTextConfig()))
    assert twin is not None
    assert all(parameter.any() for parameter in twin.parameters())
    ids = torch.arange(3, 9)[None]
    embeds: Tensor = twin.get_input_embeddings()(ids)
    assert not torch.allclose(twin(input_ids=ids).logits, twin(inputs_embeds=embeds).logits, atol=1e-2)


def test_a_model_of_several_parts_has_a_twin_of_its_own_class() -> None:
    config = hf.Gemma3Config()
    tiny = shrink_whole(config)
    assert tiny.vision_config.hidden_size == tiny.text_config.hidden_size == 32
    assert max(tiny.image_token_index, tiny.boi_token_index) < tiny.text_config.vocab_size
    assert type(tiny_like(on_meta(config))) is hf.Gemma3ForConditionalGeneration
