"""The mode in which every answer is computed: no gradients, no dropout, the format that frozen weights have.

In: a model, maybe in the middle of training. Out: a context; behind it the model is as it was.
Usage: `with eval_mode(model): ...`
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from visgraft.model.parts import input_embedding
from visgraft.model.vlm import VisionLanguageModel


@contextmanager
def eval_mode(model: VisionLanguageModel) -> Iterator[None]:
    """Run without gradients and dropout; without the caller's autocast, in the format that frozen weights have."""
    kind, was_training = model.device.type, model.training
    is_training = any(module.training for module in model.modules())  # else nothing is to be set, which takes a while
    dtype = input_embedding(model).dtype
    is_mixed = dtype in (torch.bfloat16, torch.float16) and not torch.is_autocast_enabled(kind)
    if is_training:
        model.eval()
    try:
        with torch.no_grad(), torch.autocast(kind, dtype=dtype) if is_mixed else nullcontext():
            yield
    finally:
        if is_training:
            model.train(was_training)
