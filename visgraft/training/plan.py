"""Which samples form which step: a pure function of the seed and of how far the run is.

In: sources, a processor (for token counts) and a position. Out: the plan of every step from there on.

    plan = Planner(sources, processor, seed=0, max_dialogs=8, text_tokens_per_step=2048)
    for step in plan.steps(Position(0, 0), epochs=1.0): ...        # step.end is where to go on

A group is one sample with at most `max_dialogs` of its dialogs: what shares one image prefix. An epoch is all groups
in an order that depends on seed and epoch alone; a step takes the next groups until their texts fill the budget, and
may reach into the next epoch. So neither the number of processes nor of workers changes what a step learns from, and
a position, two numbers, is all that a checkpoint must remember.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from visgraft.data.images.augment import augment
from visgraft.data.sample import Sample
from visgraft.data.sources import BadSample, Sources, chunk_dialogs, epoch_order
from visgraft.errors import BadSampleError, DataError
from visgraft.processor import Processor


class Position(NamedTuple):
    """How far a run is: the groups before `cursor` of `epoch` are done; of streams, of the window at `place`."""

    epoch: int
    cursor: int
    place: Any = None


class Held(NamedTuple):
    """A sample that cannot be read again by its number, with what its line in quarantine.jsonl would say."""

    sample: Sample
    origin: BadSample


class Group(NamedTuple):
    """Some dialogs of one sample: which sample, which of its chunks in that epoch; of a stream, the sample itself."""

    sample_index: int
    chunk: int
    epoch: int
    held: Held | None = None


@dataclass(frozen=True)
class StepPlan:
    """What one optimizer step learns from.

    Attributes:
        groups: in their order; process r of n takes every n-th, from r.
        start: the position before it.
        end: the position behind it.
        bad: samples that were met on the way and cannot be used.
    """

    groups: tuple[Group, ...]
    start: Position
    end: Position
    bad: tuple[BadSample, ...]

    def holding(self, process_index: int, *, num_processes: int) -> StepPlan:
        """Return the plan with no samples held but those of one process; of none with `num_processes` 0."""
        groups = enumerate(self.groups)
        kept = [g if num_processes and n % num_processes == process_index else g._replace(held=None) for n, g in groups]
        return replace(self, groups=tuple(kept))


class Planner:
    """Plan the steps over some sources; `unreadable` are their samples that cannot even be read."""

    has_known_length = True

    def __init__(
        self,
        sources: Sources,
        processor: Processor,
        *,
        seed: int,
        max_dialogs: int,
        text_tokens_per_step: int,
        shuffle: bool = True,
    ) -> None:
        self.sources = sources
        self.processor = processor
        self.seed = seed
        self.max_dialogs = max_dialogs
        self.text_tokens_per_step = text_tokens_per_step
        self.shuffle = shuffle
        self._num_chunks = -(-sources.num_dialogs // max_dialogs)
        self.unreadable = list(self._find_unreadable())
        self._epochs: dict[int, NDArray[np.int64]] = {}

    def num_groups(self, epoch: int) -> int:
        """Count the groups of an epoch."""
        return len(self._groups(epoch))

    def epochs_done(self, position: Position) -> float:
        """Return a position as a number of epochs."""
        within = position.cursor / self.num_groups(position.epoch) if position.cursor else 0.0
        return position.epoch + within

    def steps(self, position: Position, *, epochs: float) -> Iterator[StepPlan]:
        """Plan one step after the other until the end of the run.

        Raises:
            DataError: the sources hold nothing that can be used.
        """
        self._check_not_empty()
        while self.epochs_done(position) < epochs:
            step = self.step(position, epochs=epochs)
            yield step
            position = step.end

    def step(self, position: Position, *, epochs: float) -> StepPlan:
        """Plan the one step that starts at a position; it ends early only where the run ends."""
        groups: list[Group] = []
        bad: list[BadSample] = []
        num_tokens, end = 0, position
        while num_tokens < self.text_tokens_per_step and self.epochs_done(end) < epochs:
            group, met, end = self._take(end)
            bad += met
            if group is None:
                continue
            try:
                num_tokens += sum(len(d.input_ids) for d in self.processor.encode_text(self.sample(group)))
                groups.append(group)
            except BadSampleError as error:
                bad.append(self.bad_sample(group, str(error)))
        return StepPlan(tuple(groups), start=position, end=end, bad=tuple(bad))

    def sample(self, group: Group) -> Sample:
        """Read the sample of a group, with the dialogs of that group alone.

        Raises:
            BadSampleError: it cannot be read.
        """
        occasion = f"{self.seed} {group.epoch} {group.sample_index}"
        chunks = chunk_dialogs(self.sources[group.sample_index], max_dialogs=self.max_dialogs, rng=Random(occasion))
        settings = self.sources.settings
        occasion = f"{occasion} {group.chunk}"
        return augment(chunks[group.chunk], self.sources.augment, occasion=occasion, max_pixels=settings.max_pixels)

    def bad_sample(self, group: Group, reason: str) -> BadSample:
        """Say of a group that cannot be used what its line in quarantine.jsonl says."""
        return self.sources.bad_sample(group.sample_index, reason)

    def num_samples(self, position: Position) -> int:
        """Count the samples of which a share may be bad."""
        return len(self.sources)

    def _check_not_empty(self) -> None:
        if self.num_groups(0) == 0:
            reasons = ", ".join(sorted({bad.reason for bad in self.unreadable})) or "it is empty"
            raise DataError(f"data: got {len(self.sources)} samples and none can be used ({reasons})")

    def _take(self, position: Position) -> tuple[Group | None, Sequence[BadSample], Position]:
        """Return the group at a position, what bad samples come to light there, and the next position."""
        index, chunk = self.group(position.cursor, epoch=position.epoch)
        end = Position(position.epoch, position.cursor + 1)
        while end.cursor == self.num_groups(end.epoch):  # a small weight may leave an epoch without any group
            end = Position(end.epoch + 1, 0)
        return Group(index, chunk, position.epoch), (), end

    def group(self, cursor: int, *, epoch: int) -> tuple[int, int]:
        """Return sample and chunk of a group of an epoch."""
        index, chunk = self._groups(epoch)[cursor].tolist()
        return index, chunk

    def _find_unreadable(self) -> Iterator[BadSample]:
        for index in np.flatnonzero(self._num_chunks == 0).tolist():
            try:
                reason = f"it has {len(self.sources[index].dialogs)} dialogs"
            except BadSampleError as error:
                reason = str(error)
            yield self.sources.bad_sample(index, reason)

    def _groups(self, epoch: int) -> NDArray[np.int64]:
        """Return the groups of an epoch in their order: [G, 2], sample and chunk."""
        if epoch not in self._epochs:
            order = np.arange(len(self.sources))
            if self.shuffle:
                order = self.sources.order(seed=self.seed, epoch=epoch)
            counts = self._num_chunks[order]
            chunks = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            groups = np.stack([np.repeat(order, counts), chunks], axis=1)
            if self.shuffle:  # again, or the chunks of one image would come together
                groups = groups[epoch_order(len(groups), seed=self.seed, epoch=epoch)]
            self._epochs = {e: kept for e, kept in self._epochs.items() if e >= epoch - 1} | {epoch: groups}
        return self._epochs[epoch]
