"""What must be so before anything is downloaded or trained: M3IT in its form, a GPU, room in its memory.

In: the folder of the data, the runs to come. Out: the rows that were found, beside those that the card counts; or an
error that says everything that is missing, and what to do.

    counts = count_rows(Path("~/m3it"))
    check_device("full", device=pick_device(None))
    check_memory([("modules", run) for run in experiment.runs], gpu=local_gpu(), computer=this_computer())
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch

from visgraft.data.readers import m3it
from visgraft.data.readers.m3it_tasks import TASKS
from visgraft.errors import BadSampleError, ConfigError, DataError, MissingAssetError, VisgraftError
from visgraft.estimate.estimate import Estimate, estimate
from visgraft.estimate.gpus import GIB, Gpu
from visgraft.experiment import PlannedRun
from visgraft.reporting.progress import working
from visgraft.reproduce.article import NEEDED, Scale

EXPORT = "docs/export_m3it.py"
NAMED = 6  # in one message, of what is wrong


class Count(TypedDict):
    """Rows of a split of a task: how many were found, and how many the card counts; null: it does not say."""

    found: int
    card: int | None


def count_rows(data: Path) -> dict[str, dict[str, Count]]:
    """Count the rows of every task and split that something reads: task -> split -> rows; the first row is looked at.

    Raises:
        DataError: the folder is not of M3IT's form, or lacks some of it; what it lacks is named.
    """
    if not data.is_dir():
        raise DataError(f"--data {data}: no such folder; export M3IT as docs/data.md says, with {EXPORT}")
    counts: dict[str, dict[str, Count]] = {}
    wrong: dict[str, str] = {}
    wanted = [(task, split) for task, splits in NEEDED.items() for split in splits]
    with working("counting rows", total=len(wanted), unit="splits") as advance:
        for task, split in wanted:
            try:
                found = _count(data, task, split)
                counts.setdefault(task, {})[split] = Count(found=found, card=TASKS[task].expected(split))
            except (DataError, MissingAssetError, ConfigError) as error:
                wrong[f"{task}/{split}"] = str(error)
            advance(1)
    if wrong:
        more = f" and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        raise DataError(
            f"--data {data}: is not M3IT as the article used it: {', '.join(list(wrong)[:NAMED])}{more} cannot be "
            f"read; the first: {next(iter(wrong.values()))}. It needs TASK/SPLIT.jsonl for {len(NEEDED)} tasks, which "
            f"{EXPORT} writes (docs/data.md); what is there it keeps"
        )
    return counts


def _count(data: Path, task: str, split: str) -> int:
    source = m3it.read(data, split=split, tasks=task)
    try:
        first = source[0]
    except BadSampleError as error:
        raise DataError(f"m3it: the first row of {task}, {split}: {error}") from error
    if not first.images or not first.dialogs:
        raise DataError(f"m3it: the first row of {task}, {split}, has no image or no text")
    return len(source)


def revision_of(data: Path) -> str | None:
    """Read which commit of M3IT a folder was exported from; None where it does not say."""
    kept = data / "revision.txt"
    return kept.read_text(encoding="utf-8").strip() if kept.is_file() else None


def check_device(scale: Scale, *, device: torch.device) -> None:
    """Refuse to begin on a CPU what only ends on a GPU.

    Raises:
        ConfigError: there is no GPU, and the scale is none for a CPU.
    """
    if scale != "smoke" and device.type == "cpu":
        raise ConfigError(
            f"--scale {scale}: got a machine without a GPU that PyTorch sees (`visgraft env` says why), need one for "
            "models of 7 billion parameters; --scale smoke rehearses everything here, on tiny models"
        )


def check_memory(runs: Sequence[tuple[str, PlannedRun]], *, gpu: Gpu, computer: Gpu) -> list[dict[str, Any]]:
    """Estimate every run from configurations alone, before weights are downloaded.

    Args:
        runs: to come, each with the name of its experiment.
        gpu: on which each is to run.
        computer: into whose memory weights are read.

    Returns:
        What was estimated of each run: experiment, variant, total_bytes, seconds (None: the GPU's rate is not known).

    Raises:
        ConfigError: one does not fit; with the changes that would make it.
        VisgraftError: one could run nowhere, or its configuration cannot be had; with its name.
    """
    found: list[dict[str, Any]] = []
    too_large: list[str] = []
    with working("estimating", total=len(runs), unit="runs") as advance:
        for experiment, run in runs:
            name = f"{experiment}, {run.variant}"
            try:
                each = estimate(run.recipe, gpu=gpu, measure=False)
            except VisgraftError as error:
                raise type(error)(f"{name}: {error}") from error
            values = {"experiment": experiment, "variant": run.variant}
            found.append({**values, "total_bytes": each.cost.total_bytes, "seconds": each.seconds})
            if not each.fits:
                too_large.append(f"{name} takes {_gib(each.cost.total_bytes)}{_what_helps(each)}")
            elif each.cost.loading_bytes > computer.memory_bytes:
                too_large.append(
                    f"reading the weights of {name} takes {_gib(each.cost.loading_bytes)} of the computer's own "
                    f"memory, of {_gib(computer.memory_bytes)}"
                )
            advance(1)
    if too_large:
        raise ConfigError(
            f"{gpu.name} has {_gib(gpu.memory_bytes)}, and that is not enough: {'; '.join(too_large)}. Take a larger "
            "machine, leave experiments out with --only, or change a setting of all runs with --set, which the folder "
            "then says"
        )
    return found


def _what_helps(each: Estimate) -> str:
    if not each.changes or each.changes[-1].total_bytes > each.gpu.memory_bytes:
        return ""
    return f" ({' '.join(f'--set {change.setting}' for change in each.changes)} would do)"


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
