"""A model that runs out of memory above a number of positions, in the middle of its work.

In: a model, a size and the error to raise. Out: the sizes of the batches that it was given, growing as it works.
Usage: `sizes = limit_memory(session.model, largest=90)`
"""

from collections.abc import Callable
from typing import Any

from visgraft.model.vlm import VisionLanguageModel

CPU_SAYS = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"


def limit_memory(
    model: VisionLanguageModel,
    *,
    largest: int,
    error: Callable[[], Exception] = lambda: RuntimeError(CPU_SAYS),
    is_short: Callable[[], bool] = lambda: True,
) -> list[int]:
    """Let a model fail above a size, after a part of the gradients was added, while memory is short."""
    forward, sizes = model.forward, []

    def limited(*, batch: Any = None, **inputs: Any) -> Any:
        if batch is None:  # it generates
            return forward(**inputs)
        sizes.append(batch["kind"].numel())
        out = forward(batch=batch)
        if sizes[-1] > largest and model.training and is_short():
            (out.loss_sum * 3.0).backward()
            raise error()
        return out

    model.forward = limited  # type: ignore[method-assign,assignment]
    return sizes
