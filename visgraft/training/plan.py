"""Which samples form which step: a pure function of the seed and of how far the run is.

In: sources, a processor (for token counts) and a position. Out: the plan of every step from there on.

    plan = Planner(sources, processor, seed=0, max_dialogs=8, text_tokens_per_step=2048)
    for step in plan.steps(Position(0, 0), epochs=1.0): ...        # step.end is where to go on

A group is one sample with at most `max_dialogs` of its dialogs: what shares one image prefix. An epoch is all groups
in an order that depends on seed and epoch alone; a step takes the next groups until their texts fill the budget, and
may reach into the next epoch. So neither the number of processes nor of workers changes what a step learns from, and
a position, two numbers, is all that a checkpoint must remember.

Plans are made of the counts of text_counts.py, many groups at once: arrays say how long each is, and only what a
process trains on itself is made into groups. Processes share a step out so that all have about as many positions. A
text that nobody has counted yet is read and encoded here, once, by one process for all, and what came of it goes with
the plan: whoever makes the batch need not do it again.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from random import Random
from time import monotonic
from typing import Any, NamedTuple

import numpy as np

from visgraft.data.batch import Layout
from visgraft.data.dealing import chunk_dialogs, deal_dialogs
from visgraft.data.images.augment import augment
from visgraft.data.packing import share_out
from visgraft.data.processes import Processes
from visgraft.data.quarantine import budget_of
from visgraft.data.sample import Sample
from visgraft.data.sources import BadSample, Sources
from visgraft.errors import BadSampleError, DataError
from visgraft.processor import Processor
from visgraft.training.epoch_groups import EpochGroups, order_groups
from visgraft.training.text_counts import CountedText, Indices, Lengths, TextCounts, Told
from visgraft.training.text_watch import TextWatch

READ_AHEAD = 32  # groups that each process reads before they tell one another
LOOK_AHEAD = 1024  # groups whose counts are looked up together


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


@dataclass
class Block:
    """What is known of some groups of an epoch that follow one another.

    Attributes:
        epoch, begin: of the first of them.
        tokens: [N], of each group's texts; 0 of one that cannot be used.
        positions: [N], these and the tokens of its images.
        bad: n-th group -> why it, or a dialog of it, is bad.
        texts: n-th group -> what was just read of it; as bytes where another process did.
        is_read: none of it was known before.
    """

    epoch: int
    begin: int
    tokens: Indices
    positions: Indices
    bad: dict[int, str]
    texts: dict[int, CountedText | bytes] = field(default_factory=dict)
    is_read: bool = False

    @property
    def end(self) -> int:
        """The cursor behind it."""
        return self.begin + len(self.tokens)

    def text(self, cursor: int) -> CountedText | None:
        """Return what was just read of a group; None: nothing."""
        text = self.texts.get(cursor - self.begin)
        return pickle.loads(text) if isinstance(text, bytes) else text


@dataclass(frozen=True)
class Stretch:
    """Groups from a position on, for one step.

    Attributes:
        tokens, positions: [N], as those of a block.
        bad: (n, bad sample), in their order; n = 0 of a window without any group too.
        group: makes the n-th group, with what was just read of it.
        behind: the position behind the n-th group.
    """

    tokens: Indices
    positions: Indices
    bad: Sequence[tuple[int, BadSample]]
    group: Callable[[int], tuple[Group, CountedText | None]]
    behind: Callable[[int], Position]


@dataclass(frozen=True)
class StepPlan:
    """What one optimizer step learns from.

    Attributes:
        groups: those of one process, in their order.
        num_groups: of all processes together.
        start: the position before it.
        end: the position behind it.
        bad: samples that were met on the way and cannot be used.
        texts: of each group, what was read of it already; None: nothing.
    """

    groups: tuple[Group, ...]
    num_groups: int
    start: Position
    end: Position
    bad: tuple[BadSample, ...]
    texts: tuple[CountedText | None, ...] = field(default=(), compare=False, repr=False)

    def without_samples(self) -> StepPlan:
        """Return the plan without the samples and texts in it."""
        return replace(self, groups=tuple(group._replace(held=None) for group in self.groups), texts=())


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
        layout: Layout = "shared",
        processes: Processes | None = None,
    ) -> None:
        self.sources = sources
        self.processor = processor
        self.seed = seed
        self.max_dialogs = max_dialogs
        self.text_tokens_per_step = text_tokens_per_step
        self.shuffle = shuffle
        self.layout = layout
        self._counts = TextCounts(sources, processor, processes or Processes())
        self._num_chunks = (-(-np.diff(self._counts.starts) // max_dialogs)).astype(np.int32)
        self.unreadable = list(self._find_unreadable())
        self._epochs: dict[int, EpochGroups] = {}
        self._block: Block | None = None

    def remarks(self) -> dict[str, str]:
        """Return what was said of the texts when an earlier run read them; all processes ask at the same moment."""
        return self._counts.remarks()

    def num_groups(self, epoch: int) -> int:
        """Count the groups of an epoch."""
        return len(self._groups(epoch).samples)

    def epochs_done(self, position: Position) -> float:
        """Return a position as a number of epochs."""
        within = position.cursor / self.num_groups(position.epoch) if position.cursor else 0.0
        return position.epoch + within

    def steps(
        self, position: Position, *, epochs: float, process_index: int = 0, num_processes: int = 1
    ) -> Iterator[StepPlan]:
        """Plan one step after the other until the end of the run, with the groups of one of the processes.

        Raises:
            DataError: the sources hold nothing that can be used.
        """
        self._check_not_empty()
        while self.epochs_done(position) < epochs:
            step = self.step(position, epochs=epochs, process_index=process_index, num_processes=num_processes)
            yield step
            position = step.end

    def step(self, position: Position, *, epochs: float, process_index: int = 0, num_processes: int = 1) -> StepPlan:
        """Plan the one step that starts at a position; it ends early only where the run ends.

        Of its groups, each process gets those that give all of them about as many positions, in their order.
        """
        room, end = self.text_tokens_per_step, position
        bad: list[BadSample] = []
        distinct: set[tuple[str, int]] = set()
        chosen: list[tuple[Stretch, Indices]] = []
        while room > 0 and self.epochs_done(end) < epochs:
            stretch = self._take(end, room=room, epochs=epochs)
            number, last = len(stretch.tokens), max(0, len(stretch.tokens) - 1)
            for n, each in stretch.bad:
                if n > last:
                    break
                bad.append(each)
                distinct.add((each.source, each.index))
                if len(distinct) > self.budget(stretch.behind(n)):
                    number, last = n, n  # the run ends here: nothing is gained by reading on, least of all a stream
            end = stretch.behind(last)
            usable = np.flatnonzero(stretch.tokens[:number])
            room -= int(stretch.tokens[:number].sum())
            chosen.append((stretch, usable))
            if number < len(stretch.tokens):
                break
        lengths = [stretch.positions[usable] for stretch, usable in chosen]
        owners = share_out(np.concatenate([np.zeros(0, np.int64), *lengths]), num_processes=num_processes)
        of_stretches = np.split(owners, np.cumsum([len(usable) for _, usable in chosen])[:-1])
        own = [
            stretch.group(n)
            for (stretch, usable), owner in zip(chosen, of_stretches, strict=True)
            for n in usable[owner == process_index].tolist()
        ]
        groups, texts = tuple(group for group, _ in own), tuple(text for _, text in own)
        return StepPlan(groups, len(owners), start=position, end=end, bad=tuple(bad), texts=texts)

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

    def _take(self, position: Position, *, room: int, epochs: float) -> Stretch:
        """Return groups from a position on: as many as fill the room or are known together, at least one."""
        epoch, cursor = position.epoch, position.cursor
        block = self._block
        if block is None or block.epoch != epoch or not block.begin <= cursor < block.end:
            self._block = block = self.look(cursor, epoch=epoch)
        first, stop = cursor - block.begin, min(block.end, self._last(epoch, epochs)) - block.begin
        tokens = block.tokens[first:stop]
        tokens = tokens[: int(np.searchsorted(np.cumsum(tokens), room)) + 1]
        stop = first + len(tokens)

        def group(n: int) -> tuple[Group, CountedText | None]:
            return self.group(cursor + n, epoch=epoch), block.text(cursor + n)

        def behind(n: int) -> Position:
            end = Position(epoch, cursor + n + 1)
            while end.cursor == self.num_groups(end.epoch):  # a small weight may leave an epoch without any group
                end = Position(end.epoch + 1, 0)
            return end

        bad = [
            (n - first, self.bad_sample(self.group(block.begin + n, epoch=epoch), reason))
            for n, reason in block.bad.items()
            if first <= n < stop
        ]
        return Stretch(tokens, block.positions[first:stop], bad, group, behind)

    def _last(self, epoch: int, epochs: float) -> int:
        """Return the cursor behind the last group of an epoch that a run of so many epochs comes to."""
        number = self.num_groups(epoch)
        last = min(number, max(1, ceil((epochs - epoch) * number) + 1) if epochs < epoch + 1 else number)
        while last > 1 and self.epochs_done(Position(epoch, last - 1)) >= epochs:
            last -= 1
        return last

    def look(self, cursor: int, *, epoch: int) -> Block:
        """Look up the groups from a cursor on, as many as are known; what nobody has read yet is read now.

        A text that is bad does not take the others along: the group is then both, good and bad.
        """
        processes, number = self._counts.processes, self.num_groups(epoch)
        ahead = 1 if processes.number == 1 else READ_AHEAD * processes.number
        was_read = self._block is not None and self._block.is_read and self._block.end == cursor
        found = self._look_up(
            cursor, min(number, cursor + (ahead if was_read else max(ahead, LOOK_AHEAD))), epoch=epoch
        )
        known = int(np.argmin(found.is_known)) if not found.is_known.all() else len(found.is_known)
        if known == 0:
            return self._read(cursor, min(number, cursor + ahead), epoch=epoch, found=found)
        tokens = found.tokens[:known]
        bad: dict[int, str] = {}
        for n in np.flatnonzero(found.is_bad[:known]).tolist():
            bad[n] = self._counts.reason(self._places(self.group(cursor + n, epoch=epoch))) or ""
        return Block(epoch, cursor, tokens, self._positions(tokens, cursor, epoch=epoch), bad)

    def _look_up(self, begin: int, end: int, *, epoch: int) -> Lengths:
        """Look up groups of an epoch all at once; those whose dialogs are dealt at random are left unknown."""
        groups = self._groups(epoch)
        starts, samples = self._counts.starts, groups.samples[begin:end]
        firsts = starts[samples]
        sizes = starts[samples + 1] - firsts
        is_dealt = sizes > self.max_dialogs
        if groups.begins is not None and groups.ends is not None:
            begins, ends = groups.begins[begin:end], groups.ends[begin:end]
            is_dealt &= ends == begins
            sizes = np.where(ends > begins, ends - begins, sizes)
        sizes = np.where(is_dealt, 0, sizes)
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        if groups.begins is not None and groups.ends is not None:
            numbered = np.repeat(begins, sizes) + within
            is_numbered = np.repeat(ends > begins, sizes)
            within[is_numbered] = groups.dialogs[numbered[is_numbered]]
        found = self._counts.look_up(np.repeat(firsts, sizes) + within, sizes=sizes)
        return found._replace(is_known=found.is_known & ~is_dealt)

    def _positions(self, tokens: Indices, begin: int, *, epoch: int) -> Indices:
        """Add the tokens of the images to those of the texts of groups from a cursor on."""
        samples = self._groups(epoch).samples[begin : begin + len(tokens)]
        images = np.maximum(self._counts.num_images(samples).astype(np.int64), 0)
        if self.layout == "rows":  # each dialog has them before it
            images *= np.clip(self._counts.starts[samples + 1] - self._counts.starts[samples], 1, self.max_dialogs)
        return tokens + images * self.processor.num_image_tokens

    def _read(self, begin: int, end: int, *, epoch: int, found: Lengths) -> Block:
        """Read the texts of groups that are not known, each process some of them, and tell one another."""
        processes, started = self._counts.processes, monotonic()
        groups = self._groups(epoch)
        unknown = np.flatnonzero(~found.is_known[: end - begin])
        pairs = groups.samples[begin + unknown].astype(np.int64) << 32 | groups.chunks[begin + unknown]
        _, firsts, inverse = np.unique(pairs, return_index=True, return_inverse=True)  # weights bring samples twice
        order = np.argsort(firsts)
        distinct = unknown[firsts[order]]
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        texts: dict[int, CountedText | bytes] = {}
        told = Told()
        for n in distinct[processes.index :: processes.number].tolist():
            text = self._tell(self.group(begin + n, epoch=epoch), told)
            if text is not None:
                texts[n] = text
                if processes.number > 1:
                    told.texts[len(told.samples) - 1] = pickle.dumps(text._replace(sample=None))
        tokens = np.zeros(len(distinct), np.int64)
        bad_reads: dict[int, str] = {}
        for index, each in enumerate(processes.gather([told.packed()])):
            self._counts.note(each)
            tokens[index :: processes.number] = each.tokens
            bad_reads |= {index + processes.number * n: reason for n, reason in each.bad.items()}
            for n, packed in each.texts.items():
                texts.setdefault(int(distinct[index + processes.number * n]), packed)
        of_all = found.tokens[: end - begin].copy()
        of_all[unknown] = tokens[place[inverse.reshape(-1)]]
        bad = {}
        for n, m in zip(unknown.tolist(), place[inverse.reshape(-1)].tolist(), strict=True):
            if m in bad_reads:
                bad[n] = bad_reads[m]
        for n in np.flatnonzero(found.is_bad[: end - begin] & found.is_known[: end - begin]).tolist():
            bad[n] = self._counts.reason(self._places(self.group(begin + n, epoch=epoch))) or ""
        self._counts.took(monotonic() - started, remarks=dict if self.watch is None else self.watch.lines)
        positions = self._positions(of_all, begin, epoch=epoch)
        return Block(epoch, begin, of_all, positions, dict(sorted(bad.items())), texts, is_read=True)

    def _tell(self, group: Group, told: Told) -> CountedText | None:
        """Add to what is told how long a group is; return what had to be read for it."""
        places = self._places(group)
        known = self._counts.look_up(places, sizes=np.array([len(places)]))
        if known.is_known[0]:  # it was dealt anew
            told.add_known(group.sample_index, tokens=int(known.tokens[0]), reason=self._counts.reason(places))
            return None
        text = self._text_of(group)
        if self.watch is not None:
            self.watch.see(text, part=self.sources.part)
        told.add_read(group.sample_index, text, places=places.tolist())
        return text

    def _text_of(self, group: Group) -> CountedText:
        try:
            sample = self.sample(group)
        except BadSampleError as error:
            return CountedText((), unread=str(error))
        return CountedText(self.processor.encode_each(sample), sample=sample)

    def _places(self, group: Group) -> Indices:
        """Return the places of a group's dialogs among those of all samples, in their order."""
        start, end = self._counts.starts[group.sample_index : group.sample_index + 2].tolist()
        numbers = group.numbers
        if numbers is None and end - start > self.max_dialogs:
            rng = Random(self._occasion(group))
            numbers = tuple(deal_dialogs(end - start, max_dialogs=self.max_dialogs, rng=rng)[group.chunk])
        return np.arange(start, end) if numbers is None else start + np.array(numbers, np.int64)

    def _occasion(self, group: Group) -> str:
        return f"{self.seed} {group.epoch} {group.sample_index}"

    def group(self, cursor: int, *, epoch: int) -> Group:
        """Return a group of an epoch."""
        groups = self._groups(epoch)
        numbers = None
        if groups.begins is not None and groups.ends is not None:
            begin, end = int(groups.begins[cursor]), int(groups.ends[cursor])
            numbers = tuple(groups.dialogs[begin:end].tolist()) if end > begin else None
        return Group(int(groups.samples[cursor]), int(groups.chunks[cursor]), epoch, numbers=numbers)

    def _find_unreadable(self) -> Iterator[BadSample]:
        for index in np.flatnonzero(self._num_chunks == 0).tolist():
            try:
                reason = f"it has {len(self.sources[index].dialogs)} dialogs"
            except BadSampleError as error:
                reason = str(error)
            yield self.sources.bad_sample(index, reason)

    def _groups(self, epoch: int) -> EpochGroups:
        """Return the groups of an epoch in their order."""
        if epoch not in self._epochs:
            ordered = order_groups(
                self.sources,
                self._num_chunks,
                seed=self.seed,
                epoch=epoch,
                max_dialogs=self.max_dialogs,
                shuffle=self.shuffle,
            )
            self._epochs = {e: kept for e, kept in self._epochs.items() if e >= epoch - 1} | {epoch: ordered}
        return self._epochs[epoch]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_block": None, "_epochs": {}}  # workers get their samples planned
