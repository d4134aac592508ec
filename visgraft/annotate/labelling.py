"""Label one unit with a loaded model: its rows are read ahead, asked together, and written as one whole file.

In: a unit. Out: its part, in its place. Whatever runs the work (one process, several, a launcher, Ray) calls this.

    labeller = Labeller(job, model, processor)
    labelled = labeller.label(unit, advance=print)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from heapq import merge
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from visgraft.annotate.folder import Unit
from visgraft.annotate.job import Job
from visgraft.annotate.rows import Subject, bad_subject, row_of, schema_of, subject_of
from visgraft.data.readers.tables import write_parquet
from visgraft.data.sample import Sample, Source
from visgraft.errors import BadSampleError, DataError
from visgraft.inference import PrefixCache, answer_each
from visgraft.model.vlm import VisionLanguageModel
from visgraft.processor import Processor

_DIALOGS_TOGETHER = 64  # about one image that stands in several rows
Advance = Callable[[int], None]
Row = dict[str, Any]


@dataclass(frozen=True)
class Labelled:
    """What came of a unit.

    Attributes:
        num_rows: of the input that were asked about.
        num_errors: rows of the output that have an error.
    """

    num_rows: int
    num_errors: int


class Labeller:
    """A loaded model at work on a job."""

    def __init__(self, job: Job, model: VisionLanguageModel, processor: Processor) -> None:
        """Begin with no shard opened."""
        self.job, self.model, self.processor = job, model, processor
        self._cache = PrefixCache()
        self._schema = schema_of(keep_images=job.request.keep_images)

    def label(self, unit: Unit, *, advance: Advance = lambda number: None) -> Labelled:
        """Answer the rows of a unit and write its part; of one that is there, those that have an error.

        Args:
            unit: claimed by the caller, or nobody else's.
            advance: is told how many rows of the input are done.

        Raises:
            DataError: its shard cannot be opened, or its part is damaged.
            DiskError: the disk takes no more.
        """
        part = self.job.output.part(unit)
        source = self.job.open(unit.shard)
        places, kept = range(unit.start, unit.stop), []
        if part.exists():
            kept = _good_rows(part)
            good = {row["row"] for row in kept}
            places = [place for place in places if place not in good]  # type: ignore[assignment]
            advance(unit.stop - unit.start - len(places))
        errors = 0

        def counted() -> Iterator[Row]:
            nonlocal errors
            for row in self._answered(unit, source, iter(places), advance=advance):
                errors += row["error"] is not None
                yield row

        write_parquet(part, merge(kept, counted(), key=lambda row: row["row"]), schema=self._schema)
        self._cache.clear()  # its images are not asked about again
        return Labelled(len(places), errors)

    def _answered(self, unit: Unit, source: Source, places: Iterator[int], *, advance: Advance) -> Iterator[Row]:
        """Ask, and give the rows in their order; a thread reads ahead of the answers, and `waiting` with it."""
        request, decoding = self.job.request, self.job.request.decoding
        waiting: deque[Subject] = deque()
        seeds: deque[int] = deque()
        subjects = self._subjects(unit, source, places)
        if "seed" in decoding:
            subjects = _with_seeds(subjects, seeds, seed=decoding.pop("seed"))
        answers = answer_each(
            self.model,
            self.processor,
            _samples(subjects, waiting),
            batch_size=request.batch_size,
            prefix_cache=self._cache,
            each_alone=True,
            seeds=iter(seeds.popleft, None) if "do_sample" in decoding else None,
            **decoding,
        )
        number = 0  # of the question of the first that waits
        for answer in answers:
            yield from _bad_ones(waiting, advance)
            subject = waiting[0]
            yield row_of(subject, subject.questions[number], answer=answer)
            number += 1
            if number == len(subject.questions):
                waiting.popleft()
                number = 0
                advance(1)
        yield from _bad_ones(waiting, advance)
        assert not waiting, "every question has an answer"

    def _subjects(self, unit: Unit, source: Source, places: Iterator[int]) -> Iterator[Subject]:
        shard, request = self.job.collection.shards[unit.shard], self.job.request
        named = {"source": shard.source, "shard": shard.name, "prompts": request.prompts}
        for place in places:
            try:
                sample = source[place]
            except BadSampleError as error:
                yield bad_subject(str(error), place=place, **named)  # type: ignore[arg-type]
                continue
            yield subject_of(sample, place=place, keep_images=request.keep_images, **named)  # type: ignore[arg-type]


def _with_seeds(subjects: Iterator[Subject], seeds: deque[int], *, seed: int) -> Iterator[Subject]:
    """Hand subjects on; `seeds` grows by one for each of their questions: of the row, so the same whoever asks when."""
    for subject in subjects:
        for number in range(len(subject.questions) if subject.sample is not None else 0):
            name = f"{seed} {subject.facts['shard']} {subject.place} {number}"
            seeds.append(int.from_bytes(blake2b(name.encode("utf-8", "surrogatepass"), digest_size=7).digest()))
        yield subject


def _bad_ones(waiting: deque[Subject], advance: Advance) -> Iterator[Row]:
    """Give the rows of what is first in line and cannot be asked."""
    while waiting and waiting[0].sample is None:
        subject = waiting.popleft()
        for question in subject.questions:
            yield row_of(subject, question, answer=None)
        advance(1)


def _samples(subjects: Iterator[Subject], waiting: deque[Subject]) -> Iterator[Sample]:
    """Give what is asked, neighbours about the same image together; `waiting` grows by what it is about."""
    for _, group in groupby(subjects, key=lambda subject: subject.facts["key"] or object()):
        together: list[Subject] = []
        for subject in group:
            if subject.sample is None:
                waiting.append(subject)
                continue
            together.append(subject)
            if sum(len(each.questions) for each in together) >= _DIALOGS_TOGETHER:
                yield _joined(together, waiting)
                together = []
        if together:
            yield _joined(together, waiting)


def _joined(together: list[Subject], waiting: deque[Subject]) -> Sample:
    waiting.extend(together)
    samples = [subject.sample for subject in together if subject.sample is not None]
    return replace(samples[0], dialogs=[dialog for sample in samples for dialog in sample.dialogs])


def _good_rows(part: Any) -> list[Row]:
    """Read the rows of a part whose input row has no error anywhere. Raises DataError."""
    try:
        rows: list[Row] = pq.read_table(part).to_pylist()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{part}: is damaged ({error}); remove it, and the same call writes it again") from error
    bad = {row["row"] for row in rows if row["error"] is not None}
    return [row for row in rows if row["row"] not in bad]
