"""The shapes of the pairs that the GPU ladder trains, and such a pair with random weights, made on its device.

    model = build(pairs(tiny=False)["llama-2-7b"], device=torch.device("cuda"))

OPT-350m, OPT-6.7b, Llama-2-7b and MPT-7b as their configurations on the Hub have them, without dropout; ViT-B/16 as
CLIP's. Tiny ones are of the same families.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from train_step import LORA, LORA_TARGETS, MODES, NO_DROPOUT, configs
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    MptConfig,
    OPTConfig,
    PreTrainedConfig,
)

from visgraft.model.trainable import set_trainable
from visgraft.model.vlm import VisionLanguageModel


@dataclass(frozen=True)
class Pair:
    """The shapes of a pair, and where LoRA goes."""

    vision: CLIPVisionConfig
    language: PreTrainedConfig
    lora_targets: tuple[str, ...]


def pairs(*, tiny: bool) -> dict[str, Pair]:
    """Give the pairs by the name of their language model."""
    vision, _ = configs(tiny)
    languages = _tiny_languages() if tiny else _real_languages()
    return {
        name: Pair(vision, config, ("Wqkv",) if config.model_type == "mpt" else tuple(LORA_TARGETS))
        for name, config in languages.items()
    }


def build(pair: Pair, *, device: torch.device) -> VisionLanguageModel:
    """Join a pair, ready to train the projection and LoRA r 8."""
    torch.manual_seed(0)
    with torch.device(device):
        language = AutoModelForCausalLM.from_config(pair.language, dtype=torch.bfloat16)
        vision = CLIPVisionModel(pair.vision).to(torch.bfloat16)
    model = VisionLanguageModel.from_parts(vision, language).to(device)
    lora: Any = {"language": replace(LORA["language"], target_modules=pair.lora_targets)}
    set_trainable(model, modes=MODES, lora=lora, frozen_dtype=torch.bfloat16)
    return model


def _real_languages() -> dict[str, PreTrainedConfig]:
    opt = {"vocab_size": 50_272, "max_position_embeddings": 2048, **NO_DROPOUT}
    opt_350m = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "ffn_dim": 4096}
    opt_7b = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "ffn_dim": 16_384}
    mpt_7b = {"d_model": 4096, "n_layers": 32, "n_heads": 32, "vocab_size": 50_432, "max_seq_len": 2048}
    return {
        "opt-350m": OPTConfig(**opt, **opt_350m, word_embed_proj_dim=512, do_layer_norm_before=False),
        "opt-6.7b": OPTConfig(**opt, **opt_7b, word_embed_proj_dim=4096),
        "llama-2-7b": LlamaConfig(max_position_embeddings=4096),
        "mpt-7b": MptConfig(**mpt_7b, no_bias=True),
    }


def _tiny_languages() -> dict[str, PreTrainedConfig]:
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 300}
    opt = {**shape, "ffn_dim": 64, "max_position_embeddings": 2048, **NO_DROPOUT}
    return {
        "opt-350m": OPTConfig(**opt, word_embed_proj_dim=16, do_layer_norm_before=False),
        "opt-6.7b": OPTConfig(**opt, word_embed_proj_dim=32),
        "llama-2-7b": LlamaConfig(**shape, intermediate_size=64),
        "mpt-7b": MptConfig(d_model=32, n_layers=2, n_heads=2, vocab_size=300, max_seq_len=2048, no_bias=True),
    }
