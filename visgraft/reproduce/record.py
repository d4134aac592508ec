"""`reproduction.json`: what was run on what, every figure, and a sum of every file that they come from.

In: a folder, and what is known of it. Out: the file, sealed: it holds a sum of its own values too.

    seal(folder, {"scale": "hour", "experiments": figures_of(folder), ...})
    read_record(folder)["experiments"]

Weights are no part of it: `model/` and `checkpoints/` of the runs, and what a rehearsal made for itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from visgraft.errors import CheckpointError, ConfigError
from visgraft.folder_lock import LOCK_FILE
from visgraft.parsing import parse_json
from visgraft.sealed import sum_file, write_sealed

RECORD, PAGE, LOOK_ALIKES = "reproduction.json", "report.html", "look_alikes"
NO_PART = {"model", "checkpoints", LOOK_ALIKES, LOCK_FILE, RECORD}  # of what is summed and handed in
MAY_BE_LEFT_OUT = (".html", ".jpg", ".png")  # pages and pictures: no figure comes from them
FORM = 1


def kept_files(folder: Path) -> Iterator[str]:
    """List the files that a reproduction keeps, by their paths in it."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and not NO_PART & set(parts) and not any(part.startswith(".") for part in parts):
            yield "/".join(parts)


def seal(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Write `reproduction.json`, with a sum of every kept file, and give what it holds."""
    sealed = {"form": FORM, **record, "files": {name: sum_file(folder / name) for name in kept_files(folder)}}
    write_sealed(folder / RECORD, sealed)
    return sealed


def read_record(folder: Path) -> dict[str, Any]:
    """Read `reproduction.json`; whether its values are those that were written, `visgraft.sealed` tells.

    Raises:
        ConfigError: the folder holds none.
        CheckpointError: it cannot be read, or is of another form.
    """
    path = folder / RECORD
    if not path.is_file():
        raise ConfigError(
            f"{folder}: holds no {RECORD}, which is written once everything has run; need the folder of a finished "
            "`visgraft reproduce`"
        )
    try:
        values: dict[str, Any] = parse_json(path.read_bytes())
        form = values["form"]
        _ = values["scale"], values["changed"], values["experiments"].items(), values["files"].items()
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); bring it back as it was written") from error
    if form != FORM:
        raise CheckpointError(f"{path}: is of form {form!r}, this version of visgraft reads form {FORM}")
    return values
