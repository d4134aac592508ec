"""Add up what a step of a run costs: the memory at its fullest instant, by part, and the arithmetic.

In: a model without weights and the micro-batches of a step. Out: a `StepCost`.

    cost = estimate_step(outline.model, outline.micro_batches, dtype=torch.bfloat16, on_gpu=True)
    cost.sizes         # {"weights": ..., "gradients": ..., "optimizer": ..., "activations": ..., ...} in bytes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from visgraft.config import Part
from visgraft.data.batch import Batch
from visgraft.estimate.fake_step import run_fake_step, size_of
from visgraft.estimate.gpus import Gpu
from visgraft.estimate.quantized import quantize_hollow
from visgraft.model.vlm import VisionLanguageModel

MIB = 2**20
# What a process holds beside its tensors. On a GPU: the context, cuBLAS's workspaces, blocks that the allocator keeps.
FRAMEWORK_BYTES = {"gpu": 700 * MIB, "cpu": 600 * MIB}
# Of the dense rate over whole steps: of a GPU's in its data sheet; of the computer's own as it is measured, of which
# `python bench/ladder.py` found 55 to 64 % used.
UTILISATION = {"gpu": 0.4, "cpu": 0.55}


@dataclass(frozen=True)
class StepCost:
    """What a step is estimated to take.

    Attributes:
        sizes: bytes at the fullest instant of a step by what they hold: weights, gradients, optimizer, activations,
            logits, batch, framework; of several GPUs also sharing: what is gathered from and sent to the others.
        weights: bytes of weights by part.
        loading_bytes: of the computer's memory while the weights are read, which is in fp32.
        num_positions: of the largest micro-batch, pads included.
        flops_per_position: floating-point operations of a step, by its positions.
    """

    sizes: Mapping[str, int]
    weights: Mapping[Part, int]
    loading_bytes: int
    num_positions: int
    flops_per_position: float

    @property
    def total_bytes(self) -> int:
        """Everything together."""
        return sum(self.sizes.values())

    def fits(self, gpu: Gpu) -> bool:
        """Say whether a GPU holds it; on the computer itself the weights have to be read, too."""
        return max(self.total_bytes, 0 if gpu.is_gpu else self.loading_bytes) <= gpu.memory_bytes

    def seconds(self, num_positions: int, *, tflops: float, utilisation: float) -> float:
        """Estimate how long the arithmetic of so many positions takes at a share of a rate in TFLOP/s."""
        return self.flops_per_position * num_positions / (utilisation * tflops * 1e12)


def estimate_step(
    model: VisionLanguageModel,
    micro_batches: Sequence[Batch],
    *,
    dtype: torch.dtype | None,
    on_gpu: bool,
    has_block_masks: bool = False,
    quantization: str | None = None,
) -> StepCost:
    """Estimate memory and arithmetic of a step; the largest micro-batch counts.

    Args:
        model: on the meta device; of no use afterwards.
        micro_batches: of one step; all of them are on the device while it lasts.
        dtype: the autocast format; None is float32 throughout.
        on_gpu: whether it will run on a GPU.
        has_block_masks: its attention keeps no mask (FlexAttention).
        quantization: of the language model's linears: `4bit`, `8bit` or None.

    Raises:
        UnsupportedModelError: what the model computes depends on numbers that only real weights give.
    """
    if quantization is not None:
        quantize_hollow(model.language, quantization)
    loading = sum(p.numel() * (1 if p.dtype == torch.uint8 else torch.float32.itemsize) for p in model.parameters())
    largest = max(micro_batches, key=lambda batch: batch.kind.numel())
    done = run_fake_step(
        model,
        largest,
        dtype=dtype,
        on_gpu=on_gpu,
        has_block_masks=has_block_masks,
        holds_gradients=len(micro_batches) > 1,
    )
    waiting = sum(size_of(batch) for batch in micro_batches if batch is not largest)
    sizes = {
        **{kind: done.sizes.get(kind, 0) for kind in ("weights", "gradients")},
        "optimizer": done.optimizer,
        **{kind: done.sizes.get(kind, 0) for kind in ("activations", "logits")},
        "batch": done.sizes.get("batch", 0) + waiting,
        "framework": FRAMEWORK_BYTES["gpu" if on_gpu else "cpu"],
    }
    return StepCost(sizes, done.weights, loading, done.num_positions, done.num_flops / done.num_positions)
