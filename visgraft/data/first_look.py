"""Whether every source holds something to learn from, found at its first good sample; and if it does not, what it is.

In:  opened sources, a processor. Out: nothing; DataError where a source has no good sample, with what it looks like.

    check_every_source(sources, processor)

A source of thousands of samples none of which is good is one misunderstanding, not thousands of accidents: so it is no
matter of the budget for bad samples. Of a good source one sample is read, of a bad one no more than would end a run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from visgraft.data.batch import EncodedSample
from visgraft.data.fingerprint import Fingerprint
from visgraft.data.quarantine import budget_of
from visgraft.data.readers.row_formats import image_like_columns
from visgraft.data.sample import Sample
from visgraft.data.sources import OpenSource, Sources, layers
from visgraft.errors import BadSampleError, DataError

_ALWAYS_READ = 256  # samples before a source is given up, however small the budget: most are read as a whole
_LONGEST_VALUE = 40  # characters of a value that is shown
_MOST_COLUMNS = 12
_SHOWN_BYTES = 60
_FIRST_ROWS = 8


class SampleEncoder(Protocol):
    """What is needed of a processor."""

    def encode(self, sample: Sample, *, max_pixels: int, exact_pixels: bool, bad: list[str] | None) -> EncodedSample:
        """Encode what of a sample can be used, or raise BadSampleError."""


def check_every_source(sources: Sources, processor: SampleEncoder, *, unfinished: Collection[str] = ()) -> None:
    """See that every source has a good sample; `unfinished` streams may have theirs behind the window that is open.

    Raises:
        DataError: one has none, or so many bad ones before it that the run would end.
    """
    settings = sources.settings
    most = max(_ALWAYS_READ, budget_of(len(sources), max_bad_fraction=settings.max_bad_fraction))
    for entry in every_source(sources):
        reasons: Counter[str] = Counter()
        places: dict[str, str] = {}
        for index in range(entry.length):
            try:
                sample = entry.samples[index]
                processor.encode(sample, max_pixels=settings.max_pixels, exact_pixels=settings.exact_pixels, bad=[])
                break
            except BadSampleError as error:
                reasons[str(error)] += 1
                places.setdefault(str(error), entry.samples.where(index))
            if reasons.total() > most:
                raise DataError(f"data.{sources.part}: {without_good_sample(entry, reasons, places)}")
        else:
            if entry.name not in unfinished:
                raise DataError(f"data.{sources.part}: {without_good_sample(entry, reasons, places)}")


def every_source(sources: Sources) -> Iterator[OpenSource]:
    """List the sources, and in the place of one that was gathered from several, these."""
    for entry in sources.opened:
        inner = next((layer for layer in layers(entry.samples) if isinstance(layer, Sources)), None)
        yield from [entry] if inner is None else inner.opened


def without_good_sample(entry: OpenSource, reasons: Mapping[str, int], places: Mapping[str, str]) -> str:
    """Say of a source that has no good sample why each is bad, and what its first row looks like.

    Args:
        entry: the source.
        reasons: of its bad samples, how many have each.
        places: where the first of each is.
    """
    tried = sum(reasons.values())
    if not tried:
        return f"source {entry.name!r} holds no sample at all; check its path and split, or take it out of the recipe"
    few = sorted(reasons.items(), key=lambda pair: -pair[1])[:3]
    named = "; ".join(f"{reason} ({number:,}, the first at {places[reason]})" for reason, number in few)
    how_many = f"all {tried:,} are" if tried == entry.length else f"the first {tried:,} of {entry.length:,} are"
    how_many = "its only one is" if entry.length == 1 else how_many
    looks = looks_of(entry)
    return (
        f"source {entry.name!r} has no good sample: {how_many} bad: {named}."
        f"{'' if looks is None else f' {looks}.'} Repair it, tell the reader how to read it (see docs/data.md), or "
        "take it out of the recipe"
    )


def looks_of(entry: OpenSource) -> str | None:
    """Describe the first row of a source by its columns, or how its file begins; None: it is not made of rows."""
    rows = _rows_of(entry)
    if rows is None or not len(rows):
        return None
    try:
        row = rows[0]
    except BadSampleError:
        return _beginning(rows.fingerprint)
    shown = [f"{key}: {_show(value)}" for key, value in list(row.items())[:_MOST_COLUMNS]]
    more = f", and {len(row) - _MOST_COLUMNS} more" if len(row) > _MOST_COLUMNS else ""
    return f"Its first row holds {{{', '.join(shown)}{more}}}"


def unused_image_columns(entry: OpenSource) -> list[str]:
    """Name the columns of a source's first rows that look like images and are not used."""
    rows = _rows_of(entry)
    used = {} if entry.entry is None else entry.entry.options.get("columns") or {}
    found: dict[str, None] = {}
    for index in range(0 if rows is None else min(_FIRST_ROWS, len(rows))):
        try:
            found |= dict.fromkeys(image_like_columns(rows[index]))
        except BadSampleError:
            continue  # looking at all of them gives the reason
    return [column for column in found if column not in used.values()]


def _rows_of(entry: OpenSource) -> Any:
    """Return the rows that a source is made of; None: there are none."""
    return next((layer.rows for layer in layers(entry.samples) if hasattr(layer, "rows")), None)


def _beginning(fingerprint: Fingerprint) -> str | None:
    """Show how the first file begins, if it holds text."""
    if not fingerprint.files:
        return None
    try:
        with Path(fingerprint.files[0].path).open("rb") as file:
            beginning = file.read(_SHOWN_BYTES)
    except OSError:
        return None
    return None if b"\0" in beginning else f"Its file begins with {beginning.decode('utf-8', 'replace')!r}"


def _show(value: Any) -> str:
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value):,}" + (f", the first {_show(value[0])}" if value else "")
    if isinstance(value, Mapping):
        return f"an object of {', '.join(map(str, list(value)[:_MOST_COLUMNS]))}"
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."
