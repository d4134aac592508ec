"""A run that is killed and goes on, in processes of its own; and what is left of it, to be compared with another.

In: a recipe, a folder, and when it is to be killed. Out: how its processes ended, and what its folder holds in the end.
The processes are forks of this one, which has imported everything and has computed nothing, so each begins at once.

    operations = list_operations(recipe, folder)              # of a run that is left alone
    verdict = kill_and_go_on(recipe, other, kills=[Kill(at=17)], expected=what_is_left(folder))
"""

import hashlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from tests.training.file_operations import FileOperations
from visgraft.errors import VisgraftError
from visgraft.runs import Run
from visgraft.training.loop import train
from visgraft.training.progress import make_progress

PATIENCE_S = 120.0  # for a whole run; a process that takes longer hangs
LEFT_ALONE_S = 30.0  # for a process whose other was killed
REFUSED = 2
TIMES = {"seconds", "wall_seconds", "hours", "joules", "step_seconds", "samples_per_second",
         "supervised_tokens_per_second", "peak_memory_bytes", "date"}  # fmt: skip

Recipe = dict[str, Any]
Verdict = Literal["equal", "not equal", "refused"]


@dataclass(frozen=True)
class Kill:
    """When a run is killed.

    Attributes:
        at: the number of the file operation in front of which it is, of the process that is watched.
        torn: the operation is done by half, where it writes.
        after_s: or after this time.
        process: which of several processes that is.
        alone: the others are left to notice; else they are killed with it.
    """

    at: int | None = None
    torn: bool = False
    after_s: float | None = None
    process: int = 0
    alone: bool = False


# --- One run, until it ends or is killed


def run(recipe: Recipe, folder: Path, *, num_processes: int = 1, kill: Kill | None = None, seen: Path | None = None
        ) -> list[int]:  # fmt: skip
    """Begin a run or go on with it, perhaps until it is killed; return how each process ended (-9: killed)."""
    kill = kill or Kill()
    port = free_port() if num_processes > 1 else 0
    processes = []
    for index in range(num_processes):
        here = index == kill.process
        operations = FileOperations(
            [folder, cache_of(folder)], kill_at=kill.at if here else None, torn=kill.torn
        )  # fmt: skip
        watched = operations if here else None
        settings = place_among(index, num_processes=num_processes, port=port)
        processes.append(fork(_Work(recipe, folder, watched, seen if here else None, settings), _log_of(folder)))
    return wait_for(processes, kill)


def cache_of(folder: Path) -> Path:
    """Give the folder in which a run's features are kept, its own, so that no run finds those of another."""
    return folder.with_name(folder.name + "-cache")


@dataclass(frozen=True)
class _Work:
    recipe: Recipe
    folder: Path
    watched: FileOperations | None
    seen: Path | None
    settings: dict[str, str]

    def __call__(self) -> None:
        os.environ.update(self.settings, VISGRAFT_CACHE=str(cache_of(self.folder)))
        if self.watched is not None:
            self.watched.install()
        torch.set_num_threads(1)
        begin_or_go_on(self.recipe, self.folder)
        if self.watched is not None and self.seen is not None:
            self.seen.write_text(json.dumps(self.watched.seen))


def begin_or_go_on(recipe: Recipe, folder: Path) -> None:
    """Do what a scheduler's line does that requeues a run."""
    train(recipe, folder=folder, resume_or_start=True, progress=make_progress(show=False))


def place_among(index: int, *, num_processes: int, port: int) -> dict[str, str]:
    """Give the settings by which a process finds the others, as a launcher sets them."""
    if num_processes == 1:
        return {}
    return {
        "RANK": str(index), "LOCAL_RANK": str(index), "WORLD_SIZE": str(num_processes),
        "LOCAL_WORLD_SIZE": str(num_processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip


def free_port() -> int:
    """Find a port of this machine that nothing listens at."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def _log_of(folder: Path) -> Path:
    return folder.with_name(folder.name + ".log")


def fork(work: Callable[[], int | None], log: Path) -> int:
    """Work in a process of its own, whose words go into a file; it ends with the status that the work gives, else 0."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setpgid(0, 0)  # a group of its own, so that its workers can be ended with it
        written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(written, 1)
        os.dup2(written, 2)
        status = work() or 0
    except VisgraftError as error:
        os.write(2, f"refused: {error}\n".encode())
        status = REFUSED
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


def wait_for(processes: Sequence[int], kill: Kill) -> list[int]:
    """Wait for the processes to end, kill them when it is time, and end what hangs."""
    started, victim = time.monotonic(), kill.process
    ended: dict[int, int] = {}
    patience = PATIENCE_S
    while len(ended) < len(processes):
        for index, pid in enumerate(processes):
            if index in ended:
                continue
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                ended[index] = os.waitstatus_to_exitcode(status)
                _signal_group(pid)  # its workers
        passed = time.monotonic() - started
        is_time = kill.after_s is not None and passed >= kill.after_s
        if is_time and victim not in ended:
            _signal_group(processes[victim])
        if ended.get(victim) == -signal.SIGKILL and len(ended) < len(processes):
            if not kill.alone:
                for pid in (pid for index, pid in enumerate(processes) if index not in ended):
                    _signal_group(pid)
            patience = min(patience, passed + LEFT_ALONE_S)
        if passed > patience:
            for index, pid in enumerate(processes):
                if index not in ended:
                    _signal_group(pid)
                    os.waitpid(pid, 0)
            raise TimeoutError(f"{len(processes) - len(ended)} of {len(processes)} processes hang; so far: {ended}")
        time.sleep(0.005)
    return [ended[index] for index in range(len(processes))]


def _signal_group(pid: int) -> None:
    for send in (os.killpg, os.kill):
        try:
            send(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue


# --- What is left


def list_operations(
    recipe: Recipe, folder: Path, *, num_processes: int = 1, process: int = 0
) -> tuple[list[str], float]:
    """Make a run that nothing ends; list the file operations of a process, and say how many seconds it took."""
    seen = folder.with_name(folder.name + ".json")
    started = time.monotonic()
    statuses = run(recipe, folder, num_processes=num_processes, seen=seen, kill=Kill(process=process))
    if any(statuses):
        raise RuntimeError(f"a run that was left alone ended with {statuses}: {_log_of(folder).read_text()}")
    operations: list[str] = json.loads(seen.read_text())
    return operations, time.monotonic() - started


def what_is_left(folder: Path) -> dict[str, Any]:
    """Describe all that a finished run leaves behind, but for times, dates and the run's own name."""
    left: dict[str, Any] = {}
    run = Run.open(folder)
    for log in ("metrics", "samples", "quarantine"):
        left[f"{log}.jsonl"] = [_without_times(record) for record in run.read(log)]  # type: ignore[arg-type]
    left["summary.json"] = _without_times(run.read_summary() or {})
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        left.setdefault(name, _content(path))
    return left


def _content(path: Path) -> Any:
    if path.is_dir():
        return "folder"
    if path.name == "state.json":
        state = _without_times(json.loads(path.read_text()))
        return {key: value for key, value in state.items() if key in ("step", "position", "samples", "texts")}
    if path.name in ("environment.json", "recipe.yaml"):
        return "there"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _without_times(record: Any) -> Any:
    return {key: value for key, value in record.items() if key not in TIMES}


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Name what differs between what two runs left behind."""
    names = sorted(found.keys() | expected.keys())
    missing = [f"{name} is missing" for name in names if name not in found]
    over = [f"{name} is left over" for name in names if name not in expected]
    return (
        missing
        + over
        + [f"{name} differs" for name in names if name in found and name in expected and found[name] != expected[name]]
    )


def kill_and_go_on(
    recipe: Recipe, folder: Path, *, kills: Sequence[Kill], expected: dict[str, Any], num_processes: int = 1
) -> tuple[Verdict, str]:
    """Kill a run, go on with it, once for each kill, then let it end; say whether it is the run that never stopped."""
    try:
        for kill in kills:
            statuses = run(recipe, folder, num_processes=num_processes, kill=kill)
            if not any(statuses):
                break  # it ended before its time
            if statuses[kill.process] != -signal.SIGKILL:
                return _failed(folder, statuses)
        statuses = run(recipe, folder, num_processes=num_processes)
    except TimeoutError as error:
        return "not equal", str(error)
    if any(statuses):
        return _failed(folder, statuses)
    found = differences(what_is_left(folder), expected)
    return ("not equal", ", ".join(found)) if found else ("equal", "")


def _failed(folder: Path, statuses: Sequence[int]) -> tuple[Verdict, str]:
    log = _log_of(folder)
    last = log.read_text(errors="replace").strip().splitlines()[-1:] if log.exists() else []
    return ("refused" if REFUSED in statuses else "not equal"), f"ended with {list(statuses)}: {''.join(last)}"
