"""What is compared: runs, sorted into variants, which differ in nothing but their seed.

In: what `collect` reads from run folders. Out: values that every other file of this folder takes.

    [run.seed for variant in comparison.variants for run in variant.runs]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from visgraft.compare.curves import Curve
from visgraft.config import Recipe
from visgraft.notebook import curves_html, table_html
from visgraft.runs import Status
from visgraft.wording import counted


@dataclass(frozen=True)
class RunData:
    """One run as it is on disk.

    Attributes:
        folder: where it lies.
        variant: name of the variant it belongs to.
        seed: of its weights and order.
        recipe: as it ran.
        settings: dotted key -> value, defaults included; without what is of effect on the disk alone.
        training: loss over steps, samples and minutes.
        validation: the same of the held-out data.
        scores: name -> values over the same validations, None where one was not measured.
        summary: what `summary.json` holds; empty of a run that has none.
        sample_answers: the lines of `samples.jsonl`.
        status: as `Run.status` says.
    """

    folder: Path
    variant: str
    seed: int
    recipe: Recipe
    settings: Mapping[str, Any]
    training: Curve
    validation: Curve
    scores: Mapping[str, Sequence[float | None]]
    summary: Mapping[str, Any]
    sample_answers: Sequence[Mapping[str, Any]]
    status: Status


@dataclass(frozen=True)
class Variant:
    """Runs that differ in nothing but their seed; `settings` are those of the first."""

    name: str
    runs: tuple[RunData, ...]

    @property
    def settings(self) -> Mapping[str, Any]:
        """Dotted key -> value, defaults included."""
        return self.runs[0].settings

    @property
    def is_finished(self) -> bool:
        """Whether any of its runs has come to its end."""
        return any(run.status == "finished" for run in self.runs)

    @property
    def counted(self) -> tuple[RunData, ...]:
        """The runs that its means are made of: the finished ones or, where there are none, all."""
        return tuple(run for run in self.runs if run.status == "finished") or self.runs


@dataclass(frozen=True)
class Comparison:
    """All that is compared: the variants in their order, and what was left out and why."""

    variants: tuple[Variant, ...]
    notes: tuple[str, ...] = ()

    def _repr_html_(self) -> str:
        """Show the comparison in a notebook: each variant's losses, and the curves of training."""
        rows = []
        for variant in self.variants:
            runs = variant.counted
            losses = [run.training.token[-1] for run in runs]
            best = [float(np.nanmin(run.validation.token)) for run in runs if len(run.validation)]
            lowest = f"{np.mean(best):.4f}" if best else "-"
            rows.append([variant.name, len(variant.runs), runs[0].status, f"{np.mean(losses):.4f}", lowest])
        title = f"{counted(len(self.variants), 'variant')}, {counted(len(self.runs), 'run')}"
        header = ["variant", "runs", "status", "training loss", "best validation loss"]
        curves = {variant.name: variant.counted[0].training.token.tolist() for variant in self.variants}
        return table_html(title, header, rows) + curves_html(curves)

    @property
    def runs(self) -> list[RunData]:
        """Every run of every variant."""
        return [run for variant in self.variants for run in variant.runs]
