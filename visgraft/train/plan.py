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

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from visgraft.data.augment import augment
from visgraft.data.sample import Sample
from visgraft.data.sources import BadSample, Sources, chunk_dialogs, epoch_order
from visgraft.errors import BadSampleError, DataError
from visgraft.processor import Processor


class Position(NamedTuple):
    """How far a run is: the groups before `cursor` of `epoch` are done."""

    epoch: int
    cursor: int


class Group(NamedTuple):
    """Some dialogs of one sample: which sample, and which of its chunks in that epoch."""

    sample_index: int
    chunk: int
    epoch: int


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


class Planner:
    """Plan the steps over some sources; `unreadable` are their samples that cannot even be read."""

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
        if self.num_groups(0) == 0:
            reasons = ", ".join(sorted({bad.reason for bad in self.unreadable})) or "it is empty"
            raise DataError(f"data: got {len(self.sources)} samples and none can be used ({reasons})")
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
            index, chunk = self._groups(end.epoch)[end.cursor].tolist()
            group = Group(index, chunk, end.epoch)
            try:
                num_tokens += sum(len(d.input_ids) for d in self.processor.encode_text(self.sample(group)))
                groups.append(group)
            except BadSampleError as error:
                bad.append(self.sources.bad_sample(index, str(error)))
            end = Position(end.epoch, end.cursor + 1)
            while end.cursor == self.num_groups(end.epoch):  # a small weight may leave an epoch without any group
                end = Position(end.epoch + 1, 0)
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
