"""LoRA lands on the linears that were meant, in the part that was meant, on any family."""

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BloomConfig,
    CLIPVisionConfig,
    ConvNextConfig,
    Dinov2Config,
    EfficientNetConfig,
    FalconConfig,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MptConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen3Config,
    SiglipVisionConfig,
    ViTConfig,
)

from visgraft.config import LoraSettings
from visgraft.errors import ConfigError
from visgraft.model.lora import activate_adapters, adapters_of, add_lora, find_lora_targets, same_adapter

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
GROUPED = {**SIZES, "intermediate_size": 40, "num_key_value_heads": 2}
IMAGE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 16}

LANGUAGES: dict[str, tuple[PreTrainedConfig, set[str]]] = {
    "llama": (LlamaConfig(**GROUPED), {"q_proj", "k_proj", "v_proj", "o_proj"}),
    "opt": (OPTConfig(**SIZES, ffn_dim=40, word_embed_proj_dim=16), {"q_proj", "k_proj", "v_proj", "out_proj"}),
    "gpt2": (GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64), {"c_attn", "c_proj"}),
    "gpt_neox": (GPTNeoXConfig(**SIZES, intermediate_size=40), {"query_key_value", "dense"}),
    "mpt": (MptConfig(d_model=32, n_heads=4, n_layers=2, vocab_size=64), {"Wqkv", "out_proj"}),
    "falcon": (FalconConfig(**SIZES), {"query_key_value", "dense"}),
    "bloom": (BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=64), {"query_key_value", "dense"}),
    "gemma3": (Gemma3TextConfig(**GROUPED, head_dim=8), {"q_proj", "k_proj", "v_proj", "o_proj"}),
    "phi3": (Phi3Config(**GROUPED, pad_token_id=0), {"qkv_proj", "o_proj"}),
    "qwen3": (Qwen3Config(**GROUPED, head_dim=8), {"q_proj", "k_proj", "v_proj", "o_proj"}),
}
ENCODERS: dict[str, PreTrainedConfig] = {
    "clip": CLIPVisionConfig(**IMAGE, intermediate_size=40),
    "siglip": SiglipVisionConfig(**IMAGE, intermediate_size=40),
    "dinov2": Dinov2Config(**IMAGE),
    "vit": ViTConfig(**IMAGE, intermediate_size=40),
}


def make_language(family: str) -> nn.Module:
    return AutoModelForCausalLM.from_config(LANGUAGES[family][0])


def last_names(paths: tuple[str, ...]) -> set[str]:
    return {path.rpartition(".")[2] for path in paths}


@pytest.mark.parametrize("family", LANGUAGES)
def test_the_default_targets_of_a_language_model_are_the_linears_of_its_attention_blocks(family: str) -> None:
    language = make_language(family)
    targets = find_lora_targets(language, part="language", exclude=[language.get_output_embeddings()])
    assert last_names(targets) == LANGUAGES[family][1]
    assert len(targets) == 2 * len(LANGUAGES[family][1])
    assert not any("mlp" in path or "feed_forward" in path for path in targets)


@pytest.mark.parametrize("family", LANGUAGES)
def test_lora_starts_as_nothing_and_then_changes_the_output(family: str) -> None:
    torch.manual_seed(0)
    language = make_language(family).eval()
    ids = torch.arange(1, 7)[None]
    before = language(input_ids=ids).logits
    add_lora(language, LoraSettings(r=2), targets=find_lora_targets(language, part="language"))
    assert torch.equal(language(input_ids=ids).logits, before)
    trained = [parameter for parameter in language.parameters() if parameter.requires_grad]
    for parameter in trained:
        nn.init.normal_(parameter)
    assert not torch.allclose(language(input_ids=ids).logits, before)
    assert len(trained) == 2 * sum(isinstance(module, LoraLayer) for module in language.modules())


@pytest.mark.parametrize("family", ENCODERS)
def test_the_default_targets_of_an_encoder_are_four_linears_of_each_attention_block(family: str) -> None:
    encoder = AutoModel.from_config(ENCODERS[family])
    targets = find_lora_targets(encoder, part="vision")
    assert len(targets) == 8
    own = {"q_proj", "k_proj", "v_proj"}, {"query", "key", "value"}  # older transformers call them so in DINOv2
    assert any(names < last_names(targets) for names in own)


def test_a_part_without_attention_takes_lora_on_every_linear() -> None:
    encoder = AutoModel.from_config(ConvNextConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1]))
    assert last_names(find_lora_targets(encoder, part="vision")) == {"pwconv1", "pwconv2"}


def test_a_part_without_linears_is_refused_with_what_to_do_instead() -> None:
    encoder = AutoModel.from_config(EfficientNetConfig(width_coefficient=0.1, depth_coefficient=0.1, hidden_dim=128))
    with pytest.raises(ConfigError, match=r"train\.vision: lora needs linear layers .*EfficientNet.* use frozen, full"):
        find_lora_targets(encoder, part="vision")


def test_suffixes_choose_linears_as_in_peft() -> None:
    language = make_language("llama")
    assert find_lora_targets(language, part="language", suffixes=["q_proj", "mlp.up_proj"]) == (
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.mlp.up_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
    )


def test_a_suffix_that_matches_nothing_lists_what_could_match() -> None:
    language = make_language("gpt2")
    with pytest.raises(ConfigError, match=r"'q_proj' matches no linear of the language part; .*c_attn, c_fc, c_proj$"):
        find_lora_targets(language, part="language", suffixes=["q_proj"], exclude=[language.get_output_embeddings()])


def test_the_head_is_no_target_of_the_language() -> None:
    language = make_language("llama")
    with pytest.raises(ConfigError, match="'lm_head' matches no linear"):
        find_lora_targets(language, part="language", suffixes=["lm_head"], exclude=[language.get_output_embeddings()])


def test_the_linear_inside_multihead_attention_is_left_alone() -> None:
    encoder = AutoModel.from_config(ENCODERS["siglip"])
    assert any("head.attention.out_proj" in path for path, _ in encoder.named_modules())
    assert not any(path.startswith("head.") for path in find_lora_targets(encoder, part="vision"))


def test_a_second_adapter_goes_on_top_of_the_first_and_only_it_trains() -> None:
    language = make_language("llama").eval()
    ids = torch.arange(1, 7)[None]
    q_proj = find_lora_targets(language, part="language", suffixes=["q_proj"])
    assert add_lora(language, LoraSettings(r=2), targets=q_proj) == "default"
    for parameter in language.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    with_first = language(input_ids=ids).logits
    v_proj = find_lora_targets(language, part="language", suffixes=["v_proj"])
    assert add_lora(language, LoraSettings(r=4), targets=v_proj) == "stage_2"
    assert adapters_of(language) == ["default", "stage_2"]
    assert torch.equal(language(input_ids=ids).logits, with_first)
    trained = [name for name, parameter in language.named_parameters() if parameter.requires_grad]
    assert len(trained) == 4
    assert all(".stage_2." in name and "v_proj" in name for name in trained)
    activate_adapters(language, trained=None)
    assert not any(parameter.requires_grad for parameter in language.parameters())


def test_an_adapter_is_the_same_only_with_equal_settings_and_targets() -> None:
    language = make_language("opt")
    q_proj = find_lora_targets(language, part="language", suffixes=["q_proj"])
    assert same_adapter(language, LoraSettings(), targets=q_proj) is None
    add_lora(language, LoraSettings(r=2), targets=q_proj)
    assert same_adapter(language, LoraSettings(r=2), targets=q_proj) == "default"
    assert same_adapter(language, LoraSettings(r=4), targets=q_proj) is None
    assert same_adapter(language, LoraSettings(r=2), targets=q_proj[:1]) is None
