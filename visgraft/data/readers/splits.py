"""What `split:` means, for every reader alike.

In:  the recipe's text: a name, a slice of it, or several joined by +, as `datasets` writes them:
     train    val    train[:10%]    train[4:]    train[-100:]    train[:2]+test    train[10%:20%](pct1_dropremainder)
     `validation`, `val`, `valid` and `dev` are one thing.
Out: its parts; of rows or samples that a name stands for, those that the slice takes. What is not divided into splits
     is `train`; another split of it is an error that says how to get one.

    rows = rows_of_split("train[:10%]+test", reader="parquet", open_named=open_files_of)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import trunc
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from visgraft.data.fingerprint import Fingerprint
from visgraft.data.readers.rows import Row, Rows, join_rows
from visgraft.data.sample import Sample, Source
from visgraft.errors import DataError

SYNONYMS = (("train", "training"), ("validation", "val", "valid", "dev"), ("test", "testing"))
_PART = re.compile(
    r"(?P<name>\w[\w.-]*)"
    r"(?P<slice>\[((?P<start>-?\d[\d_]*)(?P<start_percent>%)?)?:((?P<stop>-?\d[\d_]*)(?P<stop_percent>%)?)?\])?"
    r"(\((?P<rounding>closest|pct1_dropremainder)\))?"
)


@dataclass(frozen=True)
class SplitPart:
    """Name a split and what is taken of it: from start to stop, in rows or in percent; None: from or to its end."""

    name: str
    start: int | None = None
    stop: int | None = None
    is_percent: bool = False
    has_whole_percents: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether all of it is taken."""
        return self.start is None and self.stop is None

    def bounds(self, length: int) -> range:
        """Return the rows that are taken of so many, as `datasets` counts them."""
        first, last = (self._row(bound, length) for bound in (self.start, self.stop))
        places = [0 if first is None else first, length if last is None else last]
        start, stop = (min(max(length + place, 0) if place < 0 else place, length) for place in places)
        return range(start, max(start, stop))

    def _row(self, bound: int | None, length: int) -> int | None:
        if bound is None or not self.is_percent:
            return bound
        return bound * trunc(length / 100) if self.has_whole_percents else round(bound * length / 100)

    def __str__(self) -> str:
        if self.is_whole:
            return self.name
        unit = "%" if self.is_percent else ""
        first, last = ("" if bound is None else f"{bound}{unit}" for bound in (self.start, self.stop))
        return f"{self.name}[{first}:{last}]"


def parse_split(split: str, *, reader: str) -> list[SplitPart]:
    """Return the parts of a split; raises DataError where it is written in no such way."""
    parts = []
    for text in re.split(r"\s*\+\s*", split.strip()):
        found = _PART.fullmatch(text)
        percents = [] if found is None else [found[f"{end}_percent"] for end in ("start", "stop") if found[end]]
        start, stop = (int(found[end]) if found is not None and found[end] else None for end in ("start", "stop"))
        is_percent = any(percents)
        if (
            found is None
            or (percents and len(set(percents)) > 1)
            or (found["rounding"] and not is_percent)
            or (is_percent and any(bound is not None and abs(bound) > 100 for bound in (start, stop)))
        ):
            raise DataError(
                f"{reader}: split: got {split!r}; write a name (train, validation, test), a slice of it such as "
                "train[:10%], train[4:] or train[-100:], or several joined by +"
            )
        parts.append(SplitPart(found["name"], start, stop, is_percent, found["rounding"] == "pct1_dropremainder"))
    return parts


def synonyms(name: str) -> tuple[str, ...]:
    """Return all names of a split, that which was given first."""
    others = next((names for names in SYNONYMS if name.lower() in names), ())
    return tuple(dict.fromkeys((name, *others)))


def usual_name(name: str) -> str:
    """Return the name by which a split is known here: train, validation, test, or its own."""
    return next((names[0] for names in SYNONYMS if name.lower() in names), name)


def is_usual(name: str) -> bool:
    """Say whether a name can only be that of a split."""
    return any(name.lower() in names for names in SYNONYMS)


def find_name(name: str, there: Iterable[str]) -> str | None:
    """Return that of the splits there which a name means, whatever it is called; None: it is not there."""
    listed = list(there)
    return next((other for other in synonyms(name) if other in listed), None)


def told_by(path: Path) -> str | None:
    """Return the split that a file's name tells (captions_val2017.json, llava-train.json, val/rows.jsonl)."""
    words = re.findall(r"[a-z]+", path.name.partition(".")[0].lower())
    told = {usual_name(word) for word in words if is_usual(word)}
    if not told and is_usual(path.parent.name):
        told = {usual_name(path.parent.name)}
    return told.pop() if len(told) == 1 else None


def check_undivided(name: str, path: Path, *, reader: str) -> None:
    """Let what is not divided into splits be `train`, or what its own name says; raises DataError for another split."""
    if usual_name(name) in ("train", told_by(path)):
        return
    raise DataError(
        f"{reader}: split: got {name!r}, but {path} is not divided into splits, so that it cannot be told which of its "
        f"rows are {name}; name the file of that split, take slices (train[:90%] and train[90%:]), or hold a share out "
        "(split: {validation: 10%})"
    )


def not_there(name: str, there: Iterable[str], *, reader: str, where: object) -> DataError:
    """Return the error of a split that is not there, with those that are."""
    return DataError(f"{reader}: split: got {name!r}, but {where} has {', '.join(sorted(there)) or 'no split at all'}")


# --- Rows of a split


class SomeRows:
    """Hold some rows of others, in their order. See Rows."""

    def __init__(
        self, rows: Rows, indices: Sequence[int] | NDArray[np.int64], *, name: str, note: str | None = None
    ) -> None:
        self._rows, self._indices, self._name = rows, indices, name
        self.notes = [*([] if note is None else [note]), *notes_of(rows)]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Row:
        return self._rows[int(self._indices[index])]

    def where(self, index: int) -> str:
        """Say where it stands in its file."""
        return self._rows.where(int(self._indices[index]))

    @property
    def fingerprint(self) -> Fingerprint:
        """Return that of the rows, and which of them."""
        return self._rows.fingerprint + Fingerprint(marks=(self._name,))


def rows_of_split(split: str, *, reader: str, open_named: Callable[[str], Rows]) -> Rows:
    """Return the rows of a split; open_named gives all those of a name.

    Raises DataError where a part has no row.
    """
    found: list[Rows] = []
    for part in parse_split(split, reader=reader):
        rows = open_named(part.name)
        taken = part.bounds(len(rows))
        if len(rows) and not len(taken):
            raise DataError(f"{reader}: split: {part} takes no row of the {len(rows):,} that there are")
        found.append(rows if part.is_whole else SomeRows(rows, taken, name=str(part)))
    return join_rows(found)


def notes_of(rows: Rows) -> list[str]:
    """Return what is to be said of how rows were chosen."""
    notes: list[str] = getattr(rows, "notes", [])
    return notes


def split_of_row(row: Row) -> str | None:
    """Return what a row says of the split that it belongs to, in a column `split`."""
    value = row.get("split")
    return value if isinstance(value, str) and value else None


# --- Samples of a split, of readers that gather by image


class SomeSamples:
    """Hold stretches of sources one behind the other. See Source."""

    def __init__(self, parts: Sequence[tuple[Source, range]], *, name: str) -> None:
        self._parts = list(parts)
        self._name = name
        self._starts = np.cumsum([0, *(len(taken) for _, taken in parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Sample:
        source, inner = self._find(index)
        return source[inner]

    def where(self, index: int) -> str:
        """Say what its source says."""
        source, inner = self._find(index)
        return source.where(inner)

    def _find(self, index: int) -> tuple[Source, int]:
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        source, taken = self._parts[number]
        return source, taken[index - int(self._starts[number])]

    @property
    def num_dialogs(self) -> NDArray[np.int64]:
        """The dialogs of each sample."""
        return np.concatenate([source.num_dialogs[taken.start : taken.stop] for source, taken in self._parts])  # type: ignore[attr-defined]

    @property
    def fingerprint(self) -> Fingerprint:
        """Return those of the sources, and which samples."""
        each = (source.fingerprint for source, _ in self._parts)  # type: ignore[attr-defined]
        return sum(each, Fingerprint(marks=(self._name,)))

    @property
    def image_files(self) -> list[str]:
        """The paths of the images, those that are not taken among them."""
        named = [name for source, _ in self._parts for name in source.image_files]  # type: ignore[attr-defined]
        return list(dict.fromkeys(named))


def samples_of_split(split: str, *, reader: str, open_named: Callable[[str], Source]) -> Source:
    """Return the samples of a split of a reader whose samples are images; open_named gives all those of a name.

    Raises DataError where a part has no sample.
    """
    parts = parse_split(split, reader=reader)
    if len(parts) == 1 and parts[0].is_whole:
        return open_named(parts[0].name)
    taken = [(source, part.bounds(len(source))) for part in parts for source in [open_named(part.name)]]
    for part, (source, places) in zip(parts, taken, strict=True):
        if not len(places):
            raise DataError(f"{reader}: split: {part} takes no image of the {len(source):,} that there are")
    return SomeSamples(taken, name=" + ".join(map(str, parts)))
