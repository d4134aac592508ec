"""The batches of every step, decoded ahead by worker processes and handed over in order.

In: a planner and this process's number among the others. Out: for every step its plan, the micro-batches of this
process, and the samples that turned out bad.

    for step in load_steps(planner, position, epochs=1.0, settings=loader_settings): ...
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch.utils.data import DataLoader, Dataset

from visgraft.data.batch import Batch, EncodedSample, Layout, split_by_positions, split_dialogs
from visgraft.data.sources import BadSample
from visgraft.errors import BadSampleError
from visgraft.train.plan import Planner, Position, StepPlan


@dataclass(frozen=True)
class LoaderSettings:
    """How batches are made: their layout and size, and who makes them."""

    layout: Layout
    micro_batch_rows: int | None
    max_pixels: int
    num_workers: int = 0
    process_index: int = 0
    num_processes: int = 1
    pin_memory: bool = False


@dataclass(frozen=True)
class Step:
    """One step as this process sees it; `batches` is empty where all its samples were bad, or there were none."""

    plan: StepPlan
    batches: tuple[Batch, ...]
    bad: tuple[BadSample, ...]

    def pin_memory(self) -> Step:
        """Return the step with its batches in page-locked memory (the data loader calls this)."""
        return replace(self, batches=tuple(batch.pin_memory() for batch in self.batches))


def load_steps(planner: Planner, position: Position, *, epochs: float, settings: LoaderSettings) -> Iterator[Step]:
    """Make the steps from a position to the end of the run, each ready before it is needed."""
    loader = DataLoader(
        StepDataset(planner, settings),
        sampler=planner.steps(position, epochs=epochs),  # plans are drawn in the main process, in order
        batch_size=None,
        num_workers=settings.num_workers,
        worker_init_fn=_leave_interrupts_to_the_main_process if settings.num_workers else None,
        pin_memory=settings.pin_memory,
    )
    return iter(loader)


class StepDataset(Dataset[Step]):
    """Turn the plan of a step into its batches."""

    def __init__(self, planner: Planner, settings: LoaderSettings) -> None:
        self.planner = planner
        self.settings = settings

    def __getitem__(self, plan: StepPlan) -> Step:
        """Decode this process's share of a step."""
        encoded: list[EncodedSample] = []
        bad = list(plan.bad) if self.settings.process_index == 0 else []
        for group in plan.groups[self.settings.process_index :: self.settings.num_processes]:
            try:
                sample = self.planner.sample(group)
                encoded.append(self.planner.processor.encode(sample, max_pixels=self.settings.max_pixels))
            except BadSampleError as error:
                bad.append(self.planner.sources.bad_sample(group.sample_index, str(error)))
        return Step(plan=plan, batches=self.batches(encoded), bad=tuple(bad))

    def batches(self, encoded: list[EncodedSample]) -> tuple[Batch, ...]:
        """Lay samples out as micro-batches, rows of like length together."""
        rows = encoded if self.settings.layout == "shared" else split_dialogs(encoded)
        parts = split_by_positions(
            [row.num_positions for row in rows], max_cost=None, max_rows=self.settings.micro_batch_rows
        )
        collate = self.planner.processor.collate
        return tuple(collate([rows[i] for i in part], layout=self.settings.layout) for part in parts)


def _leave_interrupts_to_the_main_process(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
