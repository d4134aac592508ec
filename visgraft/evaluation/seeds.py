"""Runs of one recipe that differ in their seed alone: a second level of chance, shown apart from that of the images.

In: `Scored` of models. Out: groups of runs, each score's mean over them with the lowest and the highest.

    for group in seed_groups(scored): print(seeds_in_words(group))
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from visgraft.config import load_recipe, recipe_to_dict
from visgraft.errors import VisgraftError
from visgraft.evaluation.scoring import Scored


@dataclass(frozen=True)
class SeedGroup:
    """Runs that differ in their seed alone.

    Attributes:
        models: their names.
        scores: name -> (mean, lowest, highest) over the seeds.
    """

    models: tuple[str, ...]
    scores: Mapping[str, tuple[float, float, float]]

    def as_json(self) -> dict[str, Any]:
        """Give it as plain values."""
        scores = {name: dict(zip(("mean", "low", "high"), of, strict=True)) for name, of in self.scores.items()}
        return {"models": list(self.models), "num_seeds": len(self.models), "scores": scores}


def seed_groups(scored: Sequence[Scored]) -> list[SeedGroup]:
    """Gather the runs among some models that differ in their seed alone; a run that stands alone is no group."""
    groups: dict[str, list[Scored]] = {}
    for each in scored:
        recipe = _without_seed(each.model)
        if recipe is not None:
            groups.setdefault(recipe, []).append(each)
    found = []
    for group in groups.values():
        if len(group) < 2:
            continue
        names = [name for name in group[0].intervals if all(name in each.intervals for each in group)]
        values = {name: [each.intervals[name].value for each in group] for name in names}
        scores = {name: (mean(of), min(of), max(of)) for name, of in values.items()}
        found.append(SeedGroup(tuple(each.model for each in group), scores))
    return found


def seeds_in_words(group: SeedGroup) -> str:
    """Say what the seeds of a recipe make of each score, as a sentence."""
    scores = "; ".join(f"{name} {mid:.4f} ({low:.4f} to {high:.4f})" for name, (mid, low, high) in group.scores.items())
    return f"over {len(group.models)} training seeds ({', '.join(group.models)}): {scores}"


def _without_seed(model: str) -> str | None:
    """Give the recipe of a run without its seed and where it lies; None of what is no run."""
    folder = Path(model).expanduser()
    if not (folder / "recipe.yaml").is_file():
        return None
    try:
        values = recipe_to_dict(load_recipe(folder))
    except VisgraftError:
        return None
    values.get("train", {}).pop("seed", None)
    return json.dumps({key: value for key, value in values.items() if key not in ("output", "name")}, default=str)
