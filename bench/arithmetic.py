"""How well a step uses the machine: the operations that it needs, over the machine's own matrix rate.

In: a model, ready to train, and a batch; a device. Out: operations by part; the best rate of square bf16 products.

    rate = MatrixRate(model.device); rate(); rate()              # a few rounds, between those of what is measured
    share = needed_operations(model, batch).total / seconds / rate.per_second

A product of n numbers is n multiplications and n additions. Only what the result needs is counted, so that no work that
could be left out looks like speed: no padding; each image once through the encoder; 2N operations forward for each
position, N weights; 2N for its activations backward, as far as gradients flow, which is down to the projection and not
into the encoder; 2N more only for matrices that train; the head at supervised positions alone; in attention only pairs
of positions that may see each other (4D forward, 8D backward, D the width of all heads). Norms, activations, softmax
and look-ups count nothing.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

import torch
from harness import synchronize
from torch import nn
from transformers.pytorch_utils import Conv1D

from visgraft.data.batch import Batch
from visgraft.model.sequence import SegmentTable, attention_mask
from visgraft.model.trainable import find_blocks
from visgraft.model.vision import VisionSettings, measure
from visgraft.model.vlm import VisionLanguageModel
from visgraft.segments import IMAGE, PAD

SIZES = (1024, 2048, 4096)
REPEATS = 3  # a round and size


@dataclass(frozen=True)
class Operations:
    """Needed operations of a step, by part."""

    vision: int
    projection: int
    language: int
    attention: int
    head: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(asdict(self).values())


def needed_operations(model: VisionLanguageModel, batch: Batch) -> Operations:
    """Count the operations that one forward and backward pass needs.

    Args:
        model: after `set_trainable`: a frozen encoder of ViT's form, a projection that trains, and a language model
            without sliding windows.
        batch: in the layout `shared`: each image once.

    Raises:
        ValueError: the model is another, or an image would be counted once a text.
    """
    _check(model, batch)
    kind = batch.kind
    num_positions, num_image_positions = int((kind != PAD).sum()), int((kind == IMAGE).sum())
    head = model.language.get_output_embeddings()
    linears = [module for module in model.language.modules() if module is not head and _is_linear(module)]
    first, *others = (module for module in model.projection.modules() if _is_linear(module))
    config = model.language.config.get_text_config(decoder=True)
    head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    pairs = count_pairs(batch) * config.num_attention_heads * head_width
    return Operations(
        vision=0 if "features" in batch.vision_inputs else _vision_operations(model) * len(batch.num_image_tokens),
        projection=num_image_positions * (_forward(first) + _backward_of_weights(first) + sum(map(_all, others))),
        language=num_positions * sum(map(_all, linears)),
        attention=12 * pairs * config.num_hidden_layers,
        head=batch.target.shape[0] * _all(head),
    )


def count_pairs(batch: Batch) -> int:
    """Count the pairs (query, key) of real positions that may see each other, a row at a time."""
    table = SegmentTable(batch.kind, batch.group, batch.segment, batch.position, batch.sees)
    total = 0
    for row in range(table.kind.shape[0]):
        names = ("kind", "group", "segment", "position", "sees")
        alone = SegmentTable(**{name: getattr(table, name)[row : row + 1] for name in names})
        total += int(attention_mask(alone)[0, 0][alone.kind[0] != PAD].sum())
    return total


class MatrixRate:
    """The best rate of square bf16 products; each call measures every size once more."""

    def __init__(self, device: torch.device, *, sizes: tuple[int, ...] = SIZES) -> None:
        generator = torch.Generator(device).manual_seed(0)
        self.squares = {
            size: torch.randn(size, size, generator=generator, device=device).to(torch.bfloat16) for size in sizes
        }
        self.in_a_row = 20 if device.type == "cuda" else 1  # what it takes to start a kernel is not its rate
        self.best_s = dict.fromkeys(sizes, float("inf"))

    def __call__(self) -> None:
        """Measure."""
        for size, square in self.squares.items():
            out = torch.empty_like(square)
            for _ in range(REPEATS):
                synchronize()
                start = time.perf_counter()
                for _ in range(self.in_a_row):
                    torch.mm(square, square.T, out=out)  # as a linear layer has its weight
                synchronize()
                self.best_s[size] = min(self.best_s[size], (time.perf_counter() - start) / self.in_a_row)

    @property
    def by_size(self) -> dict[int, float]:
        """Operations per second of each size."""
        return {size: 2 * size**3 / seconds for size, seconds in self.best_s.items()}

    @property
    def per_second(self) -> float:
        """Operations per second, the best of all sizes."""
        return max(self.by_size.values())


def _check(model: VisionLanguageModel, batch: Batch) -> None:
    if batch.layout != "shared":
        raise ValueError(f"got the layout {batch.layout!r}, in which an image comes once a text; allowed is 'shared'")
    if any(parameter.requires_grad for parameter in model.vision.parameters()):
        raise ValueError("the encoder trains, whose backward pass is not counted here; freeze it")
    if not all(parameter.requires_grad for parameter in model.projection.parameters()):
        raise ValueError("the projection is frozen: how far gradients flow is not counted here; train it")
    config = model.language.config.get_text_config(decoder=True)
    if getattr(config, "sliding_window", None):
        raise ValueError(f"{config.model_type} has a sliding window, whose pairs are not counted here")


def _vision_operations(model: VisionLanguageModel) -> int:
    """Count one image's way through an encoder of ViT's form, where every position sees every other."""
    config = model.vision.config
    shape = measure(config, settings=VisionSettings(image_size=model.config.image_size))  # with the class token
    [patches] = (module for module in model.vision.modules() if isinstance(module, nn.Conv2d))
    linears = [module for block in find_blocks(model.vision) for module in block.modules() if _is_linear(module)]
    return (
        2 * patches.weight.numel() * shape.grid[0] * shape.grid[1]
        + shape.num_tokens * sum(map(_forward, linears))
        + 4 * shape.num_tokens**2 * config.hidden_size * config.num_hidden_layers
    )


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, Conv1D))


def _forward(linear: nn.Module) -> int:
    """Count a position's way through a linear layer; packed weights of few bits count as what they stand for."""
    assert isinstance(linear, (nn.Linear, Conv1D))
    return 2 * (linear.in_features * linear.out_features if isinstance(linear, nn.Linear) else linear.weight.numel())


def _backward_of_weights(linear: nn.Module) -> int:
    assert isinstance(linear, (nn.Linear, Conv1D))
    return _forward(linear) if linear.weight.requires_grad else 0


def _all(linear: nn.Module) -> int:
    return 2 * _forward(linear) + _backward_of_weights(linear)
