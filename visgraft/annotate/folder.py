"""The folder that is written: its manifest, its parts, and what of the work is done. A part that is there is whole.

In: what answers depend on. Out: `Output`, which refuses a folder of other work, and knows by names alone what is done.

    OUT/
      manifest.json                              what every answer depends on, the input shards, what the columns are
      data/train-00003-0000000512-of-0000010000.parquet    rows from 512 on of input shard 3, which has 10,000 rows
      claims/                                    who works on what; may be removed when nobody works
      progress.json                              how far all processes together are

    output = Output.begin(Path("labels"), key=key, collection=collection, rows_per_unit=512)
    output.done().units
"""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from visgraft.annotate.collection import Collection, Shard
from visgraft.annotate.request import ROWS_PER_UNIT
from visgraft.annotate.rows import COLUMNS
from visgraft.atomic import put_in_place, refusals_told, write_json
from visgraft.errors import CheckpointError, ConfigError, DataError
from visgraft.listing import listing
from visgraft.parsing import parse_json

MANIFEST, PROGRESS, DATA, CLAIMS = "manifest.json", "progress.json", "data", "claims"
OURS = {MANIFEST, PROGRESS, DATA, CLAIMS}
_PART = re.compile(r"train-(\d{5,})-(\d{10,})-of-(\d{10,})\.parquet")
_FORM = 1  # of the folder
_GO_ON = "name a new folder, or call it again as the folder was begun"


@dataclass(frozen=True, order=True)
class Unit:
    """Some rows of an input shard, whose answers are written together.

    Attributes:
        shard: number of the input shard.
        start: first row.
        stop: behind the last one.
        total: rows of the shard.
    """

    shard: int
    start: int
    stop: int
    total: int

    @property
    def name(self) -> str:
        """Its name in the folder."""
        return f"train-{self.shard:05d}-{self.start:010d}-of-{self.total:010d}"


@dataclass(frozen=True)
class Done:
    """What is done.

    Attributes:
        units: whose part is there, as (shard, start).
        totals: rows of each shard of which some part is there.
        num_rows: that are done.
    """

    units: frozenset[tuple[int, int]] = frozenset()
    totals: Mapping[int, int] = field(default_factory=dict)
    num_rows: int = 0


@dataclass(frozen=True)
class Output:
    """A folder that is written.

    Attributes:
        folder: where.
        rows_per_unit: of an input shard that are written together.
    """

    folder: Path
    rows_per_unit: int

    @classmethod
    def begin(
        cls, folder: Path, *, key: Mapping[str, Any], collection: Collection, rows_per_unit: int | None
    ) -> Output:
        """Begin a folder, or go on with one that was begun in the same way; several processes may at once.

        Args:
            folder: new, empty, or one of ours.
            key: what every answer depends on, in words and sums.
            collection: what is labelled.
            rows_per_unit: None = as the folder was begun, else 512.

        Raises:
            ConfigError: it is a file, or holds something else.
            CheckpointError: it was begun with another model, other prompts, other data, ...; the message says which.
        """
        check_folder(folder)
        path = folder / MANIFEST
        wanted = rows_per_unit or ROWS_PER_UNIT
        new: dict[str, Any] = {
            "form": _FORM,
            "visgraft": version("visgraft"),
            "begun": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "key": {**key, "rows_per_unit": wanted},
            "data": {"name": collection.name, "shards": [_described(shard) for shard in collection.shards]},
            "columns": COLUMNS,
        }
        if not path.exists():
            with refusals_told(folder):
                (folder / DATA).mkdir(parents=True, exist_ok=True)
            _write_first(path, new)
        manifest = _read(path)
        if rows_per_unit is None:
            new["key"]["rows_per_unit"] = manifest["key"].get("rows_per_unit")
        output = cls(folder, int(manifest["key"]["rows_per_unit"]))
        changed = _refuse_other_work(folder, manifest, new, done=output.done())
        if changed:  # of a shard that no one could read, say, and that was mended
            write_json(path, {**manifest, "data": new["data"]})
        return output

    # --- Parts

    def part(self, unit: Unit) -> Path:
        """Where the answers of a unit are, or will be."""
        return self.folder / DATA / f"{unit.name}.parquet"

    def done(self) -> Done:
        """Look which parts are there."""
        units, totals, num_rows = set(), {}, 0
        with suppress(FileNotFoundError), os.scandir(self.folder / DATA) as entries:
            for entry in entries:
                found = _PART.fullmatch(entry.name)
                if found is None:
                    continue
                shard, start, total = map(int, found.groups())
                units.add((shard, start))
                totals[shard] = total
                num_rows += min(self.rows_per_unit, total - start)
        return Done(frozenset(units), totals, num_rows)

    def units_of(self, shard: int, *, total: int) -> list[Unit]:
        """Divide a shard; one without rows is a unit of none, so that it is known to be done."""
        starts = range(0, max(total, 1), self.rows_per_unit)
        return [Unit(shard, start, min(start + self.rows_per_unit, total), total) for start in starts]

    def parts(self) -> list[Path]:
        """List the parts that are there, in the order of their rows."""
        return [part for part, _ in listing(self.folder / DATA, "train-*.parquet") if _PART.fullmatch(part.name)]

    def sweep(self) -> None:
        """Remove what killed processes left; for when nothing is left to do."""
        for path, _ in [*listing(self.folder / DATA, ".*.new"), *listing(self.folder, ".*.new")]:
            path.unlink(missing_ok=True)
        with suppress(OSError):  # someone is there again
            for path, _ in [*listing(self.folder / CLAIMS, "*.json"), *listing(self.folder / CLAIMS, ".*.takeover")]:
                path.unlink(missing_ok=True)
            (self.folder / CLAIMS).rmdir()

    def write_progress(self, values: Mapping[str, Any]) -> None:
        """Write how far all is."""
        write_json(self.folder / PROGRESS, values)


def num_errors(part: Path) -> int:
    """Count the rows of a part that have an error, without reading it. Raises DataError for a damaged part."""
    try:
        metadata = pq.read_metadata(part)
        if not metadata.num_rows:
            return 0
        place = next(i for i in range(metadata.num_columns) if metadata.schema.column(i).path == "error")
        groups = [metadata.row_group(number).column(place) for number in range(metadata.num_row_groups)]
        return sum(group.num_values - group.statistics.null_count for group in groups)
    except (OSError, ValueError, StopIteration, AttributeError, pa.ArrowException) as error:
        raise DataError(f"{part}: is damaged ({error}); remove it, and the same call writes it again") from error


def check_folder(folder: Path) -> None:
    """Refuse a folder that is written by something else.

    Raises:
        ConfigError: it is a file, or holds other files.
    """
    if folder.is_file():
        raise ConfigError(f"{folder}: is a file; name a folder for the answers")
    if not folder.is_dir() or (folder / MANIFEST).is_file():
        return
    names = [found.path.name for found in listing(folder)]
    strange = [name for name in names if not name.startswith(".") and name not in OURS]
    if strange:
        raise ConfigError(
            f"{folder}: holds {strange[0]} and was not begun by `visgraft annotate`; name a new folder for the answers"
        )


def _described(shard: Shard) -> dict[str, Any]:
    return {"name": shard.name, "source": shard.source, "rows": shard.num_rows, "sum": shard.described}


def _write_first(path: Path, values: Mapping[str, Any]) -> None:
    """Write the manifest unless another process has just written it: of several, one does."""
    building = path.with_name(f".{path.name}.{uuid4().hex}.new")
    with refusals_told(path, building=building):
        write_json(building, values)
        try:
            os.link(building, path)
        except FileExistsError:
            return
        except OSError:  # a file system without links; two that begin in the same instant read each other's below
            if not path.exists():
                put_in_place(building, path)


def _read(path: Path) -> dict[str, Any]:
    try:
        manifest = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); bring it back, or name a new folder") from error
    if not isinstance(manifest, dict) or not {"form", "key", "data"} <= manifest.keys():
        raise CheckpointError(f"{path}: is no manifest of `visgraft annotate`; name a new folder")
    if manifest["form"] != _FORM:
        raise CheckpointError(
            f"{path}: is of the form {manifest['form']}, and this version writes form {_FORM}; name a new folder"
        )
    return manifest


def _refuse_other_work(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any], *, done: Done) -> bool:
    """Refuse what differs; say whether a shard changed of which nothing is done.

    Raises:
        CheckpointError: with what differs, both ways.
    """
    differs = [
        f"{name}: {_shown(old['key'].get(name))} then, {_shown(value)} now"
        for name, value in new["key"].items()
        if old["key"].get(name) != value
    ]
    if differs:
        raise CheckpointError(f"{folder}: was begun with other settings ({'; '.join(differs)}); {_GO_ON}")
    before, now = old["data"]["shards"], new["data"]["shards"]
    if [each["name"] for each in before] != [each["name"] for each in now]:
        names = {each["name"] for each in before} ^ {each["name"] for each in now}
        which = f" ({sorted(names)[0]} is in one of the two)" if names else ""
        raise CheckpointError(f"{folder}: was begun with other data, {old['data']['name']}{which}; {_GO_ON}")
    changed = [number for number, pair in enumerate(zip(before, now, strict=True)) if pair[0] != pair[1]]
    begun = [now[number]["name"] for number in changed if number in done.totals]
    if begun:
        raise CheckpointError(
            f"{folder}: {begun[0]} is not what it was when it was labelled (files were added, removed or changed); "
            "name a new folder, or bring the data back"
        )
    return bool(changed)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {each}" for name, each in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " | ".join(repr(each) for each in value)
    return "the dialogs of the data" if value is None else str(value)
