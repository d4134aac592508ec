"""The GPUs that a recipe may be meant for: their memory and their rate.

In: what the user calls a GPU, or an amount of memory. Out: a `Gpu`.

    find_gpu("rtx4090"), find_gpu("24GB"), local_gpu()

Memory is what the driver leaves to programs (a few per cent below the name on the box); the rate is dense arithmetic in
bf16 (fp16 where the GPU has no bf16) with fp32 sums, in TFLOP/s; links are those to the other GPUs of a machine, in
10^9 bytes a second and direction (half of what is given for both: NVLink of SXM cards, PCIe of all others). Rates and
links are those of the makers' data sheets.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass, replace
from difflib import get_close_matches

import torch

from visgraft.errors import ConfigError
from visgraft.model.precision import computing_dtype, pick_device

GIB = 2**30
LEFT_TO_PROGRAMS = 0.98  # of a bare amount of memory


@dataclass(frozen=True)
class Gpu:
    """Where a recipe may run.

    Attributes:
        name: as it is shown.
        memory_bytes: what programs can have.
        tflops: dense, in the format that it trains in; None where only the memory is known.
        dtype: what `precision: auto` means there; None is float32.
        is_gpu: False for the computer itself.
        link_gb_s: 10^9 bytes a second that it sends to the other GPUs of its machine; None where only memory is known.
    """

    name: str
    memory_bytes: int
    tflops: float | None = None
    dtype: torch.dtype | None = torch.bfloat16
    is_gpu: bool = True
    link_gb_s: float | None = None


# key -> (name, GiB, TFLOP/s, has bf16, GB/s to the others)
_TABLE: dict[str, tuple[str, float, float, bool, float]] = {
    "t4": ("T4", 14.6, 65, False, 16),
    "v100-16gb": ("V100 16 GB", 15.8, 112, False, 150),
    "v100-32gb": ("V100 32 GB", 31.7, 112, False, 150),
    "rtx3060": ("RTX 3060 12 GB", 11.7, 25, True, 32),
    "rtx3090": ("RTX 3090", 23.6, 71, True, 32),
    "rtx4070": ("RTX 4070", 11.7, 58, True, 32),
    "rtx4080": ("RTX 4080", 15.7, 97, True, 32),
    "rtx4090": ("RTX 4090", 23.5, 165, True, 32),
    "rtx5090": ("RTX 5090", 31.3, 210, True, 64),
    "a10": ("A10", 22.0, 125, True, 32),
    "l4": ("L4", 22.0, 121, True, 32),
    "l40s": ("L40S", 44.3, 362, True, 32),
    "a6000": ("RTX A6000", 47.4, 155, True, 32),
    "a100-40gb": ("A100 40 GB", 39.4, 312, True, 300),
    "a100-80gb": ("A100 80 GB", 79.1, 312, True, 300),
    "h100": ("H100 80 GB", 79.1, 989, True, 450),
    "h200": ("H200", 139.7, 989, True, 450),
    "b200": ("B200", 178.0, 2250, True, 900),
}
GPUS = {
    key: Gpu(name, round(memory * GIB), tflops, torch.bfloat16 if has_bf16 else torch.float16, link_gb_s=link)
    for key, (name, memory, tflops, has_bf16, link) in _TABLE.items()
}
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*gi?b?", re.IGNORECASE)


def find_gpu(text: str) -> Gpu:
    """Find a GPU by its name (`rtx4090`, `A100-80GB`) or by its memory (`24GB`).

    Raises:
        ConfigError: neither.
    """
    amount = _AMOUNT.fullmatch(text.strip())
    if amount:
        memory = float(amount[1])
        if memory <= 0:
            raise ConfigError(f"--gpu: got {text!r}, need memory above 0, such as 24GB")
        return Gpu(f"a GPU of {memory:g} GB", round(memory * LEFT_TO_PROGRAMS * GIB))
    plain = {_plain(key): gpu for key, gpu in GPUS.items()}
    if _plain(text) in plain:
        return plain[_plain(text)]
    started = sorted(key for key in GPUS if _plain(key).startswith(_plain(text)) and _plain(text))
    near = started or get_close_matches(text.lower(), GPUS, n=1)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise ConfigError(f"--gpu: got {text!r}; {hint}give its memory, such as 24GB, or one of {', '.join(GPUS)}")


def local_gpu() -> Gpu:
    """Describe what this machine trains on: its GPU, or the computer itself."""
    device = pick_device(None)
    dtype = computing_dtype("auto", device=device)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        known = [gpu for key, gpu in GPUS.items() if _plain(key.partition("-")[0]) in _plain(properties.name)]
        here = Gpu(properties.name, int(properties.total_memory), dtype=dtype)
        return replace(here, tflops=known[0].tflops, link_gb_s=known[0].link_gb_s) if known else here
    return replace(this_computer(), tflops=matrix_rate(dtype or torch.float32, device=device), dtype=dtype)


def matrix_rate(dtype: torch.dtype, *, device: torch.device, size: int = 1024) -> float:
    """Measure how fast this machine multiplies matrices, in TFLOP/s: the best of a few products, in a blink."""
    left = torch.ones(size, size, dtype=dtype, device=device)
    seconds = []
    for _ in range(4):  # the first is a warm-up
        start = time.perf_counter()
        (left @ left).sum().item()
        seconds.append(time.perf_counter() - start)
    return round(2 * size**3 / min(seconds) / 1e12, 3)


def this_computer() -> Gpu:
    """Describe this machine without its GPU."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    dtype = computing_dtype("auto", device=torch.device("cpu"))
    return Gpu("this computer", memory, dtype=dtype, is_gpu=False)


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())
