"""The batches of every step, decoded ahead by worker processes and handed over in order.

In: a planner and this process's number among the others. Out: for every step its plan, the micro-batches of this
process, and the samples that turned out bad.

    for step in (steps := load_steps(planner, position, epochs=1.0, settings=loader_settings)): ...
    step = cut_finer(step, processor, settings=smaller)       # where memory ran out
    steps.settings = smaller                                  # what is asked for from here on comes so

What a step is cut into is a function of its samples and of the settings alone, cut at once or cut again: so a run that
went on after its micro-batches were halved, and one that began behind it, compute the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from visgraft.data.batch import Batch, EncodedSample, Layout, split_dialogs
from visgraft.data.bundle import Bundle, make_bundle
from visgraft.data.images.feature_cache import FeatureCache
from visgraft.data.packing import fill_rows, split_by_positions
from visgraft.data.prompt import EncodedDialog
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

    def limited(self, positions: int | None) -> LoaderSettings:
        """Return them with micro-batches of no more than so many positions; None: as they are."""
        limits = [limit for limit in (self.micro_batch_positions, positions) if limit is not None]
        return replace(self, micro_batch_positions=min(limits, default=None))


Parts = tuple[tuple[tuple[int, ...], ...], ...]  # micro-batches of rows of samples, as indices


@dataclass(frozen=True)
class Step:
    """One step as this process sees it.

    Attributes:
        plan: which groups form this process's share of it.
        batches: this process's share, pixels as bytes (see `Processor.finish`); empty where all its samples were bad,
            or there were none for it.
        samples: what each batch was made of, in its order, without the pixels, which the batch has.
        parts: the same as indices into this process's share (in the layout "rows": into its dialogs).
        limit: the largest micro-batch, in positions, that was allowed when it was cut.
        num_samples: samples in that share.
        num_texts: how many of that share's texts are of each source.
        bad: samples that cannot be used.
    """

    plan: StepPlan
    batches: tuple[Batch, ...]
    samples: tuple[tuple[EncodedSample, ...], ...]
    parts: Parts
    limit: int | None
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


class Steps(Iterator[Step]):
    """The steps from a position to the end of the run, each ready before it is needed."""

    def __init__(self, planner: Planner, position: Position, *, epochs: float, settings: LoaderSettings) -> None:
        # Apart from self, as a circle would keep the workers waiting until somebody collects the garbage.
        share = {"process_index": settings.process_index, "num_processes": settings.num_processes}
        self._orders = _Orders(planner.steps(position, epochs=epochs, **share), settings)
        loader = DataLoader(  # its own generator: making one leaves the random state of the run alone
            _Worker(planner),
            sampler=self._orders,
            batch_size=None,
            generator=torch.Generator(),
            num_workers=settings.num_workers,
            worker_init_fn=leave_signals_to_the_main_process if settings.num_workers else None,
            pin_memory=settings.pin_memory,
        )
        self._bundles = iter(loader)

    def __next__(self) -> Step:
        step: Step = next(self._bundles).open()
        return step

    @property
    def settings(self) -> LoaderSettings:
        """How batches are made; others count for what is asked for from then on, with workers some steps ahead."""
        return self._orders.settings

    @settings.setter
    def settings(self, settings: LoaderSettings) -> None:
        self._orders.settings = settings


def load_steps(planner: Planner, position: Position, *, epochs: float, settings: LoaderSettings) -> Steps:
    """Make the steps from a position to the end of the run."""
    return Steps(planner, position, epochs=epochs, settings=settings)


class _Order(NamedTuple):
    """What a worker is asked for."""

    plan: StepPlan
    settings: LoaderSettings


@dataclass
class _Orders(Iterator[_Order]):
    """Plans, drawn in the main process and in order, with the settings of that moment."""

    plans: Iterator[StepPlan]
    settings: LoaderSettings

    def __next__(self) -> _Order:
        return _Order(next(self.plans), self.settings)


class _Worker(Dataset[Bundle]):
    """What a worker does: steps in one piece each."""

    def __init__(self, planner: Planner) -> None:
        self.planner = planner

    def __getitem__(self, order: _Order) -> Bundle:
        return make_bundle(StepDataset(self.planner, order.settings)[order.plan])


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
        plan = plan.without_samples()  # they need not travel back
        step = Step(
            plan, batches=(), samples=(), parts=(), limit=self.settings.micro_batch_positions,
            num_samples=len(encoded), num_texts=num_texts, bad=tuple(bad),
        )  # fmt: skip
        units = divided(encoded, layout=self.settings.layout)
        return _with_batches(
            step, units, cut(units, settings=self.settings), self.planner.processor, settings=self.settings
        )

    def encode(self, plan: StepPlan) -> tuple[list[EncodedSample], list[BadSample]]:
        """Encode the samples of this process, and say which of them cannot be used."""
        processor = self.planner.processor
        encoded: list[EncodedSample] = []
        bad: list[BadSample] = []
        texts = plan.texts or (None,) * len(plan.groups)
        for group, text in zip(plan.groups, texts, strict=True):
            try:
                sample = self.planner.sample(group) if text is None or text.sample is None else text.sample
                # of several dialogs those that are good; the plan has named the others
                dialogs = processor.encode_text(sample, bad=[]) if text is None else text.dialogs
                encoded.append(self._with_images(sample, dialogs))
            except BadSampleError as error:
                bad.append(self.planner.bad_sample(group, str(error)))
        return encoded, bad

    def _with_images(self, sample: Sample, dialogs: tuple[EncodedDialog, ...]) -> EncodedSample:
        """Add the pixels of its images, or their features where all of them are in the cache."""
        processor, settings = self.planner.processor, self.settings
        features = None if settings.vision_cache is None else settings.vision_cache.find(sample.images)
        if features is None:
            return processor.encode_images(
                sample, dialogs, max_pixels=settings.max_pixels, exact_pixels=settings.exact_pixels, as_bytes=True
            )
        counts = processor.count_image_tokens(features)
        return EncodedSample(dialogs, features, counts, id=sample.id, source=sample.source)


Rows = list[list[EncodedSample]]


def micro_batches(encoded: Sequence[EncodedSample], *, settings: LoaderSettings) -> list[Rows]:
    """Plan micro-batches: rows of like length together, and in the layout "shared" filled with whole samples."""
    units = divided(encoded, layout=settings.layout)
    return [[[units[index] for index in row] for row in part] for part in cut(units, settings=settings)]


def divided(encoded: Sequence[EncodedSample], *, layout: Layout) -> list[EncodedSample]:
    """Give what is never cut: whole samples, or in the layout "rows" a sample of each dialog."""
    return list(encoded) if layout == "shared" else split_dialogs(encoded)


def cut(units: Sequence[EncodedSample], *, settings: LoaderSettings) -> Parts:
    """Plan the micro-batches of what `divided` gave, as indices into it."""
    # Images that the cache lacks come as pixels, and those go through the encoder together.
    has_features = ["features" in unit.vision_inputs for unit in units]
    is_mixed = any(unit.vision_inputs and not has for unit, has in zip(units, has_features, strict=True))
    if is_mixed and any(has_features):
        chosen = [[index for index, has in enumerate(has_features) if has == kind] for kind in (False, True)]
    else:
        chosen = [list(range(len(units)))]
    parts: list[tuple[tuple[int, ...], ...]] = []
    for indices in chosen:
        lengths = [units[index].num_positions for index in indices]
        rows = fill(lengths, settings=settings) if settings.layout == "shared" else [[n] for n in range(len(lengths))]
        costs = [_length(row, lengths) for row in rows]
        limit, most = settings.micro_batch_positions, settings.micro_batch_rows
        for part in split_by_positions(costs, max_cost=limit, max_rows=most):
            parts.append(tuple(tuple(indices[n] for n in rows[number]) for number in part))
    return tuple(parts)


def fill(lengths: Sequence[int], *, settings: LoaderSettings) -> list[list[int]]:
    """Plan which samples of these lengths share a row."""
    limits = [limit for limit in (settings.row_positions, settings.micro_batch_positions) if limit is not None]
    filled = fill_rows(lengths, row_positions=min(limits) if settings.row_positions else None)
    if limits and max((_length(row, lengths) for row in filled), default=0) > min(limits):
        filled = fill_rows(lengths, row_positions=min(limits))
    return filled


def cut_finer(step: Step, processor: Processor, *, settings: LoaderSettings) -> Step:
    """Make a step's batches again where it was cut under another limit than `settings` have now.

    The batches are those that it would have had under this limit from the beginning.
    """
    if step.limit == settings.micro_batch_positions:
        return step
    step = replace(step, limit=settings.micro_batch_positions)
    in_order = chain.from_iterable(chain.from_iterable(step.parts))
    whole = chain.from_iterable(map(whole_samples, step.batches, step.samples))
    units = [unit for _, unit in sorted(zip(in_order, whole, strict=True), key=lambda pair: pair[0])]
    parts = cut(units, settings=settings)
    return step if parts == step.parts else _with_batches(step, units, parts, processor, settings=settings)


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


def _with_batches(
    step: Step, units: Sequence[EncodedSample], parts: Parts, processor: Processor, *, settings: LoaderSettings
) -> Step:
    of_parts = [[[units[index] for index in row] for row in part] for part in parts]
    samples = tuple(tuple(replace(unit, vision_inputs={}) for row in rows for unit in row) for rows in of_parts)
    batches = make_batches(of_parts, processor.collate, layout=settings.layout)
    return replace(step, batches=batches, samples=samples, parts=parts)


def _length(row: Sequence[int], lengths: Sequence[int]) -> int:
    return sum(lengths[index] for index in row)
