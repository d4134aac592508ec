"""Read all the data of a recipe once, as training would, and say what is there, what is bad and what is odd.

In:  sources or streams, a processor. Out: a report per source: samples, images, texts, tokens, bad samples by reason.

    reports = check_sources(sources, processor, num_workers=2)
    print(reports[0].as_json())
    findings = find(reports, settings=recipe.data)               # of findings.py

Opening and encoding every image is nearly all of the work; with_images=False leaves it out, and with it what only
the pixels tell: broken, blank and tiny images, and copies of an image under another name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from torch.utils.data import DataLoader, Dataset

from visgraft.data.first_look import looks_of, unused_image_columns
from visgraft.data.quarantine import budget_of
from visgraft.data.records import Encoder, Looker, SampleRecord
from visgraft.data.source_report import SourceReport
from visgraft.data.sources import Sources, is_balanced
from visgraft.data.windows import Streams
from visgraft.errors import BadSampleError

_CHUNK = 32  # samples a worker reads before it reports


def check_sources(
    sources: Sources,
    processor: Encoder,
    *,
    num_workers: int = 0,
    with_images: bool = True,
    progress: Callable[[int], None] | None = None,
) -> list[SourceReport]:
    """Read, decode and encode every sample; progress gets how many are done, as they are."""
    reports = _new_reports(sources)
    _read(sources, processor, reports, num_workers=num_workers, with_images=with_images, progress=progress)
    budget = budget_of(len(sources), max_bad_fraction=sources.settings.max_bad_fraction)
    return _finished(reports, sources, budget=budget)


def check_streams(
    streams: Streams,
    processor: Encoder,
    *,
    num_workers: int = 0,
    with_images: bool = True,
    progress: Callable[[int], None] | None = None,
) -> list[SourceReport]:
    """Read streams once to their end, as the first epoch of an unshuffled training would."""
    window = streams.window(seed=None, epoch=0, place=None)
    reports = _new_reports(window.sources)
    first = window.sources
    while True:
        _read(window.sources, processor, reports, num_workers=num_workers, with_images=with_images, progress=progress)
        if window.after is None:
            break
        window = streams.window(seed=None, epoch=0, place=window.after)
    budget = budget_of(window.num_read, max_bad_fraction=streams.settings.max_bad_fraction)
    return _finished(reports, first, budget=budget)


def is_within_budget(reports: Sequence[SourceReport]) -> bool:
    """Say whether training would go through: no part has more bad samples than it may have."""
    bad: Counter[str] = Counter()
    for report in reports:
        bad[report.part] += report.bad
    return all(bad[report.part] <= report.budget for report in reports)


def _new_reports(sources: Sources) -> dict[str, SourceReport]:
    return {
        entry.name: SourceReport(
            entry.name,
            sources.part,
            epochs=weight,
            is_balanced=is_balanced(entry),
            notes=entry.notes,
            unused_columns=unused_image_columns(entry),
        )
        for entry, weight in zip(sources.opened, sources.weights, strict=True)
    }


def _read(
    sources: Sources,
    processor: Encoder,
    reports: dict[str, SourceReport],
    *,
    num_workers: int,
    with_images: bool,
    progress: Callable[[int], None] | None,
) -> None:
    for entry in sources.opened:
        reports[entry.name].samples += entry.length
    looker = Looker(processor, settings=sources.settings, with_images=with_images)
    for record in _records(sources, looker, num_workers=num_workers):
        report = reports[sources.find(record.number)[0].name]
        report.add(record, where=lambda number=record.number: sources.where(number))  # type: ignore[misc]
        if progress is not None:
            progress(1)


def _finished(reports: dict[str, SourceReport], sources: Sources, *, budget: int) -> list[SourceReport]:
    for entry in sources.opened:
        report = reports[entry.name]
        report.budget = budget
        if report.lost == report.samples:
            report.looks = looks_of(entry)
    return list(reports.values())


def _records(sources: Sources, looker: Looker, *, num_workers: int) -> Iterator[SampleRecord]:
    chunks = [range(first, min(first + _CHUNK, len(sources))) for first in range(0, len(sources), _CHUNK)]
    loader = DataLoader(_Looked(sources, looker), sampler=chunks, batch_size=None, num_workers=num_workers)
    for chunk in loader:
        yield from chunk


class _Looked(Dataset[list[SampleRecord]]):
    """Look at chunks of samples, in worker processes if there are any."""

    def __init__(self, sources: Sources, looker: Looker) -> None:
        self._sources = sources
        self._looker = looker

    def __getitem__(self, indices: range) -> list[SampleRecord]:
        return [self._look(index) for index in indices]

    def _look(self, index: int) -> SampleRecord:
        entry, inner = self._sources.find(index)
        try:
            sample = entry.samples[inner]
        except BadSampleError as error:
            return SampleRecord(index, str(error))
        return self._looker.look(sample, number=index)
