"""One process at a time works in a folder: it holds the folder's lock, a small file that says who it is.

In: a folder. Out: the lock, held until it is released; or who holds it.

    with FolderLock() as lock:
        lock.take(run.folder, say=print)     # refused with pid and host of whoever holds it
    find_holder(run.folder)                  # None: no one, or a process that is gone

The file is made by the one operation that every file system has whole: create it, and fail if it is there. What a
process left that was killed is taken over: on the same machine where no process has its number and start any more; of
another machine where no one has touched the file for two minutes, by the clock of the process that waits. The holder
touches it three times a minute.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self
from uuid import uuid4

from visgraft.atomic import refusals_told
from visgraft.errors import CheckpointError
from visgraft.parsing import parse_json

LOCK_FILE = "lock.json"
TOUCH_EVERY_S = 20.0
DEAD_AFTER_S = 120.0  # without a touch, as seen from another machine
LOOK_EVERY_S = 2.0
WRITTEN_WITHIN_S = 2.0  # between the making of the file and its content
TAKEOVER_WITHIN_S = 10.0


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock.

    Attributes:
        pid: its number.
        host: the name of its machine, for the user.
        machine: what tells machines apart: host, boot and, of a container, its own numbering of processes.
        started: when the process started, as its system says it.
        key: a word of its own for each lock that is taken.
        work: what it does in the folder, as it is told behind "is": "training this run".
    """

    pid: int
    host: str
    machine: str
    started: str
    key: str
    work: str = "at work there"

    def __str__(self) -> str:
        """Name it as a user needs it."""
        return f"process {self.pid} on {self.host}"

    @property
    def is_here(self) -> bool:
        """Whether it runs, or ran, on this machine, so that its number says something here."""
        return self.machine == _machine()

    @property
    def is_gone(self) -> bool:
        """Whether it ran here and does no more."""
        return self.is_here and process_start(self.pid) != self.started


class FolderLock:
    """The lock of one folder, once it is taken; as a context it is released on every way out.

    Attributes:
        is_lost: another process took it over, as this one seemed to be dead (it was suspended, say).
    """

    def __init__(self) -> None:
        """Begin without one."""
        self.is_lost = False
        self._path: Path | None = None
        self._own: Holder | None = None
        self._released = threading.Event()
        self._keeper: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def take(self, folder: Path, *, say: Callable[[str], None], work: str = "training this run") -> None:
        """Take the lock of a folder that is there.

        Args:
            folder: in which this process wants to be alone.
            work: what it does there, as others are told behind "is": "evaluating models into it".
            say: is told where it takes time to find out whether another machine's process is alive.

        Raises:
            CheckpointError: another process holds it; the message names its pid and host.
        """
        path, own = folder / LOCK_FILE, this_process(work)
        while not create_lock(path, own):
            there = LockState.of(path)
            if there is None:
                continue  # released in between
            if not _is_dead(path, there, say=say):
                raise CheckpointError(_in_use(folder, there.holder))
            take_over(path, there)
        self._path, self._own = path, own
        self._keeper = threading.Thread(target=self._keep, args=(path, own), name="folder lock", daemon=True)
        self._keeper.start()

    def release(self) -> None:
        """Let it go, if it is held; of a process and its forks, only the one that took it can."""
        if self._path is None or self._own is None or self._own.pid != os.getpid():
            return
        self._released.set()
        if self._keeper is not None:
            self._keeper.join()
        there = LockState.of(self._path)
        if there is not None and there.holder == self._own:
            self._path.unlink(missing_ok=True)
        self._path = None

    def _keep(self, path: Path, own: Holder) -> None:
        """Touch the file until the lock is released."""
        while not self._released.wait(TOUCH_EVERY_S):
            with suppress(OSError):  # a network disk that is away for a moment
                there = LockState.of(path)
                if there is None:
                    create_lock(path, own)  # a user removed it
                elif there.holder == own:
                    os.utime(path)
                else:
                    self.is_lost = True
                    return


def find_holder(folder: Path) -> Holder | None:
    """Find who holds the lock of a folder; None: no one, or a process of this machine that is gone."""
    there = LockState.of(folder / LOCK_FILE)
    return None if there is None or there.holder is None or there.holder.is_gone else there.holder


def clear_dead(folder: Path) -> None:
    """Remove the lock of a process of this machine that is gone, where nobody wants to take it over."""
    there = LockState.of(folder / LOCK_FILE)
    if there is not None and there.holder is not None and there.holder.is_gone:
        take_over(folder / LOCK_FILE, there)


def refuse_held(folder: Path) -> None:
    """Refuse a folder that a process of this machine, or one of another that may be alive, holds.

    Raises:
        CheckpointError: with its pid and host.
    """
    holder = find_holder(folder)
    if holder is not None and holder.is_here:
        raise CheckpointError(_in_use(folder, holder))


def process_start(pid: int) -> str | None:
    """Say when a process of this machine started, in a form that stays the same as long as it lives; None: none."""
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            state, *fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            return None
        return None if state in "ZX" else fields[18]  # in ticks since the machine started, which no clock moves
    import psutil  # accelerate brings it

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.Error:
        return None


@dataclass(frozen=True)
class LockState:
    """A lock file as it was found; any difference says that its holder is alive."""

    holder: Holder | None  # None: its content is not whole
    touched: int
    number: int

    @classmethod
    def of(cls, path: Path) -> LockState | None:
        """Read a lock file; None: there is none."""
        try:
            with path.open(encoding="utf-8") as file:  # opened, as network disks keep what they know of closed ones
                content, found = file.read(), os.fstat(file.fileno())
        except FileNotFoundError:
            return None
        holder = None
        with suppress(ValueError, TypeError):
            holder = Holder(**parse_json(content))
        return cls(holder, found.st_mtime_ns, found.st_ino)


def this_process(work: str) -> Holder:
    """Describe this process and the work that it locks a folder for."""
    pid = os.getpid()
    return Holder(pid, platform.node(), _machine(), process_start(pid) or "", uuid4().hex, work)


def _machine() -> str:
    """Tell this machine from others, and containers from one another, whose processes have the same numbers."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip())
    with suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def create_lock(path: Path, own: Holder) -> bool:
    """Make the file; say whether it was not there, and is this process's when it is written."""
    with refusals_told(path):
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(asdict(own), file)
        except OSError:
            path.unlink(missing_ok=True)
            raise
    there = LockState.of(path)  # another process may have taken over what this one was so slow to write
    return there is not None and there.holder == own


def _is_dead(path: Path, there: LockState, *, say: Callable[[str], None]) -> bool:
    """Say whether a lock's holder is dead; where its number says nothing here, watch the file for a while.

    A file that names nobody was being written as its process was killed: that takes no time.
    """
    if there.holder is not None and there.holder.is_here:
        return there.holder.is_gone
    patience = WRITTEN_WITHIN_S if there.holder is None else DEAD_AFTER_S
    begun, is_told = time.monotonic(), False
    while time.monotonic() - begun < patience:
        time.sleep(min(LOOK_EVERY_S, patience))
        now = LockState.of(path)
        if now is None:
            return True
        if now != there:
            if there.holder is None and now.holder is not None:  # it was being written
                return _is_dead(path, now, say=say)
            return False
        if not is_told and time.monotonic() - begun > WRITTEN_WITHIN_S:
            is_told = True
            say(
                f"{path}: {there.holder or 'a process that is not named'} was here; "
                f"waiting up to {DEAD_AFTER_S:.0f} seconds to see whether it is alive"
            )
    return True


def take_over(path: Path, dead: LockState) -> None:
    """Remove the lock of a dead process; of several that want to, one does, and only if it is still that one's."""
    turn = path.with_name(f".{path.name}.takeover")
    begun = time.monotonic()
    while True:
        try:
            os.close(os.open(turn, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
            break
        except FileExistsError:
            if time.monotonic() - begun > TAKEOVER_WITHIN_S:  # killed in the middle of it
                turn.unlink(missing_ok=True)
            time.sleep(0.05)
    try:
        if LockState.of(path) == dead:
            path.unlink(missing_ok=True)
    finally:
        turn.unlink(missing_ok=True)


def _in_use(folder: Path, holder: Holder | None) -> str:
    who = "another process is at work there" if holder is None else f"{holder} is {holder.work}"
    return f"{folder}: {who}; wait until it ends, or stop it, or name another folder"
