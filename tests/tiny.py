"""Tiny random models and batches that every model test shares.

In: names. Out: modules whose weights are large enough for every effect to be seen, the same at every call.
Usage: `model = joined("llama", "clip"); out = model.loss(batch(SHARED_SAMPLES, layout="shared"))`
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

from visgraft.data.batch import Batch, EncodedSample, Layout, RowPlan, collate
from visgraft.data.prompt import EncodedDialog
from visgraft.model.sequence import SegmentTable
from visgraft.model.vlm import VisionLanguageModel

V = 96  # vocabulary
WINDOW = 4  # of the families that have one; shorter than an image and than a text
SIZES = {"vocab_size": V, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA_LIKE = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 64}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SOFT_CAPPING = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8}
VISION_SIZES = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SQUARE = {**VISION_SIZES, "image_size": 32, "patch_size": 16}

LANGUAGE_CONFIGS: dict[str, Callable[[], Any]] = {
    "opt": lambda: hf.OPTConfig(**SIZES, **TOKENS, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64),
    "opt_post_norm": lambda: hf.OPTConfig(  # as opt-350m: narrow embeddings, post-LN, no final norm
        **SIZES, **TOKENS, ffn_dim=48, word_embed_proj_dim=16, max_position_embeddings=64, do_layer_norm_before=False
    ),
    "llama": lambda: hf.LlamaConfig(**LLAMA_LIKE, **TOKENS),
    "mpt": lambda: hf.MptConfig(vocab_size=V, d_model=32, n_heads=4, n_layers=2, max_seq_len=64, expansion_ratio=2),
    "gpt_neox": lambda: hf.GPTNeoXConfig(**SIZES, **TOKENS, intermediate_size=48, max_position_embeddings=64),
    "gpt2": lambda: hf.GPT2Config(
        vocab_size=V, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2
    ),
    "qwen3": lambda: hf.Qwen3Config(**LLAMA_LIKE, **TOKENS, head_dim=8),
    "gemma3": lambda: hf.Gemma3TextConfig(
        **LLAMA_LIKE, **TOKENS, head_dim=8, sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"]
    ),
    "mistral": lambda: hf.MistralConfig(**LLAMA_LIKE, **TOKENS, sliding_window=WINDOW),
    "phi3": lambda: hf.Phi3Config(**LLAMA_LIKE, **TOKENS),
    "falcon": lambda: hf.FalconConfig(**SIZES, bos_token_id=1, eos_token_id=2, alibi=False),
    "falcon_alibi": lambda: hf.FalconConfig(**SIZES, bos_token_id=1, eos_token_id=2, alibi=True),
    "bloom": lambda: hf.BloomConfig(vocab_size=V, hidden_size=32, n_layer=2, n_head=4, **TOKENS),
    "olmo2": lambda: hf.Olmo2Config(**LLAMA_LIKE, **TOKENS),
    # Families whose logits are changed behind the head, or whose kernel is eager.
    "gemma2": lambda: hf.Gemma2Config(
        **LLAMA_LIKE, **TOKENS, head_dim=8, sliding_window=WINDOW, **SOFT_CAPPING, attn_implementation="eager"
    ),
    "cohere": lambda: hf.CohereConfig(**LLAMA_LIKE, **TOKENS, logit_scale=0.25),
    "granite": lambda: hf.GraniteConfig(**LLAMA_LIKE, **TOKENS, logits_scaling=4.0, embedding_multiplier=2.0),
    "gptj": lambda: hf.GPTJConfig(
        vocab_size=V, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=64, bos_token_id=1, eos_token_id=2
    ),
    "llama_eager": lambda: hf.LlamaConfig(**LLAMA_LIKE, **TOKENS, attn_implementation="eager"),
    "gpt2_eager": lambda: hf.GPT2Config(
        vocab_size=V, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2, attn_implementation="eager"
    ),
}
# Families with recurrent, linear or convolutional layers, whose states no mask governs.
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 4}
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
HYBRID_CONFIGS: dict[str, Callable[[], Any]] = {
    "qwen3_5": lambda: hf.Qwen3_5TextConfig(**LLAMA_LIKE, **TOKENS, **DELTA, head_dim=8),
    "qwen3_next": lambda: hf.Qwen3NextConfig(
        **LLAMA_LIKE, **TOKENS, **DELTA, **EXPERTS, head_dim=8, shared_expert_intermediate_size=24
    ),
    "lfm2": lambda: hf.Lfm2Config(**LLAMA_LIKE, **TOKENS, layer_types=["conv", "full_attention"], block_multiple_of=8),
    "granite_4_h": lambda: hf.GraniteMoeHybridConfig(
        **LLAMA_LIKE, **TOKENS, **MAMBA, layer_types=["linear_attention", "full_attention"], num_local_experts=4,
        num_experts_per_tok=2, shared_intermediate_size=24,
    ),
    "nemotron_h": lambda: hf.NemotronHConfig(
        **LLAMA_LIKE, **TOKENS, layers_block_type=["linear_attention", "moe", "full_attention", "mlp"], head_dim=8,
        mamba_num_heads=4, mamba_head_dim=16, n_groups=1, ssm_state_size=8, chunk_size=4, moe_intermediate_size=24,
        moe_shared_expert_intermediate_size=24, n_routed_experts=4, num_experts_per_tok=2,
    ),
    "falcon_h1": lambda: hf.FalconH1Config(**LLAMA_LIKE, **TOKENS, **MAMBA, mamba_d_ssm=64, head_dim=8),
    "bamba": lambda: hf.BambaConfig(**LLAMA_LIKE, **TOKENS, **MAMBA, attn_layer_indices=[1]),
    "olmo_hybrid": lambda: hf.OlmoHybridConfig(**LLAMA_LIKE, **TOKENS, **DELTA),
    "jamba": lambda: hf.JambaConfig(
        **LLAMA_LIKE, **TOKENS, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1,
        num_experts=2, mamba_d_state=8, mamba_dt_rank=4, use_mamba_kernels=False,
    ),
    "mamba2": lambda: hf.Mamba2Config(
        vocab_size=V, hidden_size=32, num_hidden_layers=2, num_heads=4, head_dim=16, state_size=8, n_groups=1,
        chunk_size=4, **TOKENS,
    ),
    "rwkv": lambda: hf.RwkvConfig(
        vocab_size=V, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32, intermediate_size=48,
        bos_token_id=1, eos_token_id=2,
    ),
}  # fmt: skip
HYBRIDS = list(HYBRID_CONFIGS)
BY_STATE = [name for name in HYBRIDS if name not in ("jamba", "rwkv")]

# The families that every invariant is proven on, each behind CLIP.
LANGUAGES = list(LANGUAGE_CONFIGS)[:14]
ALIBI = ["mpt", "bloom", "falcon_alibi"]
WINDOWED = ["gemma3", "mistral", "gemma2"]
OTHER_KERNELS = ["gemma2", "gptj", "llama_eager", "gpt2_eager"]

VISION_CONFIGS: dict[str, Callable[[], Any]] = {
    "clip": lambda: hf.CLIPVisionConfig(**SQUARE),
    "siglip": lambda: hf.SiglipVisionConfig(**SQUARE),
    "dinov2": lambda: hf.Dinov2Config(**{**SQUARE, "image_size": 28, "patch_size": 14}, mlp_ratio=2),
    "vit": lambda: hf.ViTConfig(**SQUARE),
    "efficientnet": lambda: hf.EfficientNetConfig(
        image_size=64,
        width_coefficient=0.25,
        depth_coefficient=1.0,
        hidden_dim=320,
        kernel_sizes=[3, 5, 3, 3],
        in_channels=[32, 32, 32, 64],
        out_channels=[32, 32, 64, 80],
        strides=[2, 2, 2, 2],
        expand_ratios=[1, 4, 4, 4],
        num_block_repeats=[1, 2, 1, 1],
        depthwise_padding=[],
        drop_connect_rate=0.0,
    ),
    "convnext": lambda: hf.ConvNextConfig(
        hidden_sizes=[8, 8, 16, 24], depths=[1, 1, 1, 1], image_size=64, layer_scale_init_value=0.5
    ),
    "beit": lambda: hf.BeitConfig(**SQUARE, use_relative_position_bias=True, use_mask_token=True),
    "resnet": lambda: hf.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 24], depths=[1, 1, 1, 1], layer_type="basic"
    ),
    "swin": lambda: hf.SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[2, 1, 1], num_heads=[1, 2, 4], window_size=2
    ),
}
VISIONS = list(VISION_CONFIGS)
IMAGE_SIDE = {"dinov2": 28, "efficientnet": 64, "convnext": 64, "resnet": 64}  # the others: 32
NUM_TOKENS = {"clip": 5, "siglip": 4, "dinov2": 5, "vit": 5, "beit": 5, "swin": 4}  # maps and Swin: 2 x 2
P = NUM_TOKENS["clip"]


def randomise(module: nn.Module, *, seed: int) -> nn.Module:
    """Give every parameter a random value at which no effect vanishes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim < 2 or not parameter.numel():  # about where it starts: 1, or 0
                parameter.add_(0.2 * noise)
            elif "embed" in name:
                parameter.copy_(0.3 * noise)
            else:
                parameter.copy_(noise * parameter[0].numel() ** -0.5 * 1.2)
    return module


def bare_language(name: str, **overrides: Any) -> Any:
    """Make the causal LM alone, in eval mode; the same weights at every call."""
    config = {**LANGUAGE_CONFIGS, **HYBRID_CONFIGS}[name]()
    for key, value in overrides.items():
        setattr(config, key, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = hf.AutoModelForCausalLM.from_config(config)
    randomise(model, seed=zlib.crc32(name.encode()))
    return model.eval()


def bare_vision(name: str) -> Any:
    """Make the encoder alone, in eval mode; the same weights at every call."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = randomise(hf.AutoModel.from_config(VISION_CONFIGS[name]()), seed=zlib.crc32(name.encode()))
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:  # running statistics of other activations would let an image fade away layer by layer
            norm.momentum = 1.0
        if norms:
            model.train()(random_pixels(8, vision=name))
        for norm in norms:
            norm.momentum = 0.1
    return model.eval()


def fresh(language: str = "llama", vision: str = "clip", **settings: Any) -> VisionLanguageModel:
    """Join an LM and an encoder anew; the caller may do with it what it likes."""
    overrides = {key: settings.pop(key) for key in list(settings) if key in ("max_position_embeddings",)}
    model = VisionLanguageModel.from_parts(bare_vision(vision), bare_language(language, **overrides), **settings)
    randomise(model.projection, seed=3)
    return model


@functools.cache
def joined(language: str = "llama", vision: str = "clip", **settings: Any) -> VisionLanguageModel:
    """Join an LM and an encoder once for all tests, which must leave it as it is."""
    return fresh(language, vision, **settings)


@functools.cache
def bare(language: str) -> Any:
    """Give the causal LM that no quirk has touched, once for all tests."""
    return bare_language(language)


def random_ids(*shape: int, seed: int = 0) -> Tensor:
    """Make token ids that are no special tokens."""
    return torch.randint(3, V, shape, generator=torch.Generator().manual_seed(seed))


def random_pixels(*leading: int, vision: str = "clip", seed: int = 0) -> Tensor:
    """Make pixels [..., 3, H, W] of an encoder's own size."""
    side = IMAGE_SIDE.get(vision, 32)
    return torch.randn(*leading, 3, side, side, generator=torch.Generator().manual_seed(seed))


def dialog(length: int, *, prompt: int = 2, seed: int = 0) -> EncodedDialog:
    """Make a dialog of random ids, all supervised behind its prompt."""
    ids = tuple(random_ids(length, seed=seed).tolist())
    return EncodedDialog(ids, tuple(index >= prompt for index in range(length)), 3 * (length - prompt), False)


def sample(*lengths: int, images: int = 1, vision: str = "clip", num_tokens: int | None = None) -> EncodedSample:
    """Make a sample with dialogs of these lengths; like arguments give a like sample, others other ids and pixels."""
    seed = zlib.crc32(str((lengths, images)).encode()) % 2**31
    count = NUM_TOKENS.get(vision, 4) if num_tokens is None else num_tokens
    pixels = {"pixel_values": random_pixels(images, vision=vision, seed=seed)} if images else {}
    dialogs = tuple(dialog(length, prompt=1 + index % 2, seed=seed + index) for index, length in enumerate(lengths))
    return EncodedSample(dialogs, pixels, (count,) * images, id=str((lengths, images)))


def dialog_of(*pieces: tuple[int, int]) -> EncodedDialog:
    """Make a dialog of pieces (seed, length): a prompt and an answer by turns."""
    ids, supervised = [], []
    for index, (seed, length) in enumerate(pieces):
        ids += random_ids(length, seed=seed).tolist()
        supervised += [index % 2 == 1] * length
    return EncodedDialog(tuple(ids), tuple(supervised), 3 * sum(supervised), False)


def tree(images: int = 1) -> EncodedSample:
    """Make a sample whose dialogs share a turn, or a turn and a question, or nothing; one is the turn alone."""
    turn = [(1, 6), (2, 4)]
    dialogs = (
        dialog_of(*turn, (3, 9), (4, 3)),
        dialog_of((5, 3), (6, 4)),
        dialog_of(*turn, (3, 9), (7, 2)),
        dialog_of(*turn),
        dialog_of(*turn, (8, 2), (9, 3)),
    )
    return replace(sample(4, images=images), dialogs=dialogs, id=f"tree {images}")


def samples(vision: str = "clip", *, images: Sequence[int] = (1, 1, 0)) -> list[EncodedSample]:
    """Make three samples with 3, 1 and 2 dialogs."""
    lengths = ((6, 3, 5), (4,), (5, 7))
    return [sample(*own, images=count, vision=vision) for own, count in zip(lengths, images, strict=True)]


def batch(of: Sequence[EncodedSample], *, layout: Layout = "shared", rows: RowPlan | None = None) -> Batch:
    """Collate with pad id 0, which is an ordinary token id of these models."""
    return collate(of, layout=layout, pad_token_id=0, rows=rows)


def table_logits(model: VisionLanguageModel, embeds: Tensor, table: SegmentTable) -> Tensor:
    """Give the logits [B, S, V] of one forward over a whole table, no cache anywhere."""
    positions = model.prefix_injection.positions(table)
    arguments = model.attention_spec.arguments(table, dtype=embeds.dtype, positions=positions)
    logits: Tensor = model.language(inputs_embeds=embeds, use_cache=False, **arguments).logits
    return logits


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Give d loss / d parameter of everything that has one."""
    model.zero_grad(set_to_none=True)
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return grads


def assert_same_gradients(first: dict[str, Tensor], second: dict[str, Tensor], *, tolerance: float = 1e-5) -> None:
    """Compare every tensor, relative to its own largest entry or to one."""
    assert first.keys() == second.keys()
    assert first
    for name, grad in first.items():
        error = float((grad - second[name]).abs().max())
        assert error <= tolerance * max(1.0, float(grad.abs().max())), f"{name}: {error}"


def assert_close(first: Tensor, second: Tensor, *, tolerance: float = 1e-5) -> None:
    """Compare relative to the largest entry or to one."""
    assert first.shape == second.shape
    if first.numel():
        first, second = first.detach(), second.detach()
        error = float((first - second).abs().max())
        assert error <= tolerance * max(1.0, float(second.abs().max())), error
