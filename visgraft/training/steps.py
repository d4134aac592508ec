"""The batches of every step, decoded ahead by worker processes and handed over in order.

In: a planner and this process's number among the others. Out: for every step its plan, the micro-batches of this
process, and the samples that turned out bad.

    for step in load_steps(planner, position, epochs=1.0, settings=loader_settings): ...
    step = cut_finer(step, processor, settings=smaller)       # where memory ran out
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch.utils.data import DataLoader, Dataset

from visgraft.data.batch import Batch, EncodedSample, Layout, split_dialogs
from visgraft.data.images.feature_cache import FeatureCache
from visgraft.data.packing import fill_rows, split_by_positions
from visgraft.data.sample import Sample
from visgraft.data.sources import BadSample
from visgraft.errors import BadSampleError
from visgraft.processor import Processor
from visgraft.segments import PAD
from visgraft.training.interrupt import leave_signals_to_the_main_process
from visgraft.training.plan import Planner, Position, StepPlan


@dataclass(frozen=True)
class LoaderSettings:
    """How batches are made: their layout and size (None: no limit; of rows: as short as may be), and who makes them."""

    layout: Layout
    max_pixels: int
    micro_batch_rows: int | None = None
    micro_batch_positions: int | None = None
    row_positions: int | None = None
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
        samples: what each batch was made of, in its order, without the pixels, which the batch has.
        num_samples: samples in that share.
        num_texts: how many of that share's texts are of each source.
        bad: samples that cannot be used.
    """

    plan: StepPlan
    batches: tuple[Batch, ...]
    samples: tuple[tuple[EncodedSample, ...], ...]
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
        worker_init_fn=leave_signals_to_the_main_process if settings.num_workers else None,
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
        parts = micro_batches(encoded, settings=self.settings)
        plan = plan.holding(0, num_processes=0)  # the samples need not travel back
        step = Step(plan, batches=(), samples=(), num_samples=len(encoded), num_texts=num_texts, bad=tuple(bad))
        return _with_batches(step, parts, self.planner.processor, layout=self.settings.layout)

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


Rows = list[list[EncodedSample]]


def micro_batches(encoded: Sequence[EncodedSample], *, settings: LoaderSettings) -> list[Rows]:
    """Plan micro-batches: rows of like length together, and in the layout "shared" filled with whole samples."""
    cached = [sample for sample in encoded if "features" in sample.vision_inputs]
    if cached and any(sample.vision_inputs and "features" not in sample.vision_inputs for sample in encoded):
        # Images that the cache lacks come as pixels, and those go through the encoder together.
        others = [sample for sample in encoded if "features" not in sample.vision_inputs]
        return micro_batches(others, settings=settings) + micro_batches(cached, settings=settings)
    samples = list(encoded) if settings.layout == "shared" else split_dialogs(encoded)
    rows = [[sample] for sample in samples]
    if settings.layout == "shared":
        lengths = [sample.num_positions for sample in samples]
        limits = [limit for limit in (settings.row_positions, settings.micro_batch_positions) if limit is not None]
        filled = fill_rows(lengths, row_positions=min(limits) if settings.row_positions else None)
        if limits and max((_length(row, lengths) for row in filled), default=0) > min(limits):
            filled = fill_rows(lengths, row_positions=min(limits))
        rows = [[samples[index] for index in row] for row in filled]
    costs = [sum(sample.num_positions for sample in row) for row in rows]
    parts = split_by_positions(costs, max_cost=settings.micro_batch_positions, max_rows=settings.micro_batch_rows)
    return [[rows[index] for index in part] for part in parts]


def cut_finer(step: Step, processor: Processor, *, settings: LoaderSettings) -> Step:
    """Make a step's batches again where one of them is larger than `settings` allow now, and could be smaller."""
    limit = settings.micro_batch_positions
    if limit is None or all(batch.kind.numel() <= limit or num_groups(batch) == 1 for batch in step.batches):
        return step
    whole = chain.from_iterable(map(whole_samples, step.batches, step.samples))
    return _with_batches(step, micro_batches(list(whole), settings=settings), processor, layout=settings.layout)


def num_groups(batch: Batch) -> int:
    """Count what could be a micro-batch of its own: samples or, in the layout "rows", rows."""
    return len(batch.sample_ids)


def make_batches(parts: Sequence[Rows], collate: Callable[..., Batch], *, layout: Layout) -> tuple[Batch, ...]:
    """Collate planned micro-batches, with a processor's `collate` or that of `data.batch`."""
    batches = []
    for rows in parts:
        count = iter(range(sum(map(len, rows))))
        filled = [[next(count) for _ in row] for row in rows] if layout == "shared" else None
        batches.append(collate([sample for row in rows for sample in row], layout=layout, rows=filled))
    return tuple(batches)


def whole_samples(batch: Batch, samples: Sequence[EncodedSample]) -> Iterator[EncodedSample]:
    """Give the samples of a batch their pixels back, as views of the batch's."""
    start = 0
    for sample in samples:
        end = start + len(sample.num_image_tokens)
        pixels = {key: tensor[start:end] for key, tensor in batch.vision_inputs.items()} if end > start else {}
        yield replace(sample, vision_inputs=pixels)
        start = end


def _with_batches(step: Step, parts: Sequence[Rows], processor: Processor, *, layout: Layout) -> Step:
    samples = tuple(tuple(replace(sample, vision_inputs={}) for row in rows for sample in row) for rows in parts)
    return replace(step, batches=make_batches(parts, processor.collate, layout=layout), samples=samples)


def _length(row: Sequence[int], lengths: Sequence[int]) -> int:
    return sum(lengths[index] for index in row)
