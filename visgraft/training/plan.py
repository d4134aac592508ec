"""Which samples form which step: a pure function of the seed and of how far the run is.

In: sources, a processor (for token counts) and a position. Out: the plan of every step from there on.

    plan = Planner(sources, processor, seed=0, max_dialogs=8, text_tokens_per_step=2048)
    for step in plan.steps(Position(0, 0), epochs=1.0): ...        # step.end is where to go on

A group is one sample with at most `max_dialogs` of its dialogs: what shares one image prefix. An epoch is all groups
in an order that depends on seed and epoch alone; a step takes the next groups until their texts fill the budget, and
may reach into the next epoch. So neither the number of processes nor of workers changes what a step learns from, and
a position, two numbers, is all that a checkpoint must remember.

Plans are made of the counts of text_counts.py. A text that nobody has counted yet is read and encoded here, once, by
one process for all, and what came of it goes with the plan: whoever makes the batch need not do it again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from time import monotonic
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from visgraft.data.dealing import chunk_dialogs, deal_balanced, deal_dialogs
from visgraft.data.images.augment import augment
from visgraft.data.quarantine import budget_of
from visgraft.data.sample import Sample
from visgraft.data.sources import BadSample, Sources, epoch_order
from visgraft.errors import BadSampleError, DataError
from visgraft.processor import Processor
from visgraft.training.text_counts import CountedText, Processes, TextCounts
from visgraft.training.text_watch import TextWatch

READ_AHEAD = 32  # groups that each process reads before they tell one another


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
    """Some dialogs of one sample: which sample, which of its chunks in that epoch; of a stream, the sample itself.

    `numbers` are those of the dialogs where answers are balanced; None: the chunk is one of those dealt at random.
    """

    sample_index: int
    chunk: int
    epoch: int
    held: Held | None = None
    numbers: tuple[int, ...] | None = None


class _Groups(NamedTuple):
    """The groups of an epoch in their order.

    Attributes:
        pairs: [G, 2], sample and chunk.
        dialogs: where answers are balanced, the dialogs of all groups, one behind the other.
        begins, ends: [G], where in `dialogs` those of each group are; nowhere where its chunk is dealt at random.
    """

    pairs: NDArray[np.int64]
    dialogs: NDArray[np.int64]
    begins: NDArray[np.int64]
    ends: NDArray[np.int64]


class Planned(NamedTuple):
    """A group, the tokens of its texts, and these texts where they were just read."""

    group: Group
    num_tokens: int
    text: CountedText | None


@dataclass(frozen=True)
class StepPlan:
    """What one optimizer step learns from.

    Attributes:
        groups: in their order; process r of n takes every n-th, from r.
        start: the position before it.
        end: the position behind it.
        bad: samples that were met on the way and cannot be used.
        texts: of each group, what was read of it already; None: nothing.
    """

    groups: tuple[Group, ...]
    start: Position
    end: Position
    bad: tuple[BadSample, ...]
    texts: tuple[CountedText | None, ...] = field(default=(), compare=False, repr=False)

    def holding(self, process_index: int, *, num_processes: int) -> StepPlan:
        """Return the plan with no samples and texts but those of one process; of none with `num_processes` 0."""
        is_own = [num_processes > 0 and n % num_processes == process_index for n in range(len(self.groups))]
        groups = tuple(g if own else g._replace(held=None) for g, own in zip(self.groups, is_own, strict=True))
        texts = tuple(t if own else None for t, own in zip(self.texts, is_own, strict=False))
        return replace(self, groups=groups, texts=texts)


class Planner:
    """Plan the steps over some sources; `unreadable` are their samples that cannot even be read."""

    has_known_length = True
    unfinished: Collection[str] = ()  # of its sources those that go on behind what `sources` holds
    watch: TextWatch | None = None  # is shown what is read

    def __init__(
        self,
        sources: Sources,
        processor: Processor,
        *,
        seed: int,
        max_dialogs: int,
        text_tokens_per_step: int,
        shuffle: bool = True,
        processes: Processes | None = None,
    ) -> None:
        self.sources = sources
        self.processor = processor
        self.seed = seed
        self.max_dialogs = max_dialogs
        self.text_tokens_per_step = text_tokens_per_step
        self.shuffle = shuffle
        self._num_chunks = -(-sources.num_dialogs // max_dialogs)
        self.unreadable = list(self._find_unreadable())
        self._counts = TextCounts(sources, processor, processes or Processes())
        self._read: dict[Group, CountedText] = {}  # and not yet planned
        self._epochs: dict[int, _Groups] = {}

    def remarks(self) -> dict[str, str]:
        """Return what was said of the texts when an earlier run read them; all processes ask at the same moment."""
        return self._counts.remarks()

    def num_groups(self, epoch: int) -> int:
        """Count the groups of an epoch."""
        return len(self._groups(epoch).pairs)

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
        chosen: list[Planned] = []
        bad: list[BadSample] = []
        distinct: set[tuple[str, int]] = set()
        num_tokens, end = 0, position
        while num_tokens < self.text_tokens_per_step and self.epochs_done(end) < epochs:
            planned, met, end = self._take(end)
            bad += met
            distinct.update((each.source, each.index) for each in met)
            if len(distinct) > self.budget(end):
                break  # the run ends with this step: nothing is gained by reading on, least of all a stream
            if planned is not None:
                num_tokens += planned.num_tokens
                chosen.append(planned)
        groups, texts = tuple(planned.group for planned in chosen), tuple(planned.text for planned in chosen)
        return StepPlan(groups, start=position, end=end, bad=tuple(bad), texts=texts)

    def sample(self, group: Group) -> Sample:
        """Read the sample of a group, with the dialogs of that group alone.

        Raises:
            BadSampleError: it cannot be read, or is not the one that was there when the data were opened.
        """
        occasion = self._occasion(group)
        whole, num_dialogs = self.sources[group.sample_index], self._counts.num_dialogs(group.sample_index)
        if len(whole.dialogs) != num_dialogs:
            raise BadSampleError(f"got {len(whole.dialogs)} dialogs, but {num_dialogs} when the data were opened")
        if group.numbers is None:
            sample = chunk_dialogs(whole, max_dialogs=self.max_dialogs, rng=Random(occasion))[group.chunk]
        else:
            sample = replace(whole, dialogs=[whole.dialogs[number] for number in group.numbers])
        settings = self.sources.settings
        occasion = f"{occasion} {group.chunk}"
        return augment(sample, self.sources.augment, occasion=occasion, max_pixels=settings.max_pixels)

    def bad_sample(self, group: Group, reason: str) -> BadSample:
        """Say of a group that cannot be used what its line in quarantine.jsonl says."""
        return self.sources.bad_sample(group.sample_index, reason)

    def num_samples(self, position: Position) -> int:
        """Count the samples of which a share may be bad."""
        return len(self.sources)

    def budget(self, position: Position) -> int:
        """Say how many of them may be bad."""
        share = self.sources.settings.max_bad_fraction
        return budget_of(self.num_samples(position), max_bad_fraction=share)

    def _check_not_empty(self) -> None:
        if self.num_groups(0) == 0:
            reasons = ", ".join(sorted({bad.reason for bad in self.unreadable})) or "it is empty"
            raise DataError(f"data: got {len(self.sources)} samples and none can be used ({reasons})")

    def _take(self, position: Position) -> tuple[Planned | None, Sequence[BadSample], Position]:
        """Return the group at a position, what bad samples come to light there, and the next position."""
        end = Position(position.epoch, position.cursor + 1)
        while end.cursor == self.num_groups(end.epoch):  # a small weight may leave an epoch without any group
            end = Position(end.epoch + 1, 0)
        planned, bad = self.look_at(position.cursor, epoch=position.epoch)
        return planned, () if bad is None else (bad,), end

    def look_at(self, cursor: int, *, epoch: int) -> tuple[Planned | None, BadSample | None]:
        """Return a group with the tokens of its texts; what nobody has read yet is read now.

        A text that is bad does not take the others along: the group is then both, good and bad.
        """
        group = self.group(cursor, epoch=epoch)
        text = self._read.pop(group, None)
        known = None if text is not None else self._counts.look_up(group.sample_index, self._numbers(group))
        if text is None and known is None:
            self._read_from(cursor, epoch=epoch)
            text = self._read.pop(group)
        num_tokens, reason = known or (0, None) if text is None else (text.num_tokens, text.reason)
        planned = Planned(group, num_tokens, text) if num_tokens else None
        return planned, None if reason is None else self.bad_sample(group, reason)

    def _read_from(self, cursor: int, *, epoch: int) -> None:
        """Read the texts of a group; where there are several processes, of more to come, each process some of them."""
        processes, started = self._counts.processes, monotonic()
        number = 1 if processes.number == 1 else READ_AHEAD * processes.number
        following = range(cursor, min(cursor + number, self.num_groups(epoch)))
        groups = dict.fromkeys(self.group(at, epoch=epoch) for at in following)
        unknown = [g for g in groups if self._counts.look_up(g.sample_index, self._numbers(g)) is None]
        own = {group: self._text_of(group) for group in unknown[processes.index :: processes.number]}
        if self.watch is not None:
            for text in own.values():
                self.watch.see(text, part=self.sources.part)
        told = processes.gather([(group, text._replace(sample=None)) for group, text in own.items()])
        self._read = {**dict(told), **own}
        for group in unknown:  # in one order, so that all processes know the same
            self._counts.note(group.sample_index, self._numbers(group), self._read[group])
        self._counts.took(monotonic() - started, remarks=dict if self.watch is None else self.watch.lines)

    def _text_of(self, group: Group) -> CountedText:
        try:
            sample = self.sample(group)
        except BadSampleError as error:
            return CountedText((), unread=str(error))
        return CountedText(self.processor.encode_each(sample), sample=sample)

    def _numbers(self, group: Group) -> list[int] | None:
        """Say which dialogs of its sample are a group's, in their order; None: all."""
        if group.numbers is not None:
            return list(group.numbers)
        num_dialogs = self._counts.num_dialogs(group.sample_index)
        if num_dialogs <= self.max_dialogs:
            return None
        rng = Random(self._occasion(group))
        return deal_dialogs(num_dialogs, max_dialogs=self.max_dialogs, rng=rng)[group.chunk]

    def _occasion(self, group: Group) -> str:
        return f"{self.seed} {group.epoch} {group.sample_index}"

    def group(self, cursor: int, *, epoch: int) -> Group:
        """Return a group of an epoch."""
        groups = self._groups(epoch)
        begin, end = int(groups.begins[cursor]), int(groups.ends[cursor])
        numbers = tuple(groups.dialogs[begin:end].tolist()) if end > begin else None
        index, chunk = groups.pairs[cursor].tolist()
        return Group(index, chunk, epoch, numbers=numbers)

    def _find_unreadable(self) -> Iterator[BadSample]:
        for index in np.flatnonzero(self._num_chunks == 0).tolist():
            try:
                reason = f"it has {len(self.sources[index].dialogs)} dialogs"
            except BadSampleError as error:
                reason = str(error)
            yield self.sources.bad_sample(index, reason)

    def _groups(self, epoch: int) -> _Groups:
        """Return the groups of an epoch in their order."""
        if epoch not in self._epochs:
            order = np.arange(len(self.sources))
            if self.shuffle:
                order = self.sources.order(seed=self.seed, epoch=epoch, balanced=False)
            counts = self._num_chunks[order]
            chunks = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            pairs = np.stack([np.repeat(order, counts), chunks], axis=1)
            picked = self.sources.balanced_texts(seed=self.seed, epoch=epoch) if self.shuffle else None
            nowhere = np.zeros(len(pairs), np.int64)
            groups = _Groups(pairs, nowhere[:0], nowhere, nowhere)
            if picked is not None:
                dealt = deal_balanced(picked, max_dialogs=self.max_dialogs, seed=self.seed, epoch=epoch)
                pairs = np.concatenate([pairs, np.stack([dealt.samples, dealt.chunks], axis=1)])
                begins = np.concatenate([nowhere, dealt.starts[:-1]])
                groups = _Groups(pairs, dealt.dialogs, begins, np.concatenate([nowhere, dealt.starts[1:]]))
            if self.shuffle:  # again, or the chunks of one image would come together
                mixed = epoch_order(len(pairs), seed=self.seed, epoch=epoch)
                ends = groups.ends[mixed]
                groups = _Groups(pairs[mixed], groups.dialogs, groups.begins[mixed], ends)
            self._epochs = {e: kept for e, kept in self._epochs.items() if e >= epoch - 1} | {epoch: groups}
        return self._epochs[epoch]
