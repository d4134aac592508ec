"""Which attention kernel the language part computes with, chosen by device in this one place.

In: a joined model and its device. Out: the kernel set in the language model's config, where the model's `AttentionSpec`
reads at every call which kind of mask to give it.

    set_attention(model, choose_attention(model.language, device=device, asked=recipe.model.attention))
    with dense_attention(model):                 # generation: a few queries at a time, over a cache
        ids = model.generate(...)

On a GPU FlexAttention takes block masks, so that long rows filled with many samples cost what their samples cost, and
no S x S mask is ever made. On a CPU it has no backward pass; there the plain kernel (eager) is quicker than the fused
one (sdpa) on rows as short as training fills them (bench/rows.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedModel

from visgraft.errors import ConfigError
from visgraft.model.hf_logging import quiet_transformers
from visgraft.model.joined import JoinedModel
from visgraft.model.language import QUIRKS

FLEX = "flex_attention"
MIN_HEAD_DIM = 16  # of FlexAttention's GPU kernel
DROPOUTS = ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob")


def choose_attention(language: PreTrainedModel, *, device: torch.device, asked: str | None = None) -> str | None:
    """Choose the kernel for whole rows of training; None = what the language model chose itself.

    Raises:
        ConfigError: FlexAttention is asked for on a device on which it cannot train.
    """
    config = language.config.get_text_config(decoder=True)
    if asked == FLEX and device.type != "cuda":
        raise ConfigError(
            f"model.attention: got {FLEX}, which has no backward pass on this device ({device.type}); allowed here are "
            "sdpa and eager, or null: chosen by device"
        )
    quirk = QUIRKS.get(config.model_type)
    is_set = config._attn_implementation != "sdpa" or (quirk is not None and quirk.applies(config))
    if asked is not None or is_set:
        return asked
    if device.type == "cuda":
        return FLEX if _takes_blocks(language, config) else None
    return "eager" if device.type == "cpu" else None


def set_attention(model: JoinedModel, kernel: str | None) -> None:
    """Let the language part compute with a kernel; None leaves it as it is.

    Raises:
        ConfigError: the language model lacks the kernel.
    """
    config = model.language.config.get_text_config(decoder=True)
    if kernel is None or kernel == config._attn_implementation:
        return
    try:
        model.language.set_attn_implementation(kernel)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"model.attention: got {kernel}, which {config.model_type} lacks: {error}") from error


@contextlib.contextmanager
def dense_attention(model: JoinedModel) -> Iterator[None]:
    """Compute with dense masks while the context lasts: what decoding with a cache needs."""
    kernel = model.language.config.get_text_config(decoder=True)._attn_implementation
    set_attention(model, "sdpa" if kernel == FLEX else None)
    try:
        yield
    finally:
        set_attention(model, kernel)


@contextlib.contextmanager
def showing_attention(model: JoinedModel) -> Iterator[None]:
    """Compute with the plain kernel while the context lasts, the only one that has attention weights to show.

    Raises:
        ConfigError: the language model lacks it.
    """
    config = model.language.config.get_text_config(decoder=True)
    kernel = config._attn_implementation
    _switch_kernel(model, config, "eager")
    try:
        yield
    finally:
        _switch_kernel(model, config, kernel)


def _switch_kernel(model: JoinedModel, config: Any, kernel: str | None) -> None:
    """Set a kernel; families that the library cannot switch (Falcon) read their config at every call."""
    with quiet_transformers():
        set_attention(model, kernel)
    if config._attn_implementation != kernel:
        config._attn_implementation = kernel


def _takes_blocks(language: PreTrainedModel, config: Any) -> bool:
    heads = getattr(config, "num_attention_heads", 1)
    head_dim = getattr(config, "head_dim", None) or getattr(config, "hidden_size", 0) // heads
    has_dropout = any((getattr(config, name, None) or 0.0) > 0 for name in DROPOUTS)
    return bool(language._supports_flex_attn) and head_dim >= MIN_HEAD_DIM and not has_dropout
