"""The optimizer and its learning rates.

In: what trains, by part. Out: AdamW with one group per part and kind of weight, and the rate of a step as a pure
function of how far the run is, so that a resumed run needs nothing remembered.

    optimizer = build_optimizer(trained_parameters(model), settings)
    set_learning_rates(optimizer, rate_factor(step, progress=0.3, warmup_steps=10, schedule="cosine"))
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import nn

from visgraft.config import Part, TrainSettings

Schedule = Literal["constant", "linear", "cosine"]


def build_optimizer(trained: Mapping[Part, Mapping[str, nn.Parameter]], settings: TrainSettings) -> torch.optim.AdamW:
    """Build AdamW (Loshchilov and Hutter 2017, arXiv:1711.05101) over what trains.

    Args:
        trained: part -> full name -> parameter. Each part has its own learning rate; norms, biases and everything
            else with one axis are not decayed.
        settings: learning rates, decay and betas.

    Returns:
        The optimizer; every group also holds its `part` and its `base_rate`.
    """
    groups = []
    for part, parameters in trained.items():
        for is_decayed in (True, False):
            members = [p for p in parameters.values() if _is_decayed(p) is is_decayed]
            if members:
                rate = settings.learning_rate_of(part)
                decay = settings.weight_decay if is_decayed else 0.0
                groups.append({"params": members, "lr": rate, "base_rate": rate, "weight_decay": decay, "part": part})
    has_fused_kernel = all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])  # type: ignore[attr-defined]
    return torch.optim.AdamW(groups, betas=settings.betas, fused=has_fused_kernel)


def _is_decayed(parameter: nn.Parameter) -> bool:
    return parameter.ndim > 1 and not getattr(parameter, "is_never_decayed", False)


def rate_factor(step: int, *, fraction_done: float, warmup_steps: int, schedule: Schedule) -> float:
    """Return what the base rates are multiplied with.

    The rate climbs along a straight line over the warm-up and falls to 0 at the end of the run; the lower of the two
    holds.

    Args:
        step: steps done before this one.
        fraction_done: of the run, 0 to 1: by epochs or by steps, whichever is further.
        warmup_steps: steps until the full rate.
        schedule: how it falls.
    """
    warm = (step + 1) / (warmup_steps + 1)
    done = min(1.0, fraction_done)
    falling = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}
    return min(1.0, warm, falling[schedule])


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> dict[str, float]:
    """Set the rate of every group and return the rates by part."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_rate"] * factor
    return {group["part"]: group["lr"] for group in optimizer.param_groups}
