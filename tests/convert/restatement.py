"""What GIT-LLM and heron compute, restated in plain torch from tensors; imports neither transformers nor visgraft.

In: a checkpoint's config values, its state dict with plain names (LoRA included), ids and pixels. Out: logits of every
position, the loss and greedy tokens by repeated full forward: an independent way to every number of an import.
Usage: `logits = forward(values, state, ids, pixels=pixels, mask=mask)`
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

State = Mapping[str, Tensor]
ROOTS = {
    "git_opt": "model.",
    "git_llama": "model.",
    "git_mpt": "transformer.",
    "git_gpt_neox": "gpt_neox.",
    "git_japanese_stablelm_alpha": "transformer.",
}
CAUSAL_IMAGE = ("git_gpt_neox", "git_japanese_stablelm_alpha")


def linear(state: State, name: str, x: Tensor, *, scaling: float = 4.0) -> Tensor:
    """y = W x (+ b) (+ scaling B A x)."""
    y = F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))
    down, up = (state.get(f"{name}.lora_{side}.default.weight") for side in "AB")
    return y if down is None or up is None else y + scaling * (x @ down.T @ up.T)


def norm(state: State, name: str, x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state.get(f"{name}.weight"), state.get(f"{name}.bias"), eps)


def attention(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, *, heads: int, bias: Tensor | None = None) -> Tensor:
    """q, k, v [B, S, H * d]; allowed [B, S, S]; bias [H, S] by key."""
    q, k, v = (t.unflatten(-1, (-1, q.shape[-1] // heads)).transpose(1, 2) for t in (q, k, v))
    k, v = (t.repeat_interleave(heads // t.shape[1], 1) for t in (k, v))
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias[None, :, None]
    weights = scores.masked_fill(~allowed[:, None], torch.finfo(scores.dtype).min).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def clip(state: State, root: str, pixels: Tensor, *, heads: int, scaling: float) -> Tensor:
    """[N, 3, H, W] -> [N, P, D], every token, before post_layernorm."""
    root += "image_encoder.vision_model."
    kernel = state[f"{root}embeddings.patch_embedding.weight"]
    patches = F.conv2d(pixels, kernel, stride=kernel.shape[-1]).flatten(2).transpose(1, 2)
    first = state[f"{root}embeddings.class_embedding"].expand(pixels.shape[0], 1, -1)
    x = torch.cat([first, patches], 1) + state[f"{root}embeddings.position_embedding.weight"]
    x = norm(state, f"{root}pre_layrnorm", x, 1e-5)
    everything = torch.ones(x.shape[0], x.shape[1], x.shape[1], dtype=torch.bool)
    for layer in layers(state, f"{root}encoder.layers."):
        h = norm(state, f"{layer}layer_norm1", x, 1e-5)
        q, k, v = (linear(state, f"{layer}self_attn.{n}_proj", h, scaling=scaling) for n in "qkv")
        mixed = attention(q, k, v, everything, heads=heads)
        x = x + linear(state, f"{layer}self_attn.out_proj", mixed, scaling=scaling)
        h = linear(state, f"{layer}mlp.fc1", norm(state, f"{layer}layer_norm2", x, 1e-5))
        x = x + linear(state, f"{layer}mlp.fc2", h * torch.sigmoid(1.702 * h))
    return x


def image_prefix(values: Mapping[str, Any], state: State, pixels: Tensor, *, scaling: float) -> Tensor:
    root = ROOTS[values["model_type"]]
    heads = values["vision_config"]["num_attention_heads"]
    if pixels.ndim == 4:
        features = clip(state, root, pixels, heads=heads, scaling=scaling)
    else:
        frames = [
            clip(state, root, pixels[:, f], heads=heads, scaling=scaling) + state[f"{root}img_temporal_embedding.{f}"]
            for f in range(pixels.shape[1])
        ]
        features = torch.cat(frames, 1)
    root += "visual_projection.visual_projection."
    return norm(state, f"{root}1", linear(state, f"{root}0", features), 1e-5)


def attend_allowed(num_image: int, mask: Tensor, *, causal_image: bool) -> Tensor:
    """[B, T] text mask -> [B, S, S]: who may see whom."""
    batch, num_text = mask.shape
    size = num_image + num_text
    allowed = torch.zeros(batch, size, size, dtype=torch.bool)
    allowed[:, :, :num_image] = True
    allowed[:, num_image:, num_image:] = torch.ones(num_text, num_text).tril().bool() & mask.bool()[:, None]
    if causal_image:
        allowed &= torch.ones(size, size).tril().bool()
    if num_image == 0:  # a row that sees nothing is of no account, but must not be NaN
        allowed |= torch.eye(size, dtype=torch.bool) & ~allowed.any(-1, keepdim=True)
    return allowed


def layers(state: State, prefix: str) -> list[str]:
    return [
        f"{prefix}{i}." for i in sorted({int(k[len(prefix) :].split(".")[0]) for k in state if k.startswith(prefix)})
    ]


def rotary(x: Tensor, *, heads: int, size: int, power: float = 0.0, middle: int = 0) -> Tensor:
    """Rotate the first `size` channels of each head of [B, S, H * d]; xPos scales by s^(power * p)."""
    x = x.unflatten(-1, (-1, x.shape[-1] // heads)) if heads else x
    place = torch.arange(x.shape[1], dtype=torch.float32)[:, None]
    channel = torch.arange(size // 2, dtype=torch.float32)
    angle = place * 10000 ** (-2 * channel / size)
    scale = ((2 * channel + 0.4 * size) / (1.4 * size)) ** (power * (place - middle) / 512)
    cos, sin = (torch.cat([t * scale] * 2, -1)[None, :, None] for t in (angle.cos(), angle.sin()))
    turned = x[..., :size]
    swapped = torch.cat([-turned[..., size // 2 :], turned[..., : size // 2]], -1)
    return torch.cat([turned * cos + swapped * sin, x[..., size:]], -1).flatten(2)


def forward(
    values: Mapping[str, Any],
    state: State,
    ids: Tensor,
    *,
    pixels: Tensor | None = None,
    mask: Tensor | None = None,
    causal_image: bool | None = None,
    scaling: float = 4.0,
) -> Tensor:
    """Give logits [B, P + T, V]."""
    model_type = values["model_type"]
    mask = torch.ones_like(ids) if mask is None else mask
    prefix = None if pixels is None else image_prefix(values, state, pixels, scaling=scaling)
    causal_image = model_type in CAUSAL_IMAGE if causal_image is None else causal_image
    allowed = attend_allowed(0 if prefix is None else prefix.shape[1], mask, causal_image=causal_image)
    return ARCHITECTURES[model_type](values, state, ids, prefix, allowed, mask, scaling)


def with_prefix(prefix: Tensor | None, text: Tensor) -> Tensor:
    return text if prefix is None else torch.cat([prefix, text], 1)


def opt(v: Any, s: State, ids: Tensor, prefix: Tensor | None, allowed: Tensor, mask: Tensor, scaling: float) -> Tensor:
    root, heads, pre = "model.decoder.", v["num_attention_heads"], v["do_layer_norm_before"]
    x = F.embedding(ids, s[f"{root}embed_tokens.weight"])
    if f"{root}project_in.weight" in s:
        x = linear(s, f"{root}project_in", x)
    x = with_prefix(prefix, x + F.embedding(mask.cumsum(1) * mask + 1, s["model.embed_positions.weight"]))
    for layer in layers(s, f"{root}layers."):
        h = norm(s, f"{layer}self_attn_layer_norm", x, 1e-5) if pre else x
        q, k, w = (linear(s, f"{layer}self_attn.{n}_proj", h, scaling=scaling) for n in "qkv")
        x = x + linear(s, f"{layer}self_attn.out_proj", attention(q, k, w, allowed, heads=heads), scaling=scaling)
        x = x if pre else norm(s, f"{layer}self_attn_layer_norm", x, 1e-5)
        h = norm(s, f"{layer}final_layer_norm", x, 1e-5) if pre else x
        x = x + linear(s, f"{layer}fc2", linear(s, f"{layer}fc1", h).relu())
        x = x if pre else norm(s, f"{layer}final_layer_norm", x, 1e-5)
    x = norm(s, f"{root}final_layer_norm", x, 1e-5) if pre else x
    if f"{root}project_out.weight" in s:
        x = linear(s, f"{root}project_out", x)
    return x @ s[f"{root}embed_tokens.weight"].T


def llama(v: Any, s: State, ids: Tensor, prefix: Tensor | None, allowed: Tensor, _: Tensor, scaling: float) -> Tensor:
    heads = v["num_attention_heads"]

    def rms(name: str, x: Tensor) -> Tensor:
        return x * (x.pow(2).mean(-1, keepdim=True) + v["rms_norm_eps"]).rsqrt() * s[f"{name}.weight"]

    x = with_prefix(prefix, F.embedding(ids, s["model.embed_tokens.weight"]))
    size = x.shape[-1] // heads
    for layer in layers(s, "model.layers."):
        h = rms(f"{layer}input_layernorm", x)
        q, k, w = (linear(s, f"{layer}self_attn.{n}_proj", h, scaling=scaling) for n in "qkv")
        q, k = rotary(q, heads=heads, size=size), rotary(k, heads=k.shape[-1] // size, size=size)
        mixed = attention(q, k, w, allowed, heads=heads)
        x = x + linear(s, f"{layer}self_attn.o_proj", mixed, scaling=scaling)
        h = rms(f"{layer}post_attention_layernorm", x)
        gate, up = linear(s, f"{layer}mlp.gate_proj", h), linear(s, f"{layer}mlp.up_proj", h)
        x = x + linear(s, f"{layer}mlp.down_proj", F.silu(gate) * up)
    return linear(s, "lm_head", rms("model.norm", x))


def mpt(v: Any, s: State, ids: Tensor, prefix: Tensor | None, allowed: Tensor, _: Tensor, scaling: float) -> Tensor:
    heads = v["n_heads"]
    x = with_prefix(prefix, F.embedding(ids, s["transformer.wte.weight"]))
    slope = torch.tensor([2 ** (-8 * (h + 1) / heads) for h in range(heads)])
    bias = slope[:, None] * (torch.arange(x.shape[1]) - (x.shape[1] - 1))
    for layer in layers(s, "transformer.blocks."):
        qkv = linear(s, f"{layer}attn.Wqkv", norm(s, f"{layer}norm_1", x, 1e-5), scaling=scaling)
        mixed = attention(*qkv.chunk(3, -1), allowed, heads=heads, bias=bias)
        x = x + linear(s, f"{layer}attn.out_proj", mixed, scaling=scaling)
        h = linear(s, f"{layer}ffn.up_proj", norm(s, f"{layer}norm_2", x, 1e-5))
        x = x + linear(s, f"{layer}ffn.down_proj", F.gelu(h))
    return norm(s, "transformer.norm_f", x, 1e-5) @ s["transformer.wte.weight"].T


def neox(v: Any, s: State, ids: Tensor, prefix: Tensor | None, allowed: Tensor, _: Tensor, scaling: float) -> Tensor:
    root, heads = ROOTS[v["model_type"]], v["num_attention_heads"]
    is_japanese = v["model_type"] == "git_japanese_stablelm_alpha"
    x = with_prefix(prefix, F.embedding(ids, s[f"{root}embed_in.weight"]))
    size = int(x.shape[-1] // heads * v["rotary_pct"])
    middle = v["max_position_embeddings"] // 2

    def attend(layer: str, h: Tensor) -> Tensor:
        qkv = linear(s, f"{layer}attention.query_key_value", h, scaling=scaling).unflatten(-1, (heads, -1))
        q, k, w = (t.flatten(2) for t in qkv.chunk(3, -1))
        q = rotary(q, heads=heads, size=size, power=float(is_japanese), middle=middle)
        k = rotary(k, heads=heads, size=size, power=-float(is_japanese), middle=middle)
        return linear(s, f"{layer}attention.dense", attention(q, k, w, allowed, heads=heads), scaling=scaling)

    def mlp(layer: str, h: Tensor) -> Tensor:
        if is_japanese:
            value, gate = linear(s, f"{layer}mlp.packed_input_proj", h).chunk(2, -1)
            return linear(s, f"{layer}mlp.out_proj", value * F.silu(gate))
        return linear(s, f"{layer}mlp.dense_4h_to_h", F.gelu(linear(s, f"{layer}mlp.dense_h_to_4h", h)))

    for layer in layers(s, f"{root}layers."):
        attended = attend(layer, norm(s, f"{layer}input_layernorm", x, 1e-5))
        if v.get("use_parallel_residual", True):
            x = x + attended + mlp(layer, norm(s, f"{layer}post_attention_layernorm", x, 1e-5))
        else:
            x = x + attended
            x = x + mlp(layer, norm(s, f"{layer}post_attention_layernorm", x, 1e-5))
    return linear(s, "embed_out", norm(s, f"{root}final_layer_norm", x, 1e-5))


ARCHITECTURES: dict[str, Callable[..., Tensor]] = {
    "git_opt": opt,
    "git_llama": llama,
    "git_mpt": mpt,
    "git_gpt_neox": neox,
    "git_japanese_stablelm_alpha": neox,
}


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    """CE(logits[:, P:-1], labels[:, 1:]), mean over those that are not -100."""
    predicted = logits[:, -labels.shape[1] : -1]
    return F.cross_entropy(predicted.flatten(0, 1), labels[:, 1:].flatten())


def greedy(values: Mapping[str, Any], state: State, ids: Tensor, pixels: Tensor, *, steps: int, **how: Any) -> Tensor:
    """Give the tokens [B, steps] of repeated full forwards."""
    start = ids.shape[1]
    for _ in range(steps):
        logits = forward(values, state, ids, pixels=pixels, **how)[:, -1]
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
    return ids[:, start:]
