"""Read all the data of a recipe once, as training would, and say what is there and what is bad.

In:  sources or streams, a processor. Out: a report per source: samples, images, texts, tokens, bad samples by reason.

    reports = check_sources(sources, processor, part="train", num_workers=2)
    print(reports[0].as_json())
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch.utils.data import DataLoader, Dataset

from visgraft.data.batch import EncodedSample
from visgraft.data.quarantine import budget_of
from visgraft.data.sample import Sample
from visgraft.data.sources import Sources
from visgraft.data.windows import Streams
from visgraft.errors import BadSampleError

_CHUNK = 32  # samples a worker reads before it reports
_NUM_EXAMPLES = 3  # places named per reason


class SampleEncoder(Protocol):
    """What is needed of a processor."""

    def encode(self, sample: Sample, *, max_pixels: int, exact_pixels: bool, bad: list[str]) -> EncodedSample:
        """Encode a sample, or raise BadSampleError; `bad` gets the reasons of dialogs that are left out."""


class CheckedSample(NamedTuple):
    """What one sample turned out to be; reason is None of a good one. Of a bad one, some dialogs may yet be good."""

    number: int
    num_images: int
    num_tokens: tuple[int, ...]
    num_supervised: int
    num_truncated: int
    reason: str | None


@dataclass
class SourceReport:
    """What one source holds.

    Attributes:
        source: its name, unique in its part.
        part: train, validation or test.
        samples: all of them, bad ones included; a sample is one image (or list of images) with its texts.
        lost: the bad ones of which nothing can be used; of the others, only some of the texts are bad.
        epochs: how often it comes in an epoch of the whole, its weight after the mixing temperature.
        images, texts: of the good samples; a text is one dialog.
        tokens: length of every text, prompt and answer.
        budget: bad samples allowed in its part.
        reasons, examples: of the bad samples, how many and where the first ones are.
        notes: what the reader has to say.
    """

    source: str
    part: str
    samples: int
    epochs: float
    budget: int
    lost: int = 0
    images: int = 0
    texts: int = 0
    supervised: int = 0
    truncated: int = 0
    tokens: list[int] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def bad(self) -> int:
        """The number of bad samples."""
        return sum(self.reasons.values())

    @property
    def texts_per_image(self) -> float:
        """How many texts share an image prefix, on average."""
        good = self.samples - self.lost
        return self.texts / good if good else 0.0

    def percentile(self, part: float) -> int:
        """Return the length in tokens that so many percent of the texts do not exceed."""
        return int(np.percentile(self.tokens, part, method="inverted_cdf")) if self.tokens else 0

    def add(self, other: SourceReport) -> None:
        """Add what a later stretch of the same source holds."""
        for name in ("samples", "lost", "images", "texts", "supervised", "truncated", "tokens", "reasons"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for reason, places in other.examples.items():
            self.examples[reason] = [*self.examples.get(reason, []), *places][:_NUM_EXAMPLES]

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "source": self.source,
            "part": self.part,
            "samples": self.samples,
            "images": self.images,
            "texts": self.texts,
            "texts_per_image": round(self.texts_per_image, 3),
            "tokens": {"median": self.percentile(50), "p95": self.percentile(95), "max": self.percentile(100)},
            "supervised_tokens": self.supervised,
            "truncated": self.truncated,
            "epochs": self.epochs,
            "bad": self.bad,
            "bad_allowed": self.budget,
            "reasons": dict(self.reasons.most_common()),
            "examples": self.examples,
            "notes": list(self.notes),
        }


def check_sources(
    sources: Sources,
    processor: SampleEncoder,
    *,
    part: str,
    num_workers: int = 0,
    progress: Callable[[int], None] | None = None,
) -> list[SourceReport]:
    """Read, decode and encode every sample; progress gets how many are done, as they are."""
    budget = budget_of(len(sources), max_bad_fraction=sources.settings.max_bad_fraction)
    reports = {
        entry.name: SourceReport(
            entry.name, part, samples=entry.length, epochs=weight, budget=budget, notes=entry.notes
        )
        for entry, weight in zip(sources.opened, sources.weights, strict=True)
    }
    for checked in _check_samples(sources, processor, num_workers=num_workers):
        report = reports[sources.find(checked.number)[0].name]
        report.lost += not checked.num_tokens
        report.images += checked.num_images
        report.texts += len(checked.num_tokens)
        report.supervised += checked.num_supervised
        report.truncated += checked.num_truncated
        report.tokens += checked.num_tokens
        if checked.reason is not None:
            report.reasons[checked.reason] += 1
            examples = report.examples.setdefault(checked.reason, [])
            if len(examples) < _NUM_EXAMPLES:
                examples.append(sources.where(checked.number))
        if progress is not None:
            progress(1)
    return list(reports.values())


def check_streams(
    streams: Streams,
    processor: SampleEncoder,
    *,
    part: str,
    num_workers: int = 0,
    progress: Callable[[int], None] | None = None,
) -> list[SourceReport]:
    """Read streams once to their end, as the first epoch of an unshuffled training would."""
    totals: dict[str, SourceReport] = {}
    num_read, place = 0, None
    while not totals or place is not None:
        window = streams.window(seed=None, epoch=0, place=place)
        reports = check_sources(window.sources, processor, part=part, num_workers=num_workers, progress=progress)
        for report in reports:
            if report.source in totals:
                totals[report.source].add(report)
            else:
                totals[report.source] = report
        num_read, place = window.num_read, window.after
    for report in totals.values():
        report.budget = budget_of(num_read, max_bad_fraction=streams.settings.max_bad_fraction)
    return list(totals.values())


def is_within_budget(reports: Sequence[SourceReport]) -> bool:
    """Say whether training would go through: no part has more bad samples than it may have."""
    bad: Counter[str] = Counter()
    for report in reports:
        bad[report.part] += report.bad
    return all(bad[report.part] <= report.budget for report in reports)


def _check_samples(sources: Sources, processor: SampleEncoder, *, num_workers: int) -> Iterator[CheckedSample]:
    chunks = [range(first, min(first + _CHUNK, len(sources))) for first in range(0, len(sources), _CHUNK)]
    loader = DataLoader(
        _CheckedSamples(sources, processor),
        sampler=chunks,
        batch_size=None,
        num_workers=num_workers,
    )
    for chunk in loader:
        yield from chunk


class _CheckedSamples(Dataset[list[CheckedSample]]):
    """Check chunks of samples, in worker processes if there are any."""

    def __init__(self, sources: Sources, processor: SampleEncoder) -> None:
        self._sources = sources
        self._processor = processor

    def __getitem__(self, indices: range) -> list[CheckedSample]:
        return [self._check(index) for index in indices]

    def _check(self, index: int) -> CheckedSample:
        settings = self._sources.settings
        bad: list[str] = []
        try:
            named = self._sources[index]
            sample = self._processor.encode(
                named, max_pixels=settings.max_pixels, exact_pixels=settings.exact_pixels, bad=bad
            )
        except BadSampleError as error:
            return CheckedSample(index, 0, (), 0, 0, str(error))
        return CheckedSample(
            number=index,
            num_images=len(named.images),
            num_tokens=tuple(len(dialog.input_ids) for dialog in sample.dialogs),
            num_supervised=sum(sum(dialog.supervised) for dialog in sample.dialogs),
            num_truncated=sum(dialog.truncated for dialog in sample.dialogs),
            reason=bad[0] if bad else None,
        )
