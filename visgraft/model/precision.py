"""The device and the number format that a model computes in.

In: what a recipe or a user asks for. Out: a device that is there, and the format that its hardware has.

    device = pick_device(None)
    dtype = computing_dtype("auto", device=device)      # None: float32
    embeds = float32_under_autocast(embeds)             # so that it is float32 between the layers
"""

from __future__ import annotations

import os
import platform
from typing import Literal

import torch
from torch import Tensor, nn

from visgraft.errors import ConfigError

Precision = Literal["auto", "bf16", "fp16", "fp32"]
DTYPES: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}

# oneDNN and torch's layer above it keep a kernel, about 1 MB, for each shape of a bf16 matrix product that they meet,
# up to 1,024 each; every batch has shapes of its own. Both are read when the first kernel is made (`bench/memory.py`).
KERNEL_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
KEPT_KERNELS = 64


def pick_device(name: str | torch.device | None) -> torch.device:
    """Return the device of that name; None is the accelerator that is there (cuda, mps, xpu), else the CPU.

    Raises:
        ConfigError: no such device here.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name is None:
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        here = "cpu" if accelerator is None else f"cpu and {accelerator.type}"
        raise ConfigError(
            f"device: got {name}, which this machine and this torch do not have; here are {here}"
        ) from error
    return device


def computing_dtype(precision: Precision, *, device: torch.device) -> torch.dtype | None:
    """Return the format that frozen weights are kept in and autocast computes in; None is float32 throughout.

    `auto` is bf16 where the hardware computes in it, else fp16 on a GPU, else float32. On a CPU bf16 bounds the caches
    of kernels, as far as nothing was computed with them yet.

    Raises:
        ConfigError: fp16 away from a GPU.
    """
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError("precision: got fp16, which needs a GPU; allowed here are auto, bf16 and fp32")
    dtype = DTYPES[precision] if precision != "auto" else _quickest_dtype(device)
    if dtype == torch.bfloat16 and device.type == "cpu":
        for name in KERNEL_CACHES:
            os.environ.setdefault(name, str(KEPT_KERNELS))
    return dtype


def _quickest_dtype(device: torch.device) -> torch.dtype | None:
    if has_bf16(device):
        return torch.bfloat16
    return None if device.type in ("cpu", "mps") else torch.float16


def has_bf16(device: torch.device) -> bool:
    """Say whether the hardware itself computes in bfloat16; where it only pretends to, float32 is faster."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "mps":
        return torch.backends.mps.is_macos_or_newer(14, 0)
    if device.type != "cpu":
        return True
    if platform.machine().lower() in ("x86_64", "amd64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) if torch.backends.mkldnn.is_available() else False


def float32_under_autocast(embeds: Tensor) -> Tensor:
    """Give what enters the language model in float32 under autocast, and as it is elsewhere.

    What the layers add up to (the residual stream) then stays in float32 behind bf16 weights, as it does behind float32
    ones; rounded to bf16 at every layer, training has spikes.
    """
    return embeds.float() if torch.is_autocast_enabled(embeds.device.type) else embeds


def let_layer_norms_take_float32(language: nn.Module) -> None:
    """Let LayerNorms behave under the CPU's autocast as they do under CUDA's: float32 in, float32 out.

    The CPU's kernel refuses float32 states behind narrow weights.
    """
    for module in language.modules():
        if isinstance(module, nn.LayerNorm):
            module.register_forward_pre_hook(_narrow_states)
            module.register_forward_hook(_widen_states)


def _narrow_states(norm: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    weight = norm.weight
    if not isinstance(weight, Tensor) or given[0].device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return None
    return (given[0].to(weight.dtype), *given[1:])


def _widen_states(norm: nn.Module, given: tuple[Tensor, ...], result: Tensor) -> Tensor | None:
    is_narrow = given[0].device.type == "cpu" and result.dtype != torch.float32
    return result.float() if is_narrow and torch.is_autocast_enabled("cpu") else None
