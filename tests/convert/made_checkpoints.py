"""Make random checkpoints in the layout of GIT-LLM and heron, of every architecture and variant, in every file format.

In: an architecture and what is special. Out: config values and a state dict with plain names, or a folder with the
names that their trainers wrote. Every parameter is random, none is zero or one.
Usage: `values, state = make("git_opt", post_norm=True); write(folder, values, state, form="bin", wrapped="heron")`
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.convert.restatement import ROOTS

V, D, LAYERS, HEADS = 61, 32, 2, 4
CLIP = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
CLIP |= {"image_size": 16, "patch_size": 8}
NUM_TOKENS = 5  # of one image
LORA_TARGETS = {
    "git_opt": ("q_proj", "v_proj"),
    "git_llama": ("q_proj", "v_proj"),
    "git_mpt": ("Wqkv",),
    "git_gpt_neox": ("query_key_value",),
    "git_japanese_stablelm_alpha": ("query_key_value", "dense"),
}


def make(
    model_type: str,
    *,
    frames: int = 0,
    lora: bool = False,
    vision_lora: bool = False,
    post_norm: bool = False,
    narrow: int = D,
    kv_heads: int = HEADS,
    parallel: bool = True,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Give (config values, state dict) of a tiny checkpoint, the dead keys of its day included."""
    values: dict[str, Any] = {
        "model_type": model_type,
        "vocab_size": V,
        "bos_token_id": 2,
        "eos_token_id": 2,
        "pad_token_id": 1,
        "vision_model_name": "openai/clip-vit-base-patch16",
        "num_image_with_embedding": frames or None,
        "vision_config": {"model_type": "clip_vision_model", **CLIP},
    }
    shapes = _vision_shapes(ROOTS[model_type], frames)
    more, language = {
        "git_opt": lambda: _opt(post_norm, narrow),
        "git_llama": lambda: _llama(kv_heads),
        "git_mpt": _mpt,
        "git_gpt_neox": lambda: _neox(parallel),
        "git_japanese_stablelm_alpha": _japanese,
    }[model_type]()
    values.update(more)
    shapes.update(language)
    if lora:
        shapes.update(_lora_shapes(shapes, LORA_TARGETS[model_type], is_vision=False))
    if vision_lora:
        shapes.update(_lora_shapes(shapes, ("q_proj", "v_proj"), is_vision=True))
    generator = torch.Generator().manual_seed(len(shapes) * 7 + frames)
    state = {name: _random(name, shape, generator) for name, shape in shapes.items()}
    if model_type == "git_opt":
        state["lm_head.weight"] = state["model.decoder.embed_tokens.weight"]
    if model_type == "git_mpt":
        state["lm_head.weight"] = state["transformer.wte.weight"]
    return values, state


def write(
    folder: Path,
    values: Mapping[str, Any],
    state: Mapping[str, Tensor],
    *,
    form: str = "safetensors",
    wrapped: str = "",
    base_layer: bool = False,
) -> Path:
    """Write a folder; `wrapped` is heron (the whole model), decoder (GIT-LLM's OPT) or nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    named = {_disk_name(name, state, wrapped, base_layer): tensor.clone() for name, tensor in state.items()}
    names = sorted(named)
    stem, suffix = ("model", "safetensors") if "safetensors" in form else ("pytorch_model", "bin")
    parts = [names[::2], names[1::2]] if form.startswith("sharded") else [names]
    weight_map = {}
    for index, part in enumerate(parts):
        file = f"{stem}.{suffix}" if len(parts) == 1 else f"{stem}-{index + 1:05d}-of-{len(parts):05d}.{suffix}"
        tensors = {name: named[name] for name in part}
        weight_map.update(dict.fromkeys(part, file))
        if suffix == "bin":
            torch.save(tensors, folder / file)
        else:
            save_file(tensors, folder / file, metadata={"format": "pt"})
    if len(parts) > 1:
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def _disk_name(name: str, state: Mapping[str, Tensor], wrapped: str, base_layer: bool) -> str:
    module, _, leaf = name.rpartition(".")
    if base_layer and f"{module}.lora_A.default.weight" in state:
        name = f"{module}.base_layer.{leaf}"
    if wrapped == "heron":
        return f"base_model.model.{name}"
    if wrapped == "decoder":
        return name.replace("model.decoder.", "model.decoder.base_model.model.")
    return name


def _random(name: str, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    noise = torch.randn(*shape, generator=generator)
    if ".lora_" in name:
        return 0.1 * noise
    if any(word in name for word in ("embed", "wte", "class_embedding")) and "patch" not in name:
        return 0.5 * noise
    if len(shape) == 1:
        return 0.3 * noise + ("norm" in name and name.endswith("weight"))
    return 0.2 * noise


def _vision_shapes(root: str, frames: int) -> dict[str, tuple[int, ...]]:
    width, inner, patch = CLIP["hidden_size"], CLIP["intermediate_size"], CLIP["patch_size"]
    encoder = f"{root}image_encoder.vision_model."
    shapes: dict[str, tuple[int, ...]] = {
        f"{encoder}embeddings.class_embedding": (width,),
        f"{encoder}embeddings.patch_embedding.weight": (width, 3, patch, patch),
        f"{encoder}embeddings.position_embedding.weight": (NUM_TOKENS, width),
        f"{root}visual_projection.visual_projection.0.weight": (D, width),
        f"{root}visual_projection.visual_projection.0.bias": (D,),
        f"{root}visual_projection.visual_projection.1.weight": (D,),
        f"{root}visual_projection.visual_projection.1.bias": (D,),
    }
    for name in ("pre_layrnorm", "post_layernorm"):
        shapes |= both(f"{encoder}{name}", width)
    for index in range(CLIP["num_hidden_layers"]):
        layer = f"{encoder}encoder.layers.{index}."
        for name in ("q", "k", "v", "out"):
            shapes |= both(f"{layer}self_attn.{name}_proj", width, width)
        shapes |= both(f"{layer}layer_norm1", width) | both(f"{layer}layer_norm2", width)
        shapes |= both(f"{layer}mlp.fc1", inner, width) | both(f"{layer}mlp.fc2", width, inner)
    return shapes | {f"{root}img_temporal_embedding.{frame}": (1, 1, width) for frame in range(frames)}


def both(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _opt(post_norm: bool, narrow: int) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    root, positions = "model.decoder.", 64
    shapes: dict[str, tuple[int, ...]] = {
        f"{root}embed_tokens.weight": (V, narrow),
        f"{root}embed_positions.weight": (positions + 2, D),
        "model.embed_positions.weight": (positions + 2, D),
    }
    if narrow != D:
        shapes |= {f"{root}project_in.weight": (D, narrow), f"{root}project_out.weight": (narrow, D)}
    if not post_norm:
        shapes |= both(f"{root}final_layer_norm", D)
    for index in range(LAYERS):
        layer = f"{root}layers.{index}."
        for name in ("q", "k", "v", "out"):
            shapes |= both(f"{layer}self_attn.{name}_proj", D, D)
        shapes |= both(f"{layer}self_attn_layer_norm", D) | both(f"{layer}final_layer_norm", D)
        shapes |= both(f"{layer}fc1", 48, D) | both(f"{layer}fc2", D, 48)
    values = {"hidden_size": D, "word_embed_proj_dim": narrow, "do_layer_norm_before": not post_norm, "ffn_dim": 48}
    values |= {"num_attention_heads": HEADS, "num_hidden_layers": LAYERS, "max_position_embeddings": positions}
    return values, shapes


def _llama(kv_heads: int) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (V, D),
        "model.norm.weight": (D,),
        "lm_head.weight": (V, D),
    }
    kv_width = D // HEADS * kv_heads
    for index in range(LAYERS):
        layer = f"model.layers.{index}."
        for name, rows in (("q", D), ("k", kv_width), ("v", kv_width), ("o", D)):
            shapes[f"{layer}self_attn.{name}_proj.weight"] = (rows, D)
        shapes |= {f"{layer}mlp.{name}_proj.weight": (48, D) for name in ("gate", "up")}
        shapes[f"{layer}mlp.down_proj.weight"] = (D, 48)
        shapes |= {f"{layer}{name}_layernorm.weight": (D,) for name in ("input", "post_attention")}
        shapes[f"{layer}self_attn.rotary_emb.inv_freq"] = (D // HEADS // 2,)
    values = {"hidden_size": D, "num_attention_heads": HEADS, "num_key_value_heads": kv_heads, "rms_norm_eps": 1e-6}
    values |= {"num_hidden_layers": LAYERS, "intermediate_size": 48, "max_position_embeddings": 64}
    return {**values, "tie_word_embeddings": False, "rope_scaling": None, "hidden_act": "silu"}, shapes


def _mpt() -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (V, D), "transformer.norm_f.weight": (D,)}
    for index in range(LAYERS):
        layer = f"transformer.blocks.{index}."
        shapes |= {f"{layer}norm_1.weight": (D,), f"{layer}norm_2.weight": (D,)}
        shapes |= {f"{layer}attn.Wqkv.weight": (3 * D, D), f"{layer}attn.out_proj.weight": (D, D)}
        shapes |= {f"{layer}ffn.up_proj.weight": (4 * D, D), f"{layer}ffn.down_proj.weight": (D, 4 * D)}
    values = {"d_model": D, "n_heads": HEADS, "n_layers": LAYERS, "max_seq_len": 64}
    # ignored in GIT-LLM's day, honoured by later libraries
    attention = {"clip_qkv": 0.01, "alibi_bias_max": 16, "softmax_scale": None, "attn_pdrop": 0}
    return {**values, "attn_config": attention, "logit_scale": 3.0, "expansion_ratio": 2}, shapes


def _neox(parallel: bool) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    root = "gpt_neox."
    shapes: dict[str, tuple[int, ...]] = {f"{root}embed_in.weight": (V, D), "embed_out.weight": (V, D)}
    shapes |= both(f"{root}final_layer_norm", D)
    for index in range(LAYERS):
        layer = f"{root}layers.{index}."
        shapes |= both(f"{layer}attention.query_key_value", 3 * D, D) | both(f"{layer}attention.dense", D, D)
        shapes |= both(f"{layer}mlp.dense_h_to_4h", 48, D) | both(f"{layer}mlp.dense_4h_to_h", D, 48)
        shapes |= both(f"{layer}input_layernorm", D) | both(f"{layer}post_attention_layernorm", D)
        shapes |= {f"{layer}attention.rotary_emb.inv_freq": (2,), f"{layer}attention.bias": (1, 1, 64, 64)}
        shapes |= {f"{layer}attention.masked_bias": (1,)}
    return {**_neox_values(), "use_parallel_residual": parallel, "hidden_act": "gelu", "intermediate_size": 48}, shapes


def _japanese() -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    root, inner = "transformer.", 256
    shapes: dict[str, tuple[int, ...]] = {f"{root}embed_in.weight": (V, D), "embed_out.weight": (V, D)}
    shapes |= both(f"{root}final_layer_norm", D)
    for index in range(LAYERS):
        layer = f"{root}layers.{index}."
        shapes |= {f"{layer}attention.query_key_value.weight": (3 * D, D), f"{layer}attention.dense.weight": (D, D)}
        shapes |= {f"{layer}mlp.packed_input_proj.weight": (2 * inner, D), f"{layer}mlp.out_proj.weight": (D, inner)}
        shapes |= both(f"{layer}post_attention_layernorm", D)
        shapes |= {f"{layer}attention.rotary_emb.{name}": (2,) for name in ("inv_freq", "scale")}
    return {**_neox_values(), "rotary_scale_base": 512, "hidden_act": "silu", "use_bias_in_mlp": True}, shapes


def _neox_values() -> dict[str, Any]:
    values = {"hidden_size": D, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS, "rotary_pct": 0.5}
    values |= {"rotary_emb_base": 10000, "max_position_embeddings": 64, "layer_norm_eps": 1e-5}
    return {**values, "tie_word_embeddings": False}


def _lora_shapes(
    shapes: Mapping[str, tuple[int, ...]], targets: Sequence[str], *, is_vision: bool, rank: int = 8
) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        module = name.removesuffix(".weight")
        if name.endswith(".weight") and module.endswith(tuple(targets)) and ("image_encoder" in name) == is_vision:
            found[f"{module}.lora_A.default.weight"] = (rank, shape[1])
            found[f"{module}.lora_B.default.weight"] = (shape[0], rank)
    return found
