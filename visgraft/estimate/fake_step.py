"""Run one training step without weights and without numbers, and read off what it would take.

In: a model without weights (on the meta device), with what trains set, and the batch of a step. Out: bytes by kind at
the fullest instant, and floating-point operations.

    rehearsed = run_fake_step(model, batch, dtype=torch.bfloat16)
    rehearsed.sizes["activations"], rehearsed.num_flops

The real forward, loss and backward run on fake tensors, which have shapes, formats and storages but no memory. So what
autograd keeps in each layer of each family, what autocast copies and what checkpointing forgets is not modelled: it
happens. What runs inside one kernel (a library's scratch space) is not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.utils._pytree import tree_leaves, tree_map
from transformers import pytorch_utils

from visgraft.config import Part
from visgraft.data.batch import Batch
from visgraft.errors import UnsupportedModelError
from visgraft.estimate.memory_tracker import Kind, MemoryTracker
from visgraft.estimate.values import KnownValues
from visgraft.model.parts import input_embedding, part_parameters
from visgraft.model.vlm import VisionLanguageModel

ADAMW_BYTES = 8  # a trained parameter: two moments in fp32


@dataclass(frozen=True)
class FakeStep:
    """What a step takes.

    Attributes:
        weights: bytes by part, buffers included.
        optimizer: bytes of the moments of everything that receives a gradient.
        sizes: bytes by kind at the fullest instant, weights and optimizer apart.
        num_flops: floating-point operations of the forward and the backward of the batch.
        num_positions: positions of the batch, pads included.
    """

    weights: Mapping[Part, int]
    optimizer: int
    sizes: Mapping[Kind, int]
    num_flops: int
    num_positions: int


def run_fake_step(
    model: VisionLanguageModel,
    batch: Batch,
    *,
    dtype: torch.dtype | None,
    on_gpu: bool = False,
    has_block_masks: bool = False,
    holds_gradients: bool = False,
) -> FakeStep:
    """Run forward and backward of a batch without numbers.

    Args:
        model: its weights become fake ones; it is of no use afterwards.
        batch: pixels may be on the meta device.
        dtype: the autocast format; None is float32 throughout.
        on_gpu: cast as autocast does there.
        has_block_masks: attention keeps no mask and computes the pairs of each group alone, as FlexAttention does.
        holds_gradients: the gradients of an earlier micro-batch of the step are there already.

    Raises:
        UnsupportedModelError: what the model computes depends on numbers that only real weights give.
    """
    attended = {batch.kind.shape[1]: _share_within_groups(batch)} if has_block_masks else {}
    memory_tracker = MemoryTracker(vocabulary=input_embedding(model).shape[0], attended=attended)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, _nothing_remembered():
        values = KnownValues(fake)
        _hollow_out(model, values)
        own = batch._map(lambda tensor: _fake(tensor, values))
        weights = _weights(model)
        parameters = list(model.parameters())
        if holds_gradients:
            for parameter in (p for p in parameters if p.requires_grad):
                parameter.grad = torch.empty_like(parameter)
        for tensor in _tensors(own):
            memory_tracker.enter(tensor, "batch")
        for tensor in (*parameters, *model.buffers(), *(p.grad for p in parameters if p.grad is not None)):
            memory_tracker.enter(tensor, "weights")
        model.train()
        with memory_tracker, values, _explained(model), _as_there(on_gpu=on_gpu, has_block_masks=has_block_masks):
            with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
                loss = model.loss(own).loss_sum
            assert loss is not None
            loss.backward()
        gradients = [p.grad for p in parameters if p.grad is not None]
        memory_tracker.rename(gradients, "gradients")
        return FakeStep(
            weights=weights,
            optimizer=ADAMW_BYTES * sum(gradient.numel() for gradient in gradients),
            sizes=memory_tracker.peak().sizes,
            num_flops=memory_tracker.num_flops,
            num_positions=batch.kind.numel(),
        )


@contextmanager
def _nothing_remembered() -> Iterator[None]:
    """Keep fake tensors out of transformers' caches of the whole process (BEiT's table of relative positions)."""
    with mock.patch.object(pytorch_utils, "is_torchdynamo_compiling", return_value=True):  # it then caches nothing
        yield


def _hollow_out(model: nn.Module, values: KnownValues) -> None:
    """Put fake tensors in the place of all weights; tied ones stay tied."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        own: Any
        for own in (module._parameters, module._buffers):
            for name, tensor in own.items():
                if tensor is not None:
                    made.setdefault(id(tensor), _fake(tensor, values))
                    own[name] = made[id(tensor)]


def _fake(tensor: Tensor, values: KnownValues) -> Tensor:
    """Make a fake tensor on the CPU of one that is there, or on the meta device."""
    if tensor.device.type != "meta" and not tensor.is_floating_point():
        return values.make(tensor)
    hollow = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    return nn.Parameter(hollow, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else hollow


def _weights(model: VisionLanguageModel) -> dict[Part, int]:
    """Add up the bytes of each part; buffers count with the module that they are in."""
    sizes = {part: sum(_size(p) for p in inside.values()) for part, inside in part_parameters(model).items()}
    for part in ("vision", "projection", "language"):
        sizes[part] += sum(_size(buffer) for buffer in model.get_submodule(part).buffers())
    return sizes


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def size_of(batch: Batch) -> int:
    """Add up the bytes of a batch."""
    return sum(_size(tensor) for tensor in _tensors(batch))


def _tensors(batch: Batch) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(dict(batch)) if isinstance(leaf, Tensor))


@contextmanager
def _as_there(*, on_gpu: bool, has_block_masks: bool) -> Iterator[None]:
    """Let fake tensors, which are on the CPU, be treated as a GPU treats its own; recomputed layers are, too."""
    functional: Any = nn.functional
    kept = {name: getattr(functional, name) for name in ("layer_norm", "softmax", "scaled_dot_product_attention")}
    if on_gpu:  # autocast computes these in fp32 there
        functional.layer_norm, functional.softmax = _in_fp32(kept["layer_norm"]), _in_fp32(kept["softmax"])
    if has_block_masks:
        functional.scaled_dot_product_attention = _without_mask(kept["scaled_dot_product_attention"])
    try:
        yield
    finally:
        for name, function in kept.items():
            setattr(functional, name, function)


def _in_fp32(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Cast the inputs of a function where autocast is on."""

    def cast(leaf: Any) -> Any:
        is_half = isinstance(leaf, Tensor) and leaf.dtype in (torch.bfloat16, torch.float16)
        return leaf.float() if is_half and torch.is_autocast_enabled("cpu") else leaf

    return lambda *args, **kwargs: function(*tree_map(cast, args), **tree_map(cast, kwargs))


def _without_mask(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Leave attention's mask out: without numbers it makes no difference but to what is kept."""
    return lambda *args, **kwargs: function(*args, **{name: v for name, v in kwargs.items() if name != "attn_mask"})


def _share_within_groups(batch: Batch) -> float:
    """Give the part of all pairs of positions of a row that lie in one group."""
    pairs = sum(int(row[row >= 0].bincount().square().sum()) for row in batch.group)
    return pairs / (batch.group.shape[0] * batch.group.shape[1] ** 2)


@contextmanager
def _explained(model: VisionLanguageModel) -> Iterator[None]:
    """Say why a step cannot be run without numbers."""
    try:
        yield
    except (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException) as error:
        names = f"{model.vision.config.model_type} or {model.language.config.model_type}"
        raise UnsupportedModelError(
            f"{names} decides by computed numbers what to compute next ({error}), so that its memory is not known "
            "before its weights are there; measure it: visgraft estimate RECIPE --measure"
        ) from error
