"""The runs of an experiment: each variant, at each point of the grid, with each seed, as a checked recipe of its own.

In: an experiment file. Out: an `Experiment`, whose runs are in the order in which they can be run.

    experiment = load_experiment("modules.yaml", only=["lora"], seeds=2, overrides=["train.max_steps=2"])
    [run.folder_name for run in experiment.runs]        # ["lora-seed0", "lora-seed1"]
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any

from visgraft.config import Recipe, Strict, apply_override, load_recipe, set_key
from visgraft.errors import ConfigError
from visgraft.experiment.experiment_file import ExperimentSettings, read_experiment

BROUGHT_ALONG = ("template", "attention")  # settings of the model that start_from leaves to the recipe
SECTIONS = ("model", "train", "data")
OURS = ("name", "output", "train.seed")  # what an experiment itself gives to each run


@dataclass(frozen=True)
class PlannedRun:
    """One run of an experiment.

    Attributes:
        variant: its variant, with its point of the grid.
        seed: its `train.seed`.
        recipe: all of it.
        changes: dotted settings in which the variant differs from the experiment's recipe.
        starts_from: the folder's name of the run whose model it begins with.
    """

    variant: str
    seed: int
    recipe: Recipe
    changes: Mapping[str, Any]
    starts_from: str | None = None

    @property
    def folder_name(self) -> str:
        """The name of its folder, the same at every call."""
        return f"{self.variant}-seed{self.seed}"


@dataclass(frozen=True)
class Experiment:
    """A family of runs, in the order in which they can be run, and the folder for theirs."""

    name: str
    folder: Path
    runs: tuple[PlannedRun, ...]

    def folder_of(self, run: PlannedRun) -> Path:
        """Return where a run is, or will be."""
        return self.folder / run.folder_name


def load_experiment(
    path: str | Path,
    *,
    only: Sequence[str] = (),
    seeds: int | None = None,
    overrides: Sequence[str] = (),
    output: str | Path | None = None,
) -> Experiment:
    """Read an experiment file and make a recipe of every run.

    Args:
        path: the file.
        only: names of variants (`lora`, or a pattern such as `lora*`), empty for all; what they start from comes along.
        seeds: runs of each variant; None: as the file says.
        overrides: settings for all runs, as `--set` takes them; they come over those of the variants.
        output: folder of the experiment; None: one named after the experiment in the recipe's `output`.

    Raises:
        ConfigError: a wrong key or value anywhere, with the variant that it is in; variants that cannot be compared.
    """
    settings, base, beside = read_experiment(path)
    for override in overrides:  # what is wrong with one is wrong without any variant
        apply_override(copied := copy.deepcopy(base), override)
        Strict(Recipe, folder=beside).convert(copied, Recipe, "")
    name = settings.name or Path(path).stem
    folder = Path(base.get("output", "runs")) / name if output is None else Path(output)
    folder = folder.expanduser().absolute()
    first = base.get("train", {}).get("seed", 0)
    runs: dict[str, PlannedRun] = {}
    for variant, changes in _with_grid(settings).items():
        for seed in range(first, first + (settings.seeds if seeds is None else seeds)):
            try:
                run = _plan(variant, changes, seed, base=base, beside=beside, overrides=overrides, folder=folder)
            except ConfigError as error:
                raise ConfigError(f"variants.{variant}: {error}") from error
            runs[run.folder_name] = run
    _check_comparable(list(runs.values()))
    return Experiment(name, folder, tuple(_in_order(runs, wanted=_chosen(runs, only=only))))


# --- Variants and the grid


def _with_grid(settings: ExperimentSettings) -> dict[str, dict[str, Any]]:
    """Cross the variants with the grid: label -> dotted settings."""
    variants = {name: changes or {} for name, changes in settings.variants.items()}
    for name, changes in variants.items():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", name):
            raise ConfigError(
                f"variants: got the name {name!r}, need letters, digits and . _ + -, as it names a folder"
            )
        _check_keys(changes, path=f"variants.{name}")
        _check_source(changes, variants, path=f"variants.{name}")
    _check_keys(settings.grid, path="grid")
    labelled: dict[str, dict[str, Any]] = {}
    for name, changes in variants.items() or [("" if settings.grid else "recipe", {})]:
        for point in product(*settings.grid.values()):
            chosen = dict(zip(settings.grid, point, strict=True))
            label = ",".join(part for part in [name, *_point_label(chosen)] if part)
            if label in labelled:
                raise ConfigError(f"grid: two of its values are both named {label}; keep one of them")
            start = changes.get("model.start_from")
            if isinstance(start, Mapping):
                start = {"variant": ",".join([start["variant"], *_point_label(chosen)])}
            labelled[label] = {**changes, **({} if start is None else {"model.start_from": start}), **chosen}
    return labelled


def _point_label(chosen: Mapping[str, Any]) -> list[str]:
    """Name a point of the grid in a way that a folder's name may take."""
    return [f"{key.rpartition('.')[2]}={re.sub(r'[^A-Za-z0-9._+-]+', '-', _word(key, v))}" for key, v in chosen.items()]


def _word(key: str, value: Any) -> str:
    if isinstance(value, (Mapping, list)):
        raise ConfigError(f"grid.{key}: got {value}, need plain values; what takes several settings is a variant")
    if value is None or isinstance(value, bool):  # as YAML writes them
        return "null" if value is None else str(value).lower()
    return str(value)


def _check_keys(changes: Mapping[str, Any], *, path: str) -> None:
    for key, value in changes.items():
        if key in OURS:
            raise ConfigError(f"{path}: {key}: an experiment sets it itself; name the variant, or say how many seeds")
        if key.partition(".")[0] not in SECTIONS or not all(key.split(".")[1:]) or "." not in key:
            raise ConfigError(
                f"{path}: got {key!r}, need a dotted setting of {', '.join(SECTIONS)}, such as train.language: lora"
            )
        if path == "grid" and not value:
            raise ConfigError(f"grid.{key}: got an empty list, need the values that it takes")


def _check_source(changes: Mapping[str, Any], variants: Mapping[str, Any], *, path: str) -> None:
    """Check that what a variant starts from is there."""
    start = changes.get("model.start_from")
    if not isinstance(start, Mapping):
        return
    if set(start) != {"variant"}:
        raise ConfigError(f"{path}: model.start_from: got {dict(start)}, need {{variant: NAME}} or the path of a run")
    if start["variant"] not in variants:
        raise _no_variant(str(start["variant"]), variants, path=f"{path}: model.start_from")


def _no_variant(name: str, variants: Iterable[str], *, path: str) -> ConfigError:
    near = difflib.get_close_matches(name, list(variants), n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(variants)}"
    return ConfigError(f"{path}: no variant is named {name!r}; {hint}")


# --- Runs


def _plan(
    variant: str,
    changes: Mapping[str, Any],
    seed: int,
    *,
    base: Mapping[str, Any],
    beside: Path,
    overrides: Sequence[str],
    folder: Path,
) -> PlannedRun:
    """Make the recipe of one run."""
    values = copy.deepcopy(dict(base))
    changes = dict(changes)
    start, starts_from = changes.get("model.start_from"), None
    if start is not None:  # it brings its own parts
        values["model"] = {key: value for key, value in values.get("model", {}).items() if key in BROUGHT_ALONG}
    if isinstance(start, Mapping):
        starts_from = f"{start['variant']}-seed{seed}"
        changes["model.start_from"] = str(folder / starts_from)
    for key, value in changes.items():
        set_key(values, key, copy.deepcopy(value))
    for override in overrides:
        apply_override(values, override)
    values |= {"name": variant, "output": str(folder)}
    set_key(values, "train.seed", seed)
    recipe = load_recipe(values, folder=beside)
    return PlannedRun(variant=variant, seed=seed, recipe=recipe, changes=changes, starts_from=starts_from)


def _check_comparable(runs: Sequence[PlannedRun]) -> None:
    """Check that all runs are measured on the same held-out data and asked the same sample prompts."""
    first = runs[0]
    if not first.recipe.data.validation:
        raise ConfigError(
            "recipe: data.validation: missing; an experiment compares its variants on held-out data, so name some"
        )
    for run in runs:
        for key in ("validation", "sample_prompts"):
            if getattr(run.recipe.data, key) != getattr(first.recipe.data, key):
                raise ConfigError(
                    f"variants.{run.variant}: data.{key}: is another than that of {first.variant}; an experiment "
                    "measures all variants on the same, so set it in the recipe"
                )


def _chosen(runs: Mapping[str, PlannedRun], *, only: Sequence[str]) -> list[str]:
    """List the folders' names of the runs that were asked for."""
    chosen: set[str] = set()
    for wanted in only:
        names = [
            name
            for name, run in runs.items()
            if any(fnmatchcase(word, wanted) for word in (run.variant, run.variant.partition(",")[0], name))
        ]
        if not names:
            raise _no_variant(wanted, dict.fromkeys(run.variant for run in runs.values()), path="--only")
        chosen.update(names)
    return [name for name in runs if name in chosen or not only]


def _in_order(runs: Mapping[str, PlannedRun], *, wanted: Sequence[str]) -> list[PlannedRun]:
    """Put every run behind the one that it starts from, which comes along."""
    ordered: dict[str, PlannedRun] = {}

    def add(name: str, waiting: tuple[str, ...]) -> None:
        if name in waiting:
            circle = " -> ".join(runs[each].variant for each in (*waiting, name))
            raise ConfigError(f"variants: they start from one another ({circle}); let one start from the recipe")
        source = runs[name].starts_from
        if source is not None:
            add(source, (*waiting, name))
        ordered.setdefault(name, runs[name])

    for name in wanted:
        add(name, ())
    return list(ordered.values())
