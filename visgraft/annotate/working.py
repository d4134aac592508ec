"""What a process does: take the next unit that nobody has, label it, until nothing is left.

In: an open job. Out: its units, done. The same loop runs in the one process of a plain call, in each of `--workers N`,
in each part of `--shard I/N`, in each rank under torchrun, and hands units to the actors of Ray.

    work_through(job, told=progress, claims=claims)

Which unit is next, is decided here: shard after shard, beginning at a place of the process's own, so that processes get
in each other's way only near the end. What another process holds is come back to, and taken over if that one is gone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Protocol

from visgraft.annotate.claims import Claims
from visgraft.annotate.folder import Done, Unit, num_errors
from visgraft.annotate.job import Job
from visgraft.annotate.labelling import Labelled, Labeller
from visgraft.errors import DataError, MissingAssetError
from visgraft.inference import load
from visgraft.listing import changed_at

LOOK_EVERY_S = 1.0  # while others hold what is left
MANY_TARS = 4  # a part of the work takes whole tars where there are so many for each


class Work:
    """The units of a job, as one process takes them.

    Attributes:
        job: the job.
    """

    def __init__(self, job: Job, *, claims: Claims | None, first: float = 0.0) -> None:
        """Begin.

        Args:
            job: what there is to do.
            claims: how units are taken; None: those of `job.request.shard`, which are this process's alone.
            first: where among all shards to begin, 0 to 1.
        """
        self.job = job
        self._claims = claims
        self._first = first
        self._started = time.time()
        self._damaged: dict[int, str] = {}  # shards that cannot be opened, and why
        self._finished: set[Unit] = set()  # whatever the clock of the disk says of their parts

    def units(self, *, is_wanted: Callable[[], bool] = lambda: True) -> Iterator[Unit]:
        """Give the units to do, each claimed; it is released when the next one is asked for.

        Behind the last one of its own, a process waits for what others hold, and takes over what they leave undone.

        Raises:
            DataError: all is done but for shards that cannot be opened.
        """
        while True:
            is_anything_left = False
            for unit in self._pass(is_wanted):
                if unit is None:
                    is_anything_left = True
                    continue
                yield unit
            if not is_wanted() or not is_anything_left:
                break
            time.sleep(LOOK_EVERY_S)
        if is_wanted():
            self.refuse_damaged()

    def take(self) -> Iterator[Unit | None]:
        """Give units as `units` does but release none, and None where others hold all that is left: for a driver."""
        while True:
            is_anything_left = False
            for unit in self._pass(lambda: True, is_kept=True):
                is_anything_left = True  # what was given may be lost, so there is another pass
                if unit is not None:
                    yield unit
            if not is_anything_left:
                return
            yield None

    def release(self, unit: Unit) -> None:
        """Let a unit go that `take` gave."""
        if self._claims is not None:
            self._claims.release(unit.name)

    def finished(self, unit: Unit) -> None:
        """Note that a unit is written, by this process or for it."""
        self._finished.add(unit)

    def set_aside(self, shard: int, reason: str) -> None:
        """Leave a shard alone that cannot be read; the end says so."""
        self._damaged[shard] = reason

    def refuse_damaged(self) -> None:
        """Say at the end which shards could not be read. Raises DataError."""
        if self._damaged:
            number, reason = next(iter(self._damaged.items()))
            raise DataError(
                f"{len(self._damaged)} of {len(self.job.collection.shards)} shards could not be read, all else is "
                f"done; the first is {self.job.collection.shards[number].name}: {reason}; mend it and call again"
            )

    def _pass(self, is_wanted: Callable[[], bool], *, is_kept: bool = False) -> Iterator[Unit | None]:
        """Go through all units once: each that is this process's now; None for one that another one holds."""
        done = self.job.output.done()
        num_shards = len(self.job.collection.shards)
        begin = int(self._first * num_shards)
        for shard in [*range(begin, num_shards), *range(begin)]:
            units = self._units_of(shard, done)
            begin_at = int(self._first * len(units)) if num_shards == 1 else 0
            for place in [*range(begin_at, len(units)), *range(begin_at)]:
                unit = units[place]
                if not is_wanted():
                    return
                if shard in self._damaged:
                    break
                if not self._is_mine(unit) or not self._is_left(unit, done):
                    continue
                if self._claims is not None and not self._claims.take(unit.name):
                    yield None
                    continue
                is_left = self._is_left(unit, None)  # another one may have finished it since we looked
                try:
                    if is_left:
                        yield unit
                finally:
                    if not (is_kept and is_left):
                        self.release(unit)

    def _units_of(self, shard: int, done: Done) -> list[Unit]:
        """List the units of a shard, which is opened only where something in it may be left for this process."""
        job = self.job
        if shard in self._damaged or not self._may_be_mine(shard):
            return []
        total = job.total_of(shard, done)
        if total is None:
            try:
                return job.units(shard)
            except (DataError, MissingAssetError, OSError) as error:
                self._damaged[shard] = str(error)
                return []
        return job.units(shard, total=total)

    def _is_left(self, unit: Unit, done: Done | None) -> bool:
        """Say whether a unit is to be done; `done` is what was known a moment ago, None: look."""
        part = self.job.output.part(unit)
        is_there = part.exists() if done is None else (unit.shard, unit.start) in done.units
        if not is_there:
            return True
        if not self.job.request.retry_errors or unit in self._finished:
            return False
        changed = changed_at(part)
        return changed == 0 or (changed < self._started and num_errors(part) > 0)  # 0: a user removed it

    def _may_be_mine(self, shard: int) -> bool:
        """Say whether a tar that is not indexed yet may hold units of this part of the work."""
        part = self.job.request.shard
        return part is None or not self._by_shard or shard % part[1] == part[0]

    def _is_mine(self, unit: Unit) -> bool:
        part = self.job.request.shard
        if part is None:
            return True
        number = unit.shard if self._by_shard else unit.shard + unit.start // self.job.output.rows_per_unit
        return number % part[1] == part[0]

    @property
    def _by_shard(self) -> bool:
        """Whether parts of the work are whole tars: where there are many, none need be indexed by all."""
        part, shards = self.job.request.shard, self.job.collection.shards
        return part is not None and self.job.collection.num_rows is None and len(shards) >= MANY_TARS * part[1]


class Told(Protocol):
    """Who is told what is done (progress.py, or the pipe to a driver)."""

    def advance(self, number: int) -> None:
        """Rows of the unit that is worked on are done."""

    def unit_done(self, labelled: Labelled, *, is_new: bool = True) -> None:
        """A unit is written."""


def work_through(job: Job, *, told: Told, claims: Claims | None, first: float = 0.0) -> None:
    """Label units until nothing is left; the model is loaded where there is one to label.

    Args:
        job: the job.
        told: is told what is done.
        claims: how units are taken; None: those of `job.request.shard`.
        first: where to begin, 0 to 1.

    Raises:
        VisgraftError: what no other unit would do better with; what is done stays.
    """
    work = Work(job, claims=claims, first=first)
    labeller: Labeller | None = None
    for unit in work.units():
        if labeller is None:
            labeller = load_labeller(job)
        is_new = not job.output.part(unit).exists()
        try:
            labelled = labeller.label(unit, advance=told.advance)
        except (DataError, MissingAssetError) as error:
            work.set_aside(unit.shard, str(error))
            continue
        work.finished(unit)
        told.unit_done(labelled, is_new=is_new)


def load_labeller(job: Job) -> Labeller:
    """Load the model of a job. Raises what `load` raises."""
    request = job.request
    return Labeller(job, *load(request.model, device=request.device, precision=request.precision))
