"""Who works on which unit: any number of processes, on any machines that share a disk, take different ones.

In: a folder, names. Out: a claim, held until it is released; refused where another process that is alive holds it.

    with Claims(folder / "claims") as claims:
        if claims.take("train-00003-0000000512"): ...; claims.release("train-00003-0000000512")

A claim is a file that is made by the one operation which every file system has whole (see folder_lock.py), and says who
holds it. It saves work and nothing else: two processes that worked on one unit would write the same file twice. A
claim of a process that is gone is taken over: on the same machine at once, of another machine where no one has
touched the file for two minutes, by the clock of the process that looks. Holders touch theirs three times a minute.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

from visgraft.atomic import refusals_told
from visgraft.folder_lock import (
    DEAD_AFTER_S,
    TOUCH_EVERY_S,
    WRITTEN_WITHIN_S,
    LockState,
    create_lock,
    take_over,
    this_process,
)
from visgraft.listing import listing


class Claims:
    """The claims of this process."""

    def __init__(self, folder: Path) -> None:
        """Begin without any."""
        self.folder = folder
        self._own = this_process("labelling a collection into it")
        self._held: set[Path] = set()
        self._seen: dict[Path, tuple[LockState, float]] = {}  # those of others, and since when they look like that
        self._closed = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="claims", daemon=True)

    def __enter__(self) -> Self:
        with refusals_told(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._keeper.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Release what is held, on every way out."""
        self._closed.set()
        self._keeper.join()
        for path in [*self._held]:
            self._release(path)

    def take(self, name: str) -> bool:
        """Claim a unit; say whether it is this process's now. Raises DiskError."""
        path = self.folder / f"{name}.json"
        if not create_lock(path, self._own):
            there = LockState.of(path)
            if there is None or not self._is_dead(path, there):
                return False
            take_over(path, there)
            if not create_lock(path, self._own):
                return False
        self._seen.pop(path, None)
        self._held.add(path)
        return True

    def release(self, name: str) -> None:
        """Let a unit go."""
        self._release(self.folder / f"{name}.json")

    def _release(self, path: Path) -> None:
        self._held.discard(path)
        there = LockState.of(path)
        if there is not None and there.holder == self._own:
            path.unlink(missing_ok=True)

    def _is_dead(self, path: Path, there: LockState) -> bool:
        """Say whether whoever holds a claim is dead, as far as is known by now; it costs no waiting."""
        if there.holder is not None and there.holder.is_here:
            return there.holder.is_gone
        state, since = self._seen.get(path, (None, 0.0))
        if state != there:
            self._seen[path] = (there, time.monotonic())
            return False
        patience = WRITTEN_WITHIN_S if there.holder is None else DEAD_AFTER_S  # one that names no one was half written
        return time.monotonic() - since > patience

    def _keep(self) -> None:
        """Touch what is held, until the end."""
        while not self._closed.wait(TOUCH_EVERY_S):
            for path in [*self._held]:
                with suppress(OSError):  # a network disk that is away for a moment, or a user removed it
                    os.utime(path)


def is_anything_held(folder: Path) -> bool:
    """Say whether a process is still at work, as far as is known: one that tries rows with errors again, say."""
    for path, _ in listing(folder, "*.json"):
        there = LockState.of(path)
        if there is None or (there.holder is not None and there.holder.is_gone):
            continue
        if there.holder is None and time.time() - there.touched / 1e9 > WRITTEN_WITHIN_S:
            continue  # its process was killed while it wrote
        return True
    return False
