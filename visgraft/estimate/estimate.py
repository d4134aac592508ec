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
from typing import Any, NamedTuple

import torch

from visgraft.config import Recipe, load_recipe
from visgraft.errors import ConfigError, MaskSizeError
from visgraft.estimate.advice import Change, advise
from visgraft.estimate.gpus import GIB, Gpu, find_gpu, local_gpu
from visgraft.estimate.outline import Outline, outline_run
from visgraft.estimate.sharing import ALONE, NETWORK_GBIT, Machines, Sharding, best_of, measure_blocks, shardings
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
        machines: how many GPUs, in how many machines.
        shardings: of several GPUs the ways to share a step out; `cost` and the time are those of the best one.
        hints: what else to change there.
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
    machines: Machines = ALONE
    shardings: Sequence[Sharding] = ()
    hints: Sequence[str] = ()

    @property
    def sharding(self) -> str | None:
        """The launch config of the best way to share a step out; None of a single GPU, or where none fits."""
        best = best_of(self.shardings, gpu=self.gpu) if self.shardings else None
        return best.name if best is not None and best.cost.fits(self.gpu) else None

    @property
    def fits(self) -> bool:
        """Whether the GPU holds it."""
        return self.cost.fits(self.gpu)

    @property
    def seconds(self) -> float | None:
        """Seconds of the whole run."""
        is_known = self.seconds_per_step is not None and self.num_steps is not None
        return float(f"{self.seconds_per_step * self.num_steps:.4g}") if is_known else None  # type: ignore[operator]

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
            "gpus": self.machines.num_gpus,
            "nodes": self.machines.num_nodes,
            "sharding": self.sharding,
            "shardings": [self._sharding_as_json(each) for each in self.shardings],
            "hints": list(self.hints),
        }

    def _sharding_as_json(self, sharding: Sharding) -> dict[str, Any]:
        cost, step = sharding.cost, sharding.seconds_per_step
        return {
            "name": sharding.name,
            "total_bytes": cost.total_bytes,
            "fits": cost.fits(self.gpu),
            "parts": dict(cost.sizes),
            "seconds_per_step": step,
            "seconds": None if step is None or self.num_steps is None else float(f"{step * self.num_steps:.4g}"),
        }


def estimate(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    gpu: Gpu | str | None = None,
    gpus: int = 1,
    nodes: int | None = None,
    network_gbit: float = NETWORK_GBIT,
    utilisation: float | None = None,
    measure: bool | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Estimate:
    """Estimate what a recipe takes, and try changes where it does not fit.

    Args:
        recipe: a path, a dict or a Recipe; of its parts the configurations are enough.
        gpu: 24GB, rtx4090, ...; None is the GPU that is here, or else this computer.
        gpus: how many of them.
        nodes: in how many machines; None: eight in each.
        network_gbit: 10^9 bits a second that a machine sends to the others.
        utilisation: of the dense rate, over the arithmetic of a step; None: 40 % of a GPU's, 55 % of this computer's.
        measure: train a few steps on this machine; None does so where no GPU was named, one is here, the recipe fits
            it, and weights and data are here.
        say: called with a line before each piece of long work.

    Raises:
        ConfigError: there is no such GPU, or a setting that the parts cannot take; several GPUs and steps to measure.
        CheckpointError: the configuration of a part cannot be read.
        UnsupportedModelError: the language model does not follow the mask.
    """
    wanted = local_gpu() if gpu is None else find_gpu(gpu) if isinstance(gpu, str) else gpu
    machines = Machines.of(gpus, nodes, network_gbit=network_gbit)
    utilisation = UTILISATION["gpu" if wanted.is_gpu else "cpu"] if utilisation is None else utilisation
    _check_options(wanted, machines, measure=measure, utilisation=utilisation)
    recipe = load_recipe(recipe)

    def look(other: Recipe) -> _Found:
        return _look(other, wanted, machines=machines, utilisation=utilisation, say=say)

    outline, cost, ways = look(recipe)
    changes: list[Change] = []
    for change in advise(recipe, cost, gpu=wanted, cost_of=lambda other: look(other).cost):
        say(f"with {change.setting} {change.total_bytes / GIB:.2f} GiB")
        changes.append(change)
    is_measured = measure
    if measure is None:
        is_here = outline.num_steps is not None and has_weights(outline.recipe)
        is_measured = gpu is None and gpus == 1 and wanted.is_gpu and cost.fits(wanted) and is_here
    trial = try_out(outline.recipe, say=say) if is_measured else None
    seconds_per_step, basis = _seconds_per_step(wanted, outline, cost, trial, utilisation=utilisation)
    if ways:
        seconds_per_step = best_of(ways, gpu=wanted).seconds_per_step
        if seconds_per_step is not None:
            between = f", {machines.network_gbit:g} Gbit/s between them" if machines.num_nodes > 1 else ""
            basis += f"; {wanted.link_gb_s:g} GB/s inside a machine{between}"
    return Estimate(
        gpu=wanted,
        cost=cost,
        seconds_per_step=seconds_per_step,
        basis=basis,
        num_steps=outline.num_steps,
        changes=changes,
        assumptions=outline.assumptions,
        trial=trial,
        machines=machines,
        shardings=ways,
        hints=_hints(outline, recipe, machines),
    )


class _Found(NamedTuple):
    """What was found out of a recipe; of several GPUs, the cost is that of the best way to share a step out."""

    outline: Outline
    cost: StepCost
    shardings: Sequence[Sharding]


def _check_options(gpu: Gpu, machines: Machines, *, measure: bool | None, utilisation: float) -> None:
    if not 0 < utilisation <= 1:
        raise ConfigError(f"--utilisation: got {utilisation:g}, need a share of the GPU's rate above 0, up to 1")
    if machines.num_gpus == 1:
        return
    if not gpu.is_gpu:
        raise ConfigError(f"--gpus: got {machines.num_gpus} and no GPU is here; name one, such as --gpu h100")
    if measure:
        raise ConfigError(f"--measure: got it beside --gpus {machines.num_gpus}; steps are measured on one device only")


def _hints(outline: Outline, recipe: Recipe, machines: Machines) -> list[str]:
    """Say where a step is too small for so many GPUs."""
    number = machines.num_gpus
    if number == 1 or outline.num_groups >= 2 * number:
        return []
    tokens = recipe.train.text_tokens_per_step
    return [
        f"a step of {tokens:,} text tokens is about {outline.num_groups:.0f} images with their texts, for {number} "
        f"GPUs; let train.text_tokens_per_step grow with them, here to {tokens * number:,}, and the learning rate as "
        "far as it goes well"
    ]


def _look(recipe: Recipe, gpu: Gpu, *, machines: Machines, utilisation: float, say: Callable[[str], None]) -> _Found:
    precision = recipe.train.precision
    dtype = gpu.dtype if precision == "auto" else DTYPES[precision]
    device = torch.device("cuda" if gpu.is_gpu else "cpu")
    outline = outline_run(recipe, dtype=dtype, device=device, num_processes=machines.num_gpus, say=say)
    blocks = measure_blocks(outline.model)
    say("running a step without numbers")
    try:
        cost = estimate_step(
            outline.model,
            outline.micro_batches,
            dtype=dtype,
            on_gpu=gpu.is_gpu,
            has_block_masks=outline.has_block_masks,
            quantization=outline.quantization,
        )
    except MaskSizeError:  # training halves its micro-batches then, until a sample stands alone
        limit = max(batch.kind.numel() for batch in outline.micro_batches) // 2
        before = recipe.train.micro_batch_positions
        if before is not None and limit * 2 > before:
            raise
        halved = load_recipe(recipe, overrides=[f"train.micro_batch_positions={limit}"])
        return _look(halved, gpu, machines=machines, utilisation=utilisation, say=say)
    if machines.num_gpus == 1:
        return _Found(outline, cost, ())
    ways = shardings(
        cost,
        blocks,
        gpu=gpu,
        machines=machines,
        num_positions=outline.num_positions,
        num_passes=len(outline.micro_batches),
        utilisation=utilisation,
        is_quantized=outline.quantization is not None,
    )
    return _Found(outline, best_of(ways, gpu=gpu).cost, ways)


def _seconds_per_step(
    gpu: Gpu, outline: Outline, cost: StepCost, trial: Trial | None, *, utilisation: float
) -> tuple[float | None, str]:
    """Say how long a step takes, and by what that is known."""
    if trial is not None:
        return median(trial.seconds), f"measured here, {counted(len(trial.seconds), 'step')} on {trial.device}"
    if gpu.tflops is None:
        return None, "unknown: name a GPU, such as --gpu rtx4090, or measure here with --measure"
    seconds = cost.seconds(outline.num_positions, tflops=gpu.tflops, utilisation=utilisation)
    basis = f"from its arithmetic, at {utilisation:.0%} of {gpu.tflops:g} TFLOP/s"
    return float(f"{seconds:.4g}"), basis if gpu.is_gpu else f"{basis}, its products' own; --measure trains a few steps"
