"""Whether a recipe fits a GPU, how long it takes there, and what to change where it does not fit.

In: a recipe; a GPU by its name, by its memory, or the one that is here. Out: an `Estimate`. No weights are read, unless
steps are to be measured on this machine.

    found = estimate("recipe.yaml", gpu="24GB")
    found.fits, found.cost.sizes, found.seconds, found.changes
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from visgraft.config import Recipe, load_recipe
from visgraft.estimate.advice import Change, advise
from visgraft.estimate.gpus import GIB, Gpu, find_gpu, local_gpu
from visgraft.estimate.outline import Outline, outline_run
from visgraft.estimate.step_cost import UTILISATION, StepCost, estimate_step
from visgraft.estimate.trial import Trial, has_weights, try_out
from visgraft.model.precision import DTYPES
from visgraft.wording import counted


@dataclass(frozen=True)
class Estimate:
    """What a recipe takes on a GPU.

    Attributes:
        gpu: where it would run.
        cost: memory by what it holds, and arithmetic, of a step.
        seconds_per_step: None where neither the GPU's rate is known nor a step was measured.
        basis: how that is known, in words.
        num_steps: of the whole run; None where the data cannot be read.
        changes: what would make it fit, each on top of those before it; none where it fits.
        assumptions: what could not be read, and what is taken instead.
        trial: what was measured on this machine.
    """

    gpu: Gpu
    cost: StepCost
    seconds_per_step: float | None
    basis: str
    num_steps: int | None
    changes: Sequence[Change]
    assumptions: Sequence[str]
    trial: Trial | None

    @property
    def fits(self) -> bool:
        """Whether the GPU holds it."""
        return self.cost.fits(self.gpu)

    @property
    def seconds(self) -> float | None:
        """Seconds of the whole run."""
        is_known = self.seconds_per_step is not None and self.num_steps is not None
        return round(self.seconds_per_step * self.num_steps, 1) if is_known else None  # type: ignore[operator]

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "gpu": self.gpu.name,
            "memory_bytes": self.gpu.memory_bytes,
            "total_bytes": self.cost.total_bytes,
            "loading_bytes": self.cost.loading_bytes,
            "fits": self.fits,
            "parts": dict(self.cost.sizes),
            "weights": dict(self.cost.weights),
            "time": {
                "seconds_per_step": self.seconds_per_step,
                "steps": self.num_steps,
                "seconds": self.seconds,
                "basis": self.basis,
            },
            "measured": None if self.trial is None else asdict(self.trial),
            "changes": [asdict(change) for change in self.changes],
            "assumptions": list(self.assumptions),
        }


def estimate(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    gpu: Gpu | str | None = None,
    measure: bool | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Estimate:
    """Estimate what a recipe takes, and try changes where it does not fit.

    Args:
        recipe: a path, a dict or a Recipe; of its parts the configurations are enough.
        gpu: 24GB, rtx4090, ...; None is the GPU that is here, or else this computer.
        measure: train a few steps on this machine; None does so where no GPU was named, one is here, the recipe fits
            it, and weights and data are here.
        say: called with a line before each piece of long work.

    Raises:
        ConfigError: there is no such GPU, or a setting that the parts cannot take.
        CheckpointError: the configuration of a part cannot be read.
        UnsupportedModelError: the language model does not follow the mask.
    """
    wanted = local_gpu() if gpu is None else find_gpu(gpu) if isinstance(gpu, str) else gpu
    recipe = load_recipe(recipe)
    outline, cost = _outline_and_cost(recipe, wanted, say=say)
    changes: list[Change] = []
    for change in advise(recipe, cost, gpu=wanted, cost_of=lambda other: _outline_and_cost(other, wanted, say=say)[1]):
        say(f"with {change.setting} {change.total_bytes / GIB:.2f} GiB")
        changes.append(change)
    is_measured = measure
    if measure is None:
        is_here = outline.num_steps is not None and has_weights(outline.recipe)
        is_measured = gpu is None and wanted.is_gpu and cost.fits(wanted) and is_here
    trial = try_out(outline.recipe, say=say) if is_measured else None
    seconds_per_step, basis = _seconds_per_step(wanted, outline, cost, trial)
    return Estimate(
        gpu=wanted,
        cost=cost,
        seconds_per_step=seconds_per_step,
        basis=basis,
        num_steps=outline.num_steps,
        changes=changes,
        assumptions=outline.assumptions,
        trial=trial,
    )


def _outline_and_cost(recipe: Recipe, gpu: Gpu, *, say: Callable[[str], None]) -> tuple[Outline, StepCost]:
    precision = recipe.train.precision
    dtype = gpu.dtype if precision == "auto" else DTYPES[precision]
    outline = outline_run(recipe, dtype=dtype, device=torch.device("cuda" if gpu.is_gpu else "cpu"), say=say)
    say("running a step without numbers")
    cost = estimate_step(
        outline.model,
        outline.micro_batches,
        dtype=dtype,
        on_gpu=gpu.is_gpu,
        has_block_masks=outline.has_block_masks,
        quantization=outline.quantization,
    )
    return outline, cost


def _seconds_per_step(gpu: Gpu, outline: Outline, cost: StepCost, trial: Trial | None) -> tuple[float | None, str]:
    """Say how long a step takes, and by what that is known."""
    if trial is not None:
        return median(trial.seconds), f"measured here, {counted(len(trial.seconds), 'step')} on {trial.device}"
    if gpu.tflops is None:
        return None, "unknown: name a GPU, such as --gpu rtx4090, or measure here with --measure"
    exact = cost.seconds_per_step(num_positions=outline.num_positions, tflops=gpu.tflops, on_gpu=gpu.is_gpu)
    seconds = float(f"{exact:.4g}")
    share = f"{UTILISATION['gpu' if gpu.is_gpu else 'cpu']:.0%} of {gpu.tflops:g} TFLOP/s"
    if gpu.is_gpu:
        return seconds, f"from its arithmetic, at {share}"
    return seconds, f"from its arithmetic, at {share}, its products' own; --measure trains a few steps"
