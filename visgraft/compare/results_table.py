"""The table of results: what each variant cost and how good it is, mean and range over its seeds, the best marked.

In: variants. Out: columns, each with a cell per variant; plain numbers, formatted by whoever shows them.

    for column in results(comparison.variants): column.title, column.cells["lora"].mean, column.cells["lora"].is_best
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from visgraft.compare.curves import Unit
from visgraft.compare.differences import data_key, has_one_tokenizer
from visgraft.compare.variants import RunData, Variant
from visgraft.config import PARTS
from visgraft.metrics.score_names import better_of, highest_of

Kind = Literal["count", "speed", "minutes", "energy", "memory", "loss", "share", "score"]
NOT_BETTER = 1e-12  # values closer than this are equally good


@dataclass(frozen=True)
class Cell:
    """A variant's value: mean, lowest and highest over the seeds that have it."""

    mean: float
    low: float
    high: float
    num_seeds: int
    is_best: bool = False


@dataclass(frozen=True)
class Column:
    """One measure of all variants.

    Attributes:
        key: stable name, for programs.
        title: what a user reads.
        kind: how its numbers are written.
        cells: variant -> value; variants that lack it are left out.
        note: what one must know to compare its values; empty where nothing.
    """

    key: str
    title: str
    kind: Kind
    cells: dict[str, Cell]
    note: str = ""


def loss_unit(variants: Sequence[Variant]) -> Unit:
    """Say in which unit the losses of these variants may stand beside one another."""
    return "token" if has_one_tokenizer([run for variant in variants for run in variant.runs]) else "character"


def results(variants: Sequence[Variant]) -> list[Column]:
    """Measure all variants: how good first, then what it cost; columns that no run has are left out."""
    unit = loss_unit(variants)
    per = "per character" if unit == "character" else "per token"
    names = dict.fromkeys(name for variant in variants for run in variant.runs for name in scores_of(run))
    columns = [
        *[_score_column(name, variants) for name in names],
        _column(
            "validation_loss", f"validation loss {per}", "loss", variants, lambda run: best_validation(run, unit),
            better=min, comparable=lambda run: data_key(run, "validation"),
        ),
        _column(
            "training_loss", f"training loss {per}", "loss", variants, lambda run: _last_loss(run, unit),
            better=min, comparable=lambda run: data_key(run, "training"),
        ),
        _column("trainable", "trained parameters", "count", variants, _parameters(None)),
        _column("minutes", "training time", "minutes", variants, _minutes),
        _column("wall_minutes", "wall time", "minutes", variants, _summed("wall_seconds", 1 / 60)),
        _column("samples_per_second", "samples/s", "speed", variants, _samples_per_second),
        _column("tokens_per_second", "tokens/s", "speed", variants, _summed("supervised_tokens_per_second", 1.0)),
        _energy(variants),
        _column("peak_memory", "peak memory", "memory", variants, _summed("peak_memory_bytes", 1.0)),
        *[_column(f"trainable.{part}", f"trained: {part}", "count", variants, _parameters(part)) for part in PARTS],
    ]  # fmt: skip
    kept = [column for column in columns if column.cells]
    return [column for column in kept if not (column.key.startswith("trainable.") and _is_zero(column))]


def _energy(variants: Sequence[Variant]) -> Column:
    """Measure what the runs took from the mains, of those whose machine said it."""
    column = _column("energy", "energy", "energy", variants, _summed("joules", 1.0))
    told = [run.summary["joules_of"] for variant in variants for run in variant.counted if run.summary.get("joules")]
    if len({" and ".join(of) for of in told}) < 2:
        return column
    return replace(column, note="energy: not of the same hardware in all runs (joules_of), so do not compare it")


def _score_column(name: str, variants: Sequence[Variant]) -> Column:
    return _column(
        name,
        name.replace("_", " "),
        "share" if _is_share(variants, name) else "score",
        variants,
        lambda run: scores_of(run).get(name),
        better={"higher": max, "lower": min, None: None}[better_of(name)],
        comparable=_score_key,
    )


def best_validation(run: RunData, unit: Unit) -> float | None:
    """Give the validation loss of a run's model: the lowest, but of a run whose model was chosen by a score."""
    if run.recipe.train.best_by is not None:
        kept = run.summary.get("validation_loss" if unit == "token" else "validation_loss_per_character")
        if isinstance(kept, (int, float)):
            return float(kept)
    values = run.validation.loss(unit)
    return None if not len(values) or np.isnan(values).all() else float(np.nanmin(values))


def scores_of(run: RunData) -> dict[str, float]:
    """Give the scores of a run's model: those of its summary, else those of its best validation."""
    written = run.summary.get("scores") or {}
    found = {name: float(value) for name, value in written.items() if isinstance(value, (int, float))}
    place = _best_place(run)
    if place is not None:
        for name, values in run.scores.items():
            value = values[place]
            if value is not None:
                found.setdefault(name, value)
    return found


def _best_place(run: RunData) -> int | None:
    """Find which of a run's validations is that of its model: by its loss, or by the score that it is chosen by."""
    name = run.recipe.train.best_by
    losses = run.validation.token
    if name is not None and name in run.scores:
        measured = np.array([np.nan if value is None else value for value in run.scores[name]], dtype=np.float64)
        losses = measured if better_of(name) == "lower" else -measured
    return int(np.nanargmin(losses)) if len(losses) and not np.isnan(losses).all() else None


def _score_key(run: RunData) -> str:
    train = run.recipe.train
    return json.dumps([data_key(run, "validation"), train.exact_match_samples, train.score_samples])


def _is_share(variants: Sequence[Variant], name: str) -> bool:
    values = [scores_of(run).get(name, 0.0) for variant in variants for run in variant.runs]
    return highest_of(name) == 1.0 and all(0.0 <= value <= 1.0 for value in values)


def _is_zero(column: Column) -> bool:
    return all(cell.mean == 0 for cell in column.cells.values())


def _parameters(part: str | None) -> Callable[[RunData], float | None]:
    def read(run: RunData) -> float | None:
        counts = run.summary.get("trainable_parameters")
        if not isinstance(counts, dict):
            return None
        return float(sum(counts.values()) if part is None else counts.get(part, 0))

    return read


def _summed(key: str, factor: float) -> Callable[[RunData], float | None]:
    def read(run: RunData) -> float | None:
        value = run.summary.get(key)
        return value * factor if isinstance(value, (int, float)) else None

    return read


def _minutes(run: RunData) -> float | None:
    return float(run.training.minutes[-1]) or None


def _samples_per_second(run: RunData) -> float | None:
    seconds = float(run.training.minutes[-1]) * 60
    return float(run.training.samples[-1]) / seconds if seconds else None


def _last_loss(run: RunData, unit: Unit) -> float | None:
    values = run.training.loss(unit)
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    return float(values[-max(1, len(values) // 20) :].mean())  # of the last twentieth: one step is noise


def _column(
    key: str,
    title: str,
    kind: Kind,
    variants: Sequence[Variant],
    measure: Callable[[RunData], float | None],
    *,
    better: Callable[[Sequence[float]], float] | None = None,
    comparable: Callable[[RunData], str] = lambda run: "",
) -> Column:
    """Measure every variant; `better` marks the best of each set of variants for which `comparable` is equal."""
    cells: dict[str, Cell] = {}
    sets: dict[str, list[str]] = {}
    for variant in variants:
        values = [value for value in map(measure, variant.counted) if value is not None and math.isfinite(value)]
        if values:
            cells[variant.name] = Cell(float(np.mean(values)), min(values), max(values), len(values))
            sets.setdefault(comparable(variant.runs[0]), []).append(variant.name)
    if better is not None:
        for names in sets.values():
            best = better([cells[name].mean for name in names])
            for name in names if len(names) > 1 and (best or better is min) else ():  # a score of 0 is no one's best
                if abs(cells[name].mean - best) <= NOT_BETTER:
                    cells[name] = Cell(**{**vars(cells[name]), "is_best": True})
    note = ""
    if better is not None and len(sets) > 1:
        groups = "; ".join(", ".join(names) for names in sets.values())
        note = f"{title}: measured on different data, so compare only within a group: {groups}"
    return Column(key, title, kind, cells, note)


def written(value: float, kind: Kind) -> str:
    """Write a number as its kind is read."""
    if kind == "count":
        return f"{value / 1e9:.2f} B" if value >= 1e9 else f"{value / 1e6:.2f} M" if value >= 1e5 else f"{value:,.0f}"
    if kind == "memory":
        return f"{value / 2**30:.2f} GiB" if value >= 2**30 / 10 else f"{value / 2**20:.1f} MiB"
    if kind == "energy":  # given in joules
        return f"{value / 3.6e6:.2f} kWh" if value >= 3.6e6 / 10 else f"{value / 3.6e3:.2f} Wh"
    if kind == "minutes":
        return f"{value:.1f} min" if value >= 1 else f"{value * 60:.1f} s"
    if kind == "share":
        return f"{value:.1%}"
    return f"{value:.1f}" if kind == "speed" else f"{value:.4g}" if kind == "score" else f"{value:.4f}"
