"""A tiny random model of the class and the configuration of a large one, on which what the large one does is tried.

In: a language model or its config. Out: its twin, with one layer of each kind and every size small; None where the
config does not shrink. Usage: `twin = tiny_like(language)`
"""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

TINY = {
    "hidden_size": 32,
    "d_model": 32,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "d_ff": 48,
    "num_attention_heads": 4,
    "decoder_attention_heads": 4,
    "decoder_layers": 2,
    "encoder_layers": 2,
    "head_dim": 8,
    "num_key_value_heads": 2,
    "word_embed_proj_dim": 32,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "max_seq_len": 64,
    "sliding_window": 5,
    "attention_chunk_size": 8,
    "num_kv_heads": 2,
    "rotary_dim": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # latent and indexed attention
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "o_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "index_n_heads": 2,
    "index_head_dim": 16,
    # experts
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "zero_expert_num": 1,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_intermediate_size": 48,
    "moe_shared_expert_intermediate_size": 48,
    "shared_expert_intermediate_size": 48,
    "shared_intermediate_size": 48,
    "expert_ffn_hidden_size": 48,
    "block_ff_dim": 48,
    "block_multiple_of": 8,
    "n_group": 1,
    "topk_group": 1,
    # recurrent and linear layers
    "expand": 2,
    "mamba_expand": 2,
    "mamba_n_heads": 4,
    "mamba_num_heads": 4,
    "n_mamba_heads": 4,
    "mamba_d_head": 16,
    "mamba_head_dim": 16,
    "mamba_d_ssm": 64,
    "mamba_d_state": 8,
    "ssm_state_size": 8,
    "state_size": 8,
    "mamba_n_groups": 1,
    "mamba_ngroups": 1,
    "n_groups": 1,
    "mamba_dt_rank": 4,
    "time_step_rank": 4,
    "mamba_chunk_size": 4,
    "chunk_size": 4,
    "lru_width": 32,
    "attention_hidden_size": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_heads": 4,
    "linear_head_dim": 8,
}
MAX_TINY = 20_000_000  # weights: what takes more is not tiny
TEXT_ONLY = 12  # tokens of a row without an image
# What a model raises that cannot run as it is asked to.
FAILURES = (ValueError, RuntimeError, TypeError, AttributeError, KeyError, IndexError, AssertionError)


def shrink(config: PreTrainedConfig) -> PreTrainedConfig:
    """Copy a config with every size made tiny and one layer of each kind, at least two."""
    tiny = copy.deepcopy(config)
    heads = get_setting(config, "num_attention_heads")
    grouped = get_setting(config, "num_key_value_heads") not in (None, heads)
    for name, value in TINY.items():
        if get_setting(config, name) is None:
            continue
        if name == "num_key_value_heads" and not grouped:
            value = TINY["num_attention_heads"]
        if name == "num_experts_per_tok":
            value = min(value, config.num_experts_per_tok)
        with contextlib.suppress(AttributeError):  # a size derived from others has no setter
            setattr(tiny, name, value)
    if get_setting(config, "expand") and get_setting(
        config, "num_heads"
    ):  # heads of a state: together as wide as the layer
        tiny.num_heads = TINY["expand"] * TINY["hidden_size"] // TINY["head_dim"]
    layer_types = list(get_setting(config, "layer_types") or get_setting(config, "layers_block_type") or ())
    kinds = list(dict.fromkeys(layer_types))
    num_layers = max(2, len(kinds))
    places = [layer_types.index(kind) for kind in kinds] if len(kinds) > 1 else [0, 1]
    num_before = get_setting(config, "num_hidden_layers")
    for name, value in vars(config).items():  # what is said of each layer
        if isinstance(value, list) and len(value) == num_before and name not in ("layer_types", "layers_block_type"):
            setattr(tiny, name, [value[place] for place in places])
    if kinds:
        with contextlib.suppress(AttributeError):
            tiny.layer_types = kinds if len(kinds) > 1 else kinds * 2
    tiny.num_hidden_layers = num_layers
    if not set(kinds) <= set(get_setting(tiny, "layer_types") or kinds):  # kinds that follow from other settings
        tiny.num_hidden_layers = 1 + max(places)
    rope = getattr(config, "rope_parameters", None)
    if isinstance(rope, dict) and rope.get("rope_type", "default") != "default":  # factors are as long as the old head
        tiny.rope_parameters = {"rope_type": "default", "rope_theta": rope.get("rope_theta", 1e4)}
        partial = rope.get("partial_rotary_factor")
        if partial is not None:
            tiny.rope_parameters["partial_rotary_factor"] = partial
    return tiny


def get_setting(config: PreTrainedConfig, name: str) -> Any:
    """Read a setting; None where there is none, or each layer has its own."""
    try:
        return getattr(config, name, None)
    except FAILURES:
        return None


def tiny_like(language: PreTrainedModel) -> PreTrainedModel | None:
    """Make a tiny random model of the same class, or None where its config does not shrink."""
    config = language.config.get_text_config(decoder=True)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            # A class of one's own is tried as it is; of a model with more than one part, the text part.
            make = AutoModelForCausalLM.from_config if config is not language.config else type(language)._from_config
            with torch.device("meta"):
                if make(shrink(config)).num_parameters() > MAX_TINY:
                    return None
            tiny = make(shrink(config), attn_implementation=config._attn_implementation, dtype=torch.float32)
            for parameter in tiny.parameters():
                if parameter.ndim > 1:  # the library's initial weights are so small that effects vanish
                    torch.nn.init.normal_(parameter, std=0.2)
            with torch.no_grad():
                tiny.eval()(input_ids=torch.zeros(2, TEXT_ONLY, dtype=torch.long), use_cache=False)
            return tiny
    except FAILURES:
        return None
