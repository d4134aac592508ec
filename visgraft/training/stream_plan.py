"""Which samples form which step, where the data are streams: window after window, each planned as data of known length.

In: streams, a processor and a position. Out: the plan of every step from there on, with the samples in it.

    plan = StreamPlanner(streams, processor, seed=0, max_dialogs=8, text_tokens_per_step=2048)
    for step in plan.steps(Position(0, 0), epochs=1.0): ...        # step.end: epoch, cursor in the window, its place

Only the main process reads; workers get samples and open their images. So here, too, neither the number of processes
nor of workers changes what a step learns from: every process reads the rows of all, encodes its part of the texts, and
opens the images of its own.
"""

from __future__ import annotations

from dataclasses import replace
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np

from visgraft.data.sample import Sample
from visgraft.data.sources import BadSample
from visgraft.data.windows import Streams, Window
from visgraft.processor import Processor
from visgraft.training.plan import Group, Held, Planner, Position, Stretch
from visgraft.training.text_counts import CountedText


class _Planned(NamedTuple):
    """A window and the order of its groups."""

    window: Window
    planner: Planner


class StreamPlanner(Planner):
    """Plan the steps over some streams; `sources` are those of their first window."""

    has_known_length = False

    def __init__(
        self, streams: Streams, processor: Processor, *, seed: int, shuffle: bool = True, **sizes: Any
    ) -> None:
        self.streams = streams
        self._settings = {**sizes, "shuffle": shuffle}
        self._planned: dict[str, _Planned] = {}
        self.seed, self.shuffle, self.processor = seed, shuffle, processor
        first = self._plan(Position(0, 0)).window
        self._num_first = first.num_read
        self.unfinished = streams.unfinished(first)
        super().__init__(first.sources, processor, seed=seed, shuffle=shuffle, **sizes)

    def epochs_done(self, position: Position) -> float:
        """Return how many times the streams have been read to their end."""
        return float(position.epoch)

    def num_samples(self, position: Position) -> int:
        """Count the rows read up to the window of a position, in this epoch or in all of the last."""
        num_read, in_last = (position.place or [0, 0])[:2]
        return max(num_read, in_last, self._num_first)

    def sample(self, group: Group) -> Sample:
        """Return the sample of a group, with the dialogs of that group alone."""
        assert group.held is not None, "the plan holds the samples of this process"
        return group.held.sample

    def bad_sample(self, group: Group, reason: str) -> BadSample:
        """Say of a group that cannot be used what its line in quarantine.jsonl says."""
        assert group.held is not None, "the plan holds the samples of this process"
        return replace(group.held.origin, reason=reason)

    def _check_not_empty(self) -> None:
        """Leave it to the first step: only the end of a stream shows that nothing is in it."""

    def _take(self, position: Position, *, room: int, epochs: float) -> Stretch:
        window, planner = self._plan(position)
        cursor, num_groups = position.cursor, planner.num_groups(0)
        met = [(0, bad) for bad in planner.unreadable] if cursor == 0 else []
        nothing = np.zeros(0, np.int64)
        inner: Stretch | None = None
        if cursor < num_groups:
            inner = planner._take(Position(0, cursor), room=room, epochs=1.0)
            met += inner.bad

        def group(n: int) -> tuple[Group, CountedText | None]:
            assert inner is not None, "there is a group"
            found, text = inner.group(n)
            sample = planner.sample(found) if text is None or text.sample is None else text.sample
            held = Held(sample, planner.sources.bad_sample(found.sample_index, ""))
            return Group(found.sample_index, found.chunk, position.epoch, held), text

        def behind(n: int) -> Position:
            in_last = (position.place or [0, 0])[1]
            if cursor + n + 1 < num_groups:
                return position._replace(cursor=cursor + n + 1)
            if window.after is not None:
                return Position(position.epoch, 0, [window.num_read, in_last, window.after])
            return Position(position.epoch + 1, 0, [0, window.num_read, None])

        if inner is None:
            return Stretch(nothing, nothing, met, group, behind)
        return replace(inner, bad=met, group=group, behind=behind)

    def _plan(self, position: Position) -> _Planned:
        """Read the window of a position, or take it from the last two."""
        place = None if position.place is None else position.place[2]
        name = f"{self.seed} {position.epoch} {place}"
        if name not in self._planned:
            seed = self.seed if self.shuffle else None
            window = self.streams.window(seed=seed, epoch=position.epoch, place=place)
            own_seed = int.from_bytes(blake2b(name.encode(), digest_size=8).digest())
            planner = Planner(window.sources, self.processor, seed=own_seed, **self._settings)
            planner.watch = self.watch if position.epoch == 0 else None  # it is the same again
            self._planned = {**dict(list(self._planned.items())[-1:]), name: _Planned(window, planner)}
        return self._planned[name]

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_planned": {}}  # workers get their samples with the plan
