"""Whether an error says that memory ran out, on whatever device.

In: an exception. Out: yes or no, so that what can be done in smaller pieces is.
Usage: `except RuntimeError as error: if not is_out_of_memory(error): raise`
"""

from __future__ import annotations

import gc

import torch

from visgraft.errors import MaskSizeError

# What the allocators of devices that have no exception of their own say.
OUT_OF_MEMORY = ("DefaultCPUAllocator", "MPS backend out of memory")


def is_out_of_memory(error: Exception) -> bool:
    """Say whether memory ran out, or a dense mask would be larger than is allowed."""
    return isinstance(error, torch.OutOfMemoryError | MaskSizeError) or any(
        words in str(error) for words in OUT_OF_MEMORY
    )


def free_memory(device: torch.device) -> None:
    """Give back what nothing holds any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
