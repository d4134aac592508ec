"""Read the runs that are to be compared, and sort them into variants: runs that differ in nothing but their seed.

In: run folders and experiment folders. Out: `Comparison`, which the other files of this folder read.

    comparison = collect(["runs/modules"])
    [variant.name for variant in comparison.variants]
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from visgraft.compare.curves import training_curve, validation_curve
from visgraft.compare.differences import all_settings, data_key, without_seed
from visgraft.compare.names import variant_names
from visgraft.compare.variants import Comparison, RunData, Variant
from visgraft.config import load_recipe
from visgraft.errors import CheckpointError, ConfigError
from visgraft.listing import listing
from visgraft.runs import Run, read_experiment_record


def choose(comparison: Comparison, only: Sequence[str]) -> list[str]:
    """Give the names of the variants that are to be shown; none named = all.

    `only` holds names of variants, or of folders of their runs.

    Raises:
        ConfigError: there is no such variant.
    """
    names = [variant.name for variant in comparison.variants]
    of_folder: dict[str, list[str]] = {}
    for variant in comparison.variants:
        for run in variant.runs:
            of_folder.setdefault(run.folder.name, []).append(variant.name)
    chosen: set[str] = set()
    for name in only:
        if name not in names and name not in of_folder:
            near = get_close_matches(name, [*names, *of_folder], n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
            raise ConfigError(f"--only {name}: no variant has that name; {hint}")
        chosen |= {name} if name in names else set(of_folder[name])
    return [name for name in names if name in chosen or not only]


def check_common_data(comparison: Comparison) -> None:
    """Refuse variants of which no two share any data: not one number of theirs could be compared.

    Raises:
        ConfigError: with what each of them read.
    """
    seen: set[str] = set()
    for variant in comparison.variants:
        keys = {key for split in ("training", "validation") if (key := data_key(variant.runs[0], split))}
        if keys & seen:
            return
        seen |= keys
    if len(comparison.variants) > 1:
        names = ", ".join(variant.name for variant in comparison.variants)
        raise ConfigError(
            f"{names}: no two of these share training or held-out data, so no number of one compares with one of "
            "another; compare runs with the same data.validation, or put the same pictures to all of them with --image"
        )


@dataclass(frozen=True)
class FoundRun:
    """A run folder on its way in: what is said of it, and whether it was named itself or found in an experiment."""

    folder: Path
    is_named: bool
    variant: str | None = None

    @property
    def is_begun(self) -> bool:
        """Whether it has a recipe yet."""
        return (self.folder / "recipe.yaml").is_file()


def collect(paths: Sequence[str | Path]) -> Comparison:
    """Read runs and experiments.

    Raises:
        CheckpointError: a folder is neither, a run that was named has no metrics yet, or nothing is left to compare.
        ConfigError: a run's recipe cannot be read.
    """
    notes: list[str] = []
    read: list[RunData] = []
    for found in find_runs(paths):
        run = read_run(found.folder, variant=found.variant)
        if len(run.training):
            read.append(run)
        elif found.is_named:
            raise CheckpointError(
                f"{found.folder}: this run has no metrics yet, so there is nothing to compare; let it take a step, or "
                "leave it out"
            )
        else:
            notes.append(f"{found.folder.name}: {_why_empty(found.folder)}")
    if not read:
        names = ", ".join(str(path) for path in paths)
        raise CheckpointError(f"{names}: no run there has metrics yet; {'; '.join(notes) or 'there are no runs'}")
    return Comparison(variants=_group(read), notes=tuple(notes))


def find_runs(paths: Sequence[str | Path]) -> list[FoundRun]:
    """List the run folders that paths name: runs themselves, or experiments, which hold runs; each once.

    Raises:
        CheckpointError: a path is neither.
    """
    found: dict[Path, FoundRun] = {}
    for path in paths:
        folder = Path(path).expanduser().absolute()
        if (folder / "recipe.yaml").is_file():
            inside = [FoundRun(folder, is_named=True)]
        else:
            if not folder.is_dir() or (folder / "config.json").is_file():
                Run.open(folder)  # says what it is instead of a run
            listed = _listed(folder)
            inside = [run for run in listed if run.is_begun] or [
                FoundRun(file.parent, is_named=False)
                for depth in ("*", "*/*")
                for file, _ in listing(folder, f"{depth}/recipe.yaml")
            ]
            if not inside and not listed:
                raise CheckpointError(
                    f"{path}: neither a run nor a folder of runs: it holds no recipe.yaml; need what `visgraft train` "
                    "or `visgraft experiment` made"
                )
        for run in inside:
            found.setdefault(run.folder, run)
    return list(found.values())


def _listed(folder: Path) -> list[FoundRun]:
    """List the runs of an experiment in its own order, those that were not begun too."""
    record = read_experiment_record(folder) or {"runs": []}
    return [FoundRun(folder / run["folder"], is_named=False, variant=str(run["variant"])) for run in record["runs"]]


def num_waiting(paths: Sequence[str | Path]) -> int:
    """Count the runs of experiments that were neither begun nor failed before they began."""
    listed = [run for path in paths for run in _listed(Path(path).expanduser().absolute())]
    return sum(Run(run.folder).status() == "new" for run in listed)


def read_run(folder: Path, *, variant: str | None = None) -> RunData:
    """Read one run folder; what older runs lack stays empty."""
    run = Run.open(folder)
    try:
        recipe = load_recipe(run.folder)
    except ConfigError as error:
        raise ConfigError(f"{folder}: its recipe cannot be read: {error}") from error
    training = training_curve(run.steps())
    validation, scores = validation_curve(run.validations(), training)
    return RunData(
        folder=run.folder,
        variant=variant or "",
        seed=recipe.train.seed,
        recipe=recipe,
        settings=all_settings(recipe),
        training=training,
        validation=validation,
        scores=scores,
        summary=run.read_summary() or {},
        sample_answers=run.read("samples"),
        status=run.status(),
    )


def _why_empty(folder: Path) -> str:
    failure = Run(folder).read_failure()
    return "not begun yet" if failure is None else f"failed before its first step: {failure}"


def _group(runs: Sequence[RunData]) -> tuple[Variant, ...]:
    """Put runs that differ only in their seed into one variant, in the order of the first of each."""
    groups: dict[str, list[RunData]] = {}
    for run in runs:
        key = json.dumps([run.variant, without_seed(run.settings)], sort_keys=True, default=str)
        groups.setdefault(key, []).append(run)
    ordered = [sorted(group, key=lambda run: run.seed) for group in groups.values()]
    return tuple(
        Variant(name, tuple(replace(run, variant=name) for run in group))
        for name, group in zip(variant_names(ordered), ordered, strict=True)
    )
