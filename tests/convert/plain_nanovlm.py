"""nanoVLM in plain PyTorch, written from what it computes and from nothing of visgraft: it reads a folder of its own.

In: a folder with `config.json` and `model.safetensors`. Out: logits, one matrix product at a time. `save_nanovlm` makes
a tiny folder of that form with random weights.

    logits = PlainNanoVlm(folder).logits(pixels, before=[1, 2], behind=[3, 4])
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import conv2d, gelu, layer_norm, silu

SETTINGS: dict[str, Any] = {
    "vit_hidden_dim": 24, "vit_inter_dim": 40, "vit_patch_size": 8, "vit_img_size": 32, "vit_n_heads": 3,
    "vit_dropout": 0.0, "vit_n_blocks": 2, "vit_ln_eps": 1e-6, "vit_cls_flag": False,
    "vit_model_type": "google/siglip-base-patch16-224",
    "lm_hidden_dim": 32, "lm_inter_dim": 48, "lm_rms_eps": 1e-5, "lm_re_base": 100000,
    "lm_max_position_embeddings": 128,
    "lm_n_heads": 4, "lm_n_kv_heads": 2, "lm_dropout": 0.0, "lm_n_blocks": 2, "lm_attn_scaling": 1.0,
    "lm_use_tokens": False, "lm_tie_weights": True, "mp_pixel_shuffle_factor": 2,
}  # fmt: skip


def save_nanovlm(folder: Path, *, vocab_size: int, **settings: Any) -> Path:
    """Save a tiny checkpoint, its values as large as makes every effect seen."""
    values = {**SETTINGS, "lm_vocab_size": vocab_size, **settings}
    generator = torch.Generator().manual_seed(0)
    seen, said, inner = values["vit_hidden_dim"], values["lm_hidden_dim"], values["vit_inter_dim"]
    patch, side = values["vit_patch_size"], values["vit_img_size"]
    head = said // values["lm_n_heads"]
    shapes: dict[str, tuple[int, ...]] = {
        "vision_encoder.patch_embedding.conv.weight": (seen, 3, patch, patch),
        "vision_encoder.patch_embedding.conv.bias": (seen,),
        "vision_encoder.patch_embedding.position_embedding": (1, (side // patch) ** 2, seen),
        "MP.proj.weight": (said, seen * values["mp_pixel_shuffle_factor"] ** 2),
        "decoder.token_embedding.weight": (vocab_size, said),
    }
    for name in ("weight", "bias"):
        shapes[f"vision_encoder.layer_norm.{name}"] = (seen,)
    for number in range(values["vit_n_blocks"]):
        block = f"vision_encoder.blocks.{number}"
        linears = {"attn.qkv_proj": (3 * seen, seen), "attn.out_proj": (seen, seen), "mlp.fc1": (inner, seen)}
        for name, shape in {**linears, "mlp.fc2": (seen, inner)}.items():
            shapes[f"{block}.{name}.weight"], shapes[f"{block}.{name}.bias"] = shape, shape[:1]
        for norm in ("ln1", "ln2"):
            shapes[f"{block}.{norm}.weight"] = shapes[f"{block}.{norm}.bias"] = (seen,)
    wide, pairs = values["lm_inter_dim"], values["lm_n_kv_heads"] * head
    for number in range(values["lm_n_blocks"]):
        block = f"decoder.blocks.{number}"
        linears = {"attn.q_proj": (said, said), "attn.k_proj": (pairs, said), "attn.v_proj": (pairs, said)}
        linears |= {"attn.out_proj": (said, said), "mlp.gate_proj": (wide, said), "mlp.up_proj": (wide, said)}
        for name, shape in {**linears, "mlp.down_proj": (said, wide), "norm1": (said,), "norm2": (said,)}.items():
            shapes[f"{block}.{name}.weight"] = shape
    shapes["decoder.norm.weight"] = (said,)
    tensors = {
        name: torch.randn(shape, generator=generator) * (shape[-1] ** -0.5 if len(shape) > 1 else 0.2)
        + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        for name, shape in shapes.items()
    }
    frequencies = values["lm_re_base"] ** (-torch.arange(0, head, 2).float() / head)
    tensors["decoder.rotary_embd.inv_freq"] = frequencies
    if not values["lm_tie_weights"]:
        tensors["decoder.head.weight"] = torch.randn(vocab_size, said, generator=generator) * said**-0.5
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(values))
    return folder


class PlainNanoVlm:
    """A checkpoint, computed line by line."""

    def __init__(self, folder: Path) -> None:
        """Read it."""
        self.values = json.loads((folder / "config.json").read_text())
        self.tensors = load_file(folder / "model.safetensors")

    def logits(self, pixels: Tensor, *, before: list[int], behind: list[int]) -> Tensor:
        """Give logits [T, V] of text, one image [3, H, W], and text."""
        table = self.tensors["decoder.token_embedding.weight"]
        states = torch.cat([table[before], self.image(pixels), table[behind]])
        for number in range(self.values["lm_n_blocks"]):
            states = self.decoder_block(states, f"decoder.blocks.{number}")
        states = self.rms(states, "decoder.norm")
        return states @ (table if self.values["lm_tie_weights"] else self.tensors["decoder.head.weight"]).T

    def image(self, pixels: Tensor) -> Tensor:
        """Give image tokens: the encoder, squares of patches side by side in one, one matrix."""
        root, patch = "vision_encoder.", self.values["vit_patch_size"]
        conv = self.tensors[f"{root}patch_embedding.conv.weight"], self.tensors[f"{root}patch_embedding.conv.bias"]
        places = conv2d(pixels[None], *conv, stride=patch)[0]  # [D, h, w]
        states = places.flatten(1).T + self.tensors[f"{root}patch_embedding.position_embedding"][0]
        for number in range(self.values["vit_n_blocks"]):
            block = f"{root}blocks.{number}"
            states = states + self.vision_attention(self.norm(states, f"{block}.ln1"), f"{block}.attn")
            inner = gelu(self.linear(self.norm(states, f"{block}.ln2"), f"{block}.mlp.fc1"), approximate="tanh")
            states = states + self.linear(inner, f"{block}.mlp.fc2")
        states = self.norm(states, f"{root}layer_norm")
        side, factor = math.isqrt(len(states)), self.values["mp_pixel_shuffle_factor"]
        rows = []
        for top in range(0, side, factor):
            for left in range(0, side, factor):
                square = [(top + y) * side + left + x for y in range(factor) for x in range(factor)]
                rows.append(torch.cat([states[place] for place in square]))
        return torch.stack(rows) @ self.tensors["MP.proj.weight"].T

    def vision_attention(self, states: Tensor, name: str) -> Tensor:
        """Let every patch look at every patch."""
        heads = self.values["vit_n_heads"]
        query, key, value = self.linear(states, f"{name}.qkv_proj").chunk(3, dim=-1)
        parts = zip(*(each.chunk(heads, dim=-1) for each in (query, key, value)), strict=True)
        looked = [torch.softmax(q @ k.T / math.sqrt(q.shape[-1]), -1) @ v for q, k, v in parts]
        return self.linear(torch.cat(looked, -1), f"{name}.out_proj")

    def decoder_block(self, states: Tensor, name: str) -> Tensor:
        """Let every position look at itself and what is before it."""
        heads, shared = self.values["lm_n_heads"], self.values["lm_n_heads"] // self.values["lm_n_kv_heads"]
        normed = self.rms(states, f"{name}.norm1")
        query = [self.turn(q) for q in self.plain(normed, f"{name}.attn.q_proj").chunk(heads, -1)]
        key = [self.turn(k) for k in self.plain(normed, f"{name}.attn.k_proj").chunk(heads // shared, -1)]
        value = self.plain(normed, f"{name}.attn.v_proj").chunk(heads // shared, -1)
        later = torch.ones(len(states), len(states)).triu(1).bool()
        looked = []
        for head in range(heads):
            scores = query[head] @ key[head // shared].T / math.sqrt(query[head].shape[-1])
            looked.append(torch.softmax(scores.masked_fill(later, -math.inf), -1) @ value[head // shared])
        states = states + self.plain(torch.cat(looked, -1), f"{name}.attn.out_proj")
        normed = self.rms(states, f"{name}.norm2")
        inner = silu(self.plain(normed, f"{name}.mlp.gate_proj")) * self.plain(normed, f"{name}.mlp.up_proj")
        return states + self.plain(inner, f"{name}.mlp.down_proj")

    def turn(self, states: Tensor) -> Tensor:
        """Turn each pair (i, i + half) by the position times its frequency."""
        half = states.shape[-1] // 2
        frequency = self.values["lm_re_base"] ** (-torch.arange(half) / half)
        angle = torch.arange(len(states))[:, None] * frequency
        first, second = states[:, :half], states[:, half:]
        return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], -1)

    def plain(self, states: Tensor, name: str) -> Tensor:
        """Multiply."""
        return states @ self.tensors[f"{name}.weight"].T

    def linear(self, states: Tensor, name: str) -> Tensor:
        """Multiply and add."""
        return self.plain(states, name) + self.tensors[f"{name}.bias"]

    def norm(self, states: Tensor, name: str) -> Tensor:
        """Normalise by mean and deviation."""
        weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
        return layer_norm(states, weight.shape, weight, bias, self.values["vit_ln_eps"])

    def rms(self, states: Tensor, name: str) -> Tensor:
        """Normalise by the root of the mean square."""
        square = states.square().mean(-1, keepdim=True) + self.values["lm_rms_eps"]
        return states / square.sqrt() * self.tensors[f"{name}.weight"]
