"""The batches of every step, decoded ahead by worker processes and handed over in order.

In: a planner and this process's number among the others. Out: for every step its plan, the micro-batches of this
process, and the samples that turned out bad.

    for step in load_steps(planner, position, epochs=1.0, settings=loader_settings): ...
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch.utils.data import DataLoader, Dataset

from visgraft.data.batch import PAD, Batch, EncodedSample, Layout, split_by_positions, split_dialogs
from visgraft.data.feature_cache import FeatureCache
from visgraft.data.sample import Sample
from visgraft.data.sources import BadSample
from visgraft.errors import BadSampleError
from visgraft.train.plan import Planner, Position, StepPlan


@dataclass(frozen=True)
class LoaderSettings:
    """How batches are made: their layout and size, and who makes them."""

    layout: Layout
    micro_batch_rows: int | None
    max_pixels: int
    exact_pixels: bool = True
    num_workers: int = 0
    process_index: int = 0
    num_processes: int = 1
    pin_memory: bool = False
    vision_cache: FeatureCache | None = None


@dataclass(frozen=True)
class Step:
    """One step as this process sees it.

    Attributes:
        plan: which groups form it, over all processes.
        batches: this process's share, pixels as bytes (see `Processor.finish`); empty where all its samples were bad,
            or there were none for it.
        num_samples: samples in that share.
        num_texts: how many of that share's texts are of each source.
        bad: samples that cannot be used.
    """

    plan: StepPlan
    batches: tuple[Batch, ...]
    num_samples: int
    num_texts: Mapping[str, int]
    bad: tuple[BadSample, ...]

    def counts(self) -> dict[str, int]:
        """Count what this process's share consists of."""
        return {
            "answer_characters": sum(batch.num_answer_characters for batch in self.batches),
            "text_tokens": sum(batch.num_text_tokens for batch in self.batches),
            "image_tokens": sum(int(batch.num_image_tokens.sum()) for batch in self.batches),
            "samples": self.num_samples,
            "dialogs": sum(batch.num_dialogs for batch in self.batches),
            "truncated": sum(batch.num_truncated for batch in self.batches),
            "positions": sum(batch.kind.numel() for batch in self.batches),
            "pads": sum(int((batch.kind == PAD).sum()) for batch in self.batches),
        }

    def pin_memory(self) -> Step:
        """Return the step with its batches in page-locked memory (the data loader calls this)."""
        return replace(self, batches=tuple(batch.pin_memory() for batch in self.batches))


def load_steps(planner: Planner, position: Position, *, epochs: float, settings: LoaderSettings) -> Iterator[Step]:
    """Make the steps from a position to the end of the run, each ready before it is needed."""
    loader = DataLoader(  # its own generator: making one leaves the random state of the run alone
        StepDataset(planner, settings),
        # Plans are drawn in the main process, in order.
        sampler=(
            plan.holding(settings.process_index, num_processes=settings.num_processes)
            for plan in planner.steps(position, epochs=epochs)
        ),
        batch_size=None,
        generator=torch.Generator(),
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
        encoded, bad = self.encode(plan)
        if self.settings.process_index == 0:
            bad = [*plan.bad, *bad]
        num_texts: Counter[str] = Counter()
        for sample in encoded:
            num_texts[sample.source or ""] += len(sample.dialogs)
        batches = self.batches(encoded)
        plan = plan.holding(0, num_processes=0)  # the samples need not travel back
        return Step(plan=plan, batches=batches, num_samples=len(encoded), num_texts=num_texts, bad=tuple(bad))

    def encode(self, plan: StepPlan) -> tuple[list[EncodedSample], list[BadSample]]:
        """Encode the samples of this process, and say which of them cannot be used."""
        processor, settings = self.planner.processor, self.settings
        encoded: list[EncodedSample] = []
        bad: list[BadSample] = []
        for group in plan.groups[self.settings.process_index :: self.settings.num_processes]:
            try:
                sample = self.planner.sample(group)
                exact, most = settings.exact_pixels, settings.max_pixels
                made = self._from_cache(sample)
                if made is None:
                    made = processor.encode(sample, max_pixels=most, exact_pixels=exact, as_bytes=True)
                encoded.append(made)
            except BadSampleError as error:
                bad.append(self.planner.bad_sample(group, str(error)))
        return encoded, bad

    def batches(self, encoded: list[EncodedSample]) -> tuple[Batch, ...]:
        """Lay samples out as micro-batches, rows of like length together."""
        if not encoded:
            return ()
        rows = encoded if self.settings.layout == "shared" else split_dialogs(encoded)
        cached = [row for row in rows if "features" in row.vision_inputs]
        if not cached or all("features" in row.vision_inputs for row in rows if row.vision_inputs):
            return self._micro_batches(rows)
        # Images that the cache lacks come as pixels, and those go through the encoder together.
        return self._micro_batches([row for row in rows if "features" not in row.vision_inputs]) + self._micro_batches(
            cached
        )

    def _micro_batches(self, rows: list[EncodedSample]) -> tuple[Batch, ...]:
        parts = split_by_positions(
            [row.num_positions for row in rows], max_cost=None, max_rows=self.settings.micro_batch_rows
        )
        collate = self.planner.processor.collate
        return tuple(collate([rows[i] for i in part], layout=self.settings.layout) for part in parts)

    def _from_cache(self, sample: Sample) -> EncodedSample | None:
        """Encode a sample without opening its images; None: their features are not all there."""
        processor, cache = self.planner.processor, self.settings.vision_cache
        features = None if cache is None else cache.find(sample.images)
        if features is None:
            return None
        counts = (processor.num_image_tokens,) * len(features)
        return EncodedSample(
            processor.encode_text(sample), {"features": features}, counts, id=sample.id, source=sample.source
        )


def _leave_interrupts_to_the_main_process(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
