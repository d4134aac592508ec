"""Keep what took long to find out about large files, until a file changes.

In:  a function that makes arrays, and a fingerprint of all they depend on. Out: the arrays.

    arrays = keep_arrays(scan, fingerprint=repr(files_and_options))
    facts = keep_facts(measure, fingerprint=repr(all_they_depend_on))      # a few plain values
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visgraft.atomic import whole_file, write_json
from visgraft.parsing import parse_json

Arrays = dict[str, NDArray[Any]]

_WORTH_KEEPING_S = 5.0
_FACTS_WORTH_KEEPING_S = 0.2  # they are small, and asked for at every start

# what is kept -> the folders of it below the cache's, and what to say of it; `visgraft cache` shows and clears it
KINDS: dict[str, tuple[tuple[str, ...], str]] = {
    "starter": (
        ("efficientnet-lite2", "smollm2-135m-instruct", "easy-vqa", "noto-emoji"),
        "the starter pair and data; fetched again when asked for",
    ),
    "downloads": (("downloads",), "images and packages as they were fetched"),
    "vision": (("vision",), "features of images (train.cache_vision)"),
    "answers": (("answers",), "answers of evaluations, by model and question"),
    "scans": (("scans",), "what reading large files once found out: places of rows, lengths of texts"),
    "facts": (("facts",), "what trying an encoder once found out, so that it is loaded sooner"),
    "texts": (("texts",), "compressed text files, unpacked"),
    "streams": (("streams",), "rows of streams that were passed over once"),
}


def cache_folder() -> Path:
    """Return the folder of what can be made again: $VISGRAFT_CACHE, else `visgraft` in the user's cache folder."""
    root = os.environ.get("VISGRAFT_CACHE")
    folder = Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "visgraft"
    return folder.expanduser()


def keep_arrays(make: Callable[[], Arrays], *, fingerprint: str | None) -> Arrays:
    """Return what make returns, from the cache where it is there; None as fingerprint: it is made each time."""
    if fingerprint is None:
        return make()
    kept = read_arrays(fingerprint)
    if kept is not None:
        return kept
    start = monotonic()
    arrays = make()
    if is_worth_keeping(monotonic() - start):
        write_arrays(arrays, fingerprint=fingerprint)
    return arrays


def is_worth_keeping(seconds: float) -> bool:
    """Say whether what took so long belongs into the cache."""
    return seconds >= _WORTH_KEEPING_S


def read_arrays(fingerprint: str) -> Arrays | None:
    """Return what is kept under a fingerprint; None where nothing is, or only a part of it."""
    path = _path(fingerprint)
    if path.is_file():
        try:
            with path.open("rb") as file, np.load(file) as kept:
                return dict(kept)
        except (OSError, ValueError, zipfile.BadZipFile):
            path.unlink(missing_ok=True)  # cut short by something; it is made again
    return None


def write_arrays(arrays: Arrays, *, fingerprint: str) -> None:
    """Keep arrays under a fingerprint, in the place of what was there."""
    with whole_file(_path(fingerprint)) as building, building.open("wb") as opened:
        np.savez(opened, **arrays)  # type: ignore[arg-type]


def keep_facts(make: Callable[[], dict[str, Any]], *, fingerprint: str) -> dict[str, Any]:
    """Return plain values, as JSON holds them, from the cache where they are there; it may be full or read-only."""
    path = _path(fingerprint, folder="facts", suffix=".json")
    with suppress(OSError, ValueError):
        facts = parse_json(path.read_text(encoding="utf-8"))
        if isinstance(facts, dict):
            return facts
    start = monotonic()
    facts = make()
    if monotonic() - start < _FACTS_WORTH_KEEPING_S:
        return facts
    with suppress(OSError):
        write_json(path, facts)
    return facts


def _path(fingerprint: str, *, folder: str = "scans", suffix: str = ".npz") -> Path:
    return cache_folder() / folder / f"{sha256(fingerprint.encode()).hexdigest()}{suffix}"
