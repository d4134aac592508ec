"""A tiny random model of the class and the configuration of a large one, on which what the large one does is tried.

In: a language model or its config. Out: its twin, with one layer of each kind and every size small; None where the
config does not shrink. Usage: `twin = tiny_like(language)`
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping
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
    "vocab_size_per_layer_input": 64,
    "hidden_size_per_layer_input": 8,
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
    "qk_head_dim": 16,
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
    "adapter_rank": 4,
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
# Of parts that read images or sounds.
TINY_SIDES = {"image_size": 28, "patch_size": 14, "num_mel_bins": 16, "input_size": 16, "ext_pw_out_channel": 32}
MAX_TINY = 20_000_000  # weights: what takes more is not tiny
TEXT_ONLY = 12  # tokens of a row without an image
_Make = Callable[..., PreTrainedModel]
# What a model raises that cannot run as it is asked to.
FAILURES = (ValueError, RuntimeError, TypeError, AttributeError, KeyError, IndexError, AssertionError)


def shrink(config: PreTrainedConfig, *, num_each: int = 1) -> PreTrainedConfig:
    """Copy a config with every size made tiny and so many layers of each kind, at least two in all."""
    tiny, own = copy.deepcopy(config), copy.deepcopy(config)
    overrides = {int(layer): values for layer, values in (config.to_dict().get("per_layer_config") or {}).items()}
    if overrides:  # what differs from layer to layer cannot be read, or set, until it is gone
        tiny.per_layer_config = own.per_layer_config = None
    heads = get_setting(own, "num_attention_heads")
    grouped = get_setting(own, "num_key_value_heads") not in (None, heads)
    for name, value in TINY.items():
        if get_setting(own, name) in (None, 0):  # it has none
            continue
        if name == "num_key_value_heads" and not grouped:
            value = TINY["num_attention_heads"]
        if name in ("num_experts_per_tok", "num_experts_per_token"):
            value = min(value, getattr(own, name))
        _set(tiny, name, value)
    _fit_heads(tiny, own)
    for number, (name, value) in enumerate(vars(own).items()):  # ids of images and sounds are ids of text, too
        is_id = name.endswith(("_token_id", "_token_index")) and name not in TINY
        if is_id and isinstance(value, int) and value >= TINY["vocab_size"]:
            setattr(tiny, name, TINY["vocab_size"] - 1 - number % 4)
    layer_types = list(get_setting(own, "layer_types") or get_setting(own, "layers_block_type") or ())
    kinds = list(dict.fromkeys(layer_types))
    if get_setting(own, "num_kv_shared_layers"):  # the last layers take keys and values of earlier ones of their kind
        num_each = max(2, num_each)
        tiny.num_kv_shared_layers = len(kinds) if len(kinds) > 1 else 1
    num_before = get_setting(own, "num_hidden_layers")
    places = [layer_types.index(kind) for kind in kinds] * num_each if len(kinds) > 1 else [0, 1] * num_each
    num_layers = len(places)
    for name, value in vars(own).items():  # what is said of each layer, and where the layers of a kind are
        if not isinstance(value, list) or name in ("layer_types", "layers_block_type"):
            continue
        if len(value) == num_before:
            setattr(tiny, name, [value[place] for place in places])
        elif value in [[place for place, kind in enumerate(layer_types) if kind == one] for one in kinds]:
            kind = layer_types[value[0]]
            setattr(tiny, name, [place for place, before in enumerate(places) if layer_types[before] == kind])
    if kinds:
        with contextlib.suppress(AttributeError):
            tiny.layer_types = [layer_types[place] for place in places] if len(kinds) > 1 else kinds * num_layers
    _set(tiny, "num_hidden_layers", num_layers)
    if not set(kinds) <= set(get_setting(tiny, "layer_types") or kinds):  # kinds that follow from other settings
        tiny.num_hidden_layers = 1 + max(places)
    rope = getattr(own, "rope_parameters", None)
    if isinstance(rope, dict) and rope.get("rope_type", "default") != "default":  # factors are as long as the old head
        plain = {name: value for name, value in rope.items() if not isinstance(value, list | dict)}
        tiny.rope_parameters = {"rope_theta": 1e4, **plain, "rope_type": "default"}
    if overrides:
        tiny.per_layer_config = {
            layer: _tiny_overrides(own, overrides[place]) for layer, place in enumerate(places) if place in overrides
        }
    return tiny


def _set(config: PreTrainedConfig, name: str, value: Any) -> None:
    """Set a setting where it can be set: a size derived from others cannot."""
    with contextlib.suppress(AttributeError, NotImplementedError):
        setattr(config, name, value)


def _fit_heads(tiny: PreTrainedConfig, config: PreTrainedConfig) -> None:
    """Make sizes fit that are sums or products of others."""
    if get_setting(config, "expand") and get_setting(config, "num_heads"):  # a state's heads: as wide as the layer
        tiny.num_heads = TINY["expand"] * TINY["hidden_size"] // TINY["head_dim"]
    rotated, plain = get_setting(config, "qk_rope_head_dim"), get_setting(config, "qk_nope_head_dim")
    if rotated and plain and get_setting(config, "head_dim") not in (None, rotated):
        _set(tiny, "head_dim", TINY["qk_rope_head_dim"] + TINY["qk_nope_head_dim"])
    if get_setting(config, "attention_head_dim") and get_setting(config, "attention_hidden_size"):  # reads two states
        tiny.attention_hidden_size = 2 * TINY["hidden_size"]
        tiny.attention_head_dim = 2 * TINY["hidden_size"] // TINY["num_attention_heads"]
        _set(tiny, "mamba_headdim", TINY["mamba_head_dim"])


def _tiny_overrides(config: PreTrainedConfig, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Shrink what one layer has of its own; a wider head stays one."""
    tiny = {name: TINY.get(name, value) for name, value in overrides.items()}
    if overrides.get("head_dim", 0) > (get_setting(config, "head_dim") or overrides.get("head_dim", 0)):
        tiny["head_dim"] = 2 * TINY["head_dim"]
    heads = overrides.get("num_attention_heads", get_setting(config, "num_attention_heads"))
    if overrides.get("num_key_value_heads") == heads:
        tiny["num_key_value_heads"] = TINY["num_attention_heads"]
    return tiny


def get_setting(config: PreTrainedConfig, name: str) -> Any:
    """Read a setting; None where there is none, or each layer has its own."""
    try:
        return getattr(config, name, None)
    except FAILURES:
        return None


def shrink_whole(config: PreTrainedConfig, *, num_each: int = 1) -> PreTrainedConfig:
    """Shrink a config and the configs of all its parts, so that what reads images and sounds is small too."""
    tiny = shrink(config, num_each=num_each)
    for part in config.sub_configs:
        own = get_setting(config, part)
        if isinstance(own, PreTrainedConfig):
            setattr(tiny, part, shrink(own, num_each=num_each))
            for name, value in TINY_SIDES.items():
                if get_setting(own, name) is not None:
                    _set(getattr(tiny, part), name, value)
    return tiny


def tiny_like(language: PreTrainedModel) -> PreTrainedModel | None:
    """Make a tiny random model of the same class, or None where its config does not shrink.

    Of a model with more than one part that does not shrink as a whole, it is the text part that is made.
    """
    whole, text = language.config, language.config.get_text_config(decoder=True)
    kernel = text._attn_implementation
    ways: list[tuple[_Make, PreTrainedConfig]] = [(type(language)._from_config, whole)]
    if text is not whole:
        ways.append((AutoModelForCausalLM.from_config, text))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for make, config in ways:
            for num_each in (1, 2):  # to tie some weights takes two layers of a kind
                with contextlib.suppress(*FAILURES):
                    tiny = _make_tiny(make, config, num_each=num_each, kernel=kernel)
                    if tiny is not None:
                        return tiny
    return None


def _make_tiny(make: _Make, config: PreTrainedConfig, *, num_each: int, kernel: str | None) -> PreTrainedModel | None:
    """Make a tiny model that runs on text, or None where it would not be tiny."""
    with torch.device("meta"):
        if make(shrink_whole(config, num_each=num_each)).num_parameters() > MAX_TINY:
            return None
    tiny = make(shrink_whole(config, num_each=num_each), attn_implementation=kernel, dtype=torch.float32)
    for parameter in tiny.parameters():
        # The library's initial weights are so small that effects vanish; scales of 0 hide what they scale.
        if parameter.ndim > 1 or not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    with torch.no_grad():
        tiny.eval()(input_ids=torch.zeros(2, TEXT_ONLY, dtype=torch.long), use_cache=False)
    return tiny
