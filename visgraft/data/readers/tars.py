"""Read WebDataset shards by sample number: every tar is indexed once, then any sample is one seek away.

In:  tar files in which the members of a sample follow one another under one name: 000.jpg, 000.json, 000.txt.
Out: Rows (see rows.py): {"__key__": "000", "jpg": FilePart, "json": {...}, "txt": "..."}; images stay in the tar.

    rows = TarRows(expand_paths("shards/train-{000..007}.tar"))
"""

from __future__ import annotations

import re
import tarfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from glob import has_magic
from pathlib import Path
from typing import Any

import numpy as np

from visgraft.data.fingerprint import Fingerprint, stamp
from visgraft.data.images.opening import FilePart
from visgraft.data.mixing import epoch_order
from visgraft.data.processes import ALONE, Processes
from visgraft.data.readers.rows import Row, parse_object
from visgraft.data.readers.splits import is_usual, not_there, synonyms, told_by, usual_name
from visgraft.data.readers.text_files import check_encoding, decode_text
from visgraft.data.row_streams import StreamedRow
from visgraft.disk_cache import Arrays
from visgraft.errors import BadSampleError, DataError, MissingAssetError

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")
_MOST_SAMPLES = 10**9  # of one tar: sample 17 of the third tar has the number 2_000_000_017 in a stream
_TEXT_SUFFIXES = ("txt", "text", "caption", "cls")


def expand_paths(pattern: str) -> list[Path]:
    """Return the files that a path means: a.tar, shards/*.tar, a-{000..127}.tar, a-{x,y}.tar, or a folder of tars.

    Raises MissingAssetError where there is none, or where one of a range is missing.
    """
    paths: list[Path] = []
    for name in _braces(str(Path(pattern).expanduser())):
        if Path(name).is_dir():
            paths += sorted(Path(name).glob("*.tar"))
        elif has_magic(name):
            paths += sorted(_glob(Path(name)))
        else:
            paths.append(Path(name))
    missing = [path for path in paths if not path.is_file()]
    if missing or not paths:
        named = f"{missing[0]} is missing" if missing else f"nothing matches {pattern}"
        raise MissingAssetError(
            f"webdataset: {named}; path is a tar, a folder of tars, a glob or name-{{000..127}}.tar"
        )
    return paths


def tars_of_split(pattern: str, *, split: str) -> list[Path]:
    """Return the tars of one split: those that {split} in the path means, or whose names or folder tell it, or all.

    Where no tar tells a split, or all tell the same, they are `train`.
    Raises DataError for a split that cannot be told, and what expand_paths raises.
    """
    named = [pattern.replace("{split}", name) for name in synonyms(split)]
    folder = Path(pattern).expanduser()
    if "{split}" not in pattern:
        named = [str(folder / name) for name in synonyms(split) if any((folder / name).glob("*.tar"))] or [pattern]
        if named == [pattern] and folder.is_dir() and not any(folder.glob("*.tar")):
            there = [place.name for place in folder.iterdir() if is_usual(place.name) and any(place.glob("*.tar"))]
            if there:
                raise not_there(split, there, reader="webdataset", where=pattern)
    for number, name in enumerate(named):
        try:
            tars = expand_paths(name)
            break
        except MissingAssetError:
            if number + 1 == len(named):
                expand_paths(named[0])  # raises, with the split as it was asked for
    if "{split}" in pattern or named != [pattern]:
        return tars
    told = {tar: told_by(tar) for tar in tars}
    splits = {name for name in told.values() if name is not None}
    wanted = [tar for tar in tars if told[tar] == usual_name(split)]
    if wanted and usual_name(split) == "train":
        wanted = [tar for tar in tars if told[tar] in ("train", None)]  # what tells none is of train, as everywhere
    if wanted or (len(splits) < 2 and usual_name(split) == "train"):
        return wanted or tars
    if splits:
        raise not_there(split, splits, reader="webdataset", where=pattern)
    raise DataError(
        f"webdataset: split: got {split!r}, but the tars of {pattern} do not tell their split; name those of that "
        "split, put {split} into the path, take slices (train[:90%]), or hold a share out (split: {validation: 10%})"
    )


def _glob(pattern: Path) -> Iterator[Path]:
    root = Path(pattern.anchor)
    return root.glob(str(pattern.relative_to(root)))


def _braces(text: str) -> Iterator[str]:
    found = _RANGE.search(text)
    if found is None:
        yield text
        return
    first, last, choices = found.groups()
    if choices is not None:
        values = choices.split(",")
    else:
        values = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    for value in values:
        yield from _braces(text[: found.start()] + value + text[found.end() :])


class TarRows:
    """Hold where the members of every sample of some tars lie. See Rows."""

    def __init__(self, paths: Sequence[Path], *, encoding: str | None = None, processes: Processes = ALONE) -> None:
        self._paths = list(paths)
        self._encoding = check_encoding(encoding)
        index = processes.make_arrays(
            partial(_index, self._paths),
            length=len(self._paths),
            join=_join_indices,
            fingerprint=f"members of tars {stamp(self._paths)}",
        )
        self._suffixes: list[str] = index["suffixes"].tolist()
        self._keys, self._shards, self._starts = index["keys"], index["shards"], index["starts"]
        self._kinds, self._places = index["kinds"], index["places"]

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> Row:
        members = slice(self._starts[index], self._starts[index + 1])
        path, places = self._paths[self._shards[index]], self._places[members].tolist()
        kinds = [self._suffixes[number] for number in self._kinds[members].tolist()]
        parts = [(suffix, FilePart(path, *place)) for suffix, place in zip(kinds, places, strict=True)]
        return row_of_parts(self._key(index), parts, encoding=self._encoding)

    def _key(self, index: int) -> str:
        return bytes(self._keys[index]).decode("utf-8", "surrogateescape")

    def suffixes_together(self, wanted: Callable[[str], bool]) -> list[str]:
        """Return the suffixes that are wanted, where some sample has several of them; else none."""
        chosen = [number for number, suffix in enumerate(self._suffixes) if wanted(suffix)]
        if len(chosen) < 2 or not len(self):
            return []
        counts = np.add.reduceat(np.isin(self._kinds, chosen).astype(np.int32), self._starts[:-1])
        several = np.repeat(counts > 1, np.diff(self._starts))
        there = set(np.unique(self._kinds[several]).tolist())
        return [self._suffixes[number] for number in chosen if number in there]

    def where(self, index: int) -> str:
        """Say which sample of which tar it is."""
        return f"{self._paths[self._shards[index]].name} sample {self._key(index)}"

    @property
    def fingerprint(self) -> Fingerprint:
        """Return path, size and time of the tars."""
        return stamp(self._paths, marks=[] if self._encoding is None else [f"encoding {self._encoding}"])


def row_of_parts(key: str, parts: Sequence[tuple[str, FilePart]], *, encoding: str | None = None) -> Row:
    """Read the members of a sample that are JSON or text; images stay where they are. Raises BadSampleError."""
    row: dict[str, Any] = {"__key__": key}
    for suffix, part in parts:
        last = suffix.rpartition(".")[2]
        if last == "json":
            text = decode_text(part.read(), encoding=encoding, what="json member")
            row[suffix] = parse_object(text, what="json member")
        elif last in _TEXT_SUFFIXES:
            row[suffix] = decode_text(part.read(), encoding=encoding, what="text member")
        else:
            row[suffix] = part
    return row


def samples_of_tar(path: Path) -> Iterator[tuple[str, list[tuple[str, FilePart]]]]:
    """Go through the headers of a tar: every sample's name and its members by suffix. Raises TarError, OSError.

    A tar that is damaged raises at its end, behind the samples that are whole.
    """
    current: str | None = None
    parts: list[tuple[str, FilePart]] = []
    end, size = 0, path.stat().st_size
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # else it keeps an object of every member it has met
            end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            folder, _, name = member.name.rpartition("/")
            stem, dot, suffix = name.partition(".")
            if not member.isfile() or not dot or not stem:
                continue
            key = f"{folder}/{stem}" if folder else stem
            if key != current:
                if current is not None:
                    yield current, parts
                current, parts = key, []
            parts.append((suffix.lower(), FilePart(path, member.offset_data, member.size)))
    if current is not None and end <= size:
        yield current, parts
    with path.open("rb") as file:  # tarfile ends in silence where a header is cut off or is none
        file.seek(end)
        block = file.read(tarfile.BLOCKSIZE)
    if end > size or 0 < len(block) < tarfile.BLOCKSIZE or block.strip(b"\0"):
        raise tarfile.ReadError(f"it is damaged behind byte {min(end, size):,}")


def first_suffixes(path: Path) -> list[str]:
    """Return the suffixes of the first sample of a tar; none of one that is damaged."""
    try:
        return [suffix for suffix, _ in next(samples_of_tar(path), ("", []))[1]]
    except (tarfile.TarError, OSError):
        return []


class TarStream:
    """Read tars from beginning to end, without an index, every epoch in another order of the tars. See RowStream.

    A place is [how many tars are done, how many samples of the next one].
    """

    def __init__(self, paths: Sequence[Path], *, encoding: str | None = None) -> None:
        self._paths = list(paths)
        self._encoding = check_encoding(encoding)

    @property
    def fingerprint(self) -> Fingerprint:
        """Return path, size and time of the tars."""
        return stamp(self._paths)

    def read(self, *, seed: int | None, epoch: int, place: Any) -> Iterator[StreamedRow]:
        """Read on from a place; a tar that is damaged gives one bad row, and the next one is read."""
        num_tars = len(self._paths)
        order = range(num_tars) if seed is None else epoch_order(num_tars, seed=seed, epoch=epoch).tolist()
        done, skipped = place or (0, 0)
        for turn in range(done, num_tars):
            number, path = order[turn], self._paths[order[turn]]
            inside = 0
            try:
                for key, parts in samples_of_tar(path):
                    inside += 1
                    if inside <= skipped:
                        continue
                    where = f"{path.name} sample {key}"
                    yield StreamedRow(self._row(key, parts), number * _MOST_SAMPLES + inside - 1, where, [turn, inside])
            except (tarfile.TarError, OSError):
                yield StreamedRow("tar is damaged", number * _MOST_SAMPLES + inside, path.name, [turn + 1, 0])
            skipped = 0

    def _row(self, key: str, parts: Sequence[tuple[str, FilePart]]) -> Row | str:
        try:
            return row_of_parts(key, parts, encoding=self._encoding)
        except BadSampleError as error:
            return str(error)


def _index(paths: Sequence[Path], tars: range) -> Arrays:
    """Go through the headers of some of the tars: which members each sample has, and where they lie."""
    suffixes: dict[str, int] = {}
    kinds, places = array("i"), array("q")  # of each member, its suffix; its offset and its size
    shards, counts = array("i"), array("i")  # of each sample, its tar and how many members it has
    keys: list[bytes] = []
    for number in tars:
        path = paths[number]
        try:
            for key, parts in samples_of_tar(path):
                keys.append(key.encode("utf-8", "surrogateescape"))
                shards.append(number)
                counts.append(len(parts))
                for suffix, part in parts:
                    kinds.append(suffixes.setdefault(suffix, len(suffixes)))
                    places.extend((part.offset, part.size_bytes))
        except (tarfile.TarError, OSError) as error:
            raise DataError(
                f"webdataset: {path} is no whole, plain tar ({error}); fetch it again, or unpack a compressed one"
            ) from error
    return {
        "suffixes": np.array(list(suffixes), dtype=np.str_),
        "kinds": np.array(kinds, dtype=np.int16),
        "places": np.array(places, dtype=np.int64).reshape(-1, 2),
        "counts": np.array(counts, dtype=np.int32),
        "shards": np.array(shards, dtype=np.int32),
        "keys": np.array(keys, dtype=np.bytes_),
    }


def _join_indices(parts: Sequence[Arrays]) -> Arrays:
    """Put the indices of stretches of tars together, in their order."""
    suffixes = list(dict.fromkeys(suffix for part in parts for suffix in part["suffixes"].tolist()))
    numbered = [np.array([suffixes.index(suffix) for suffix in part["suffixes"]], np.int16) for part in parts]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in ("places", "shards", "keys")}
    starts = np.zeros(len(joined["shards"]) + 1, np.int64)
    np.cumsum(np.concatenate([part["counts"] for part in parts]), out=starts[1:])
    kinds = np.concatenate([new[part["kinds"]] for new, part in zip(numbered, parts, strict=True)])
    return {**joined, "suffixes": np.array(suffixes, dtype=np.str_), "kinds": kinds, "starts": starts}
