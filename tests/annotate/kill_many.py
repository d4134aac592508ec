"""Kill the labelling of a collection at random moments, many times; each must end as if nothing had been killed.

In: how many kills, and a seed. Out: a table, one line for each kind of call; exit status 1 if one ended differently.

    python -m tests.annotate.kill_many --kills 100 --seed 0
    python -m tests.annotate.kill_many --kills 20 --minutes 10 --only ray      # in an environment that has Ray

A call is killed once or some times, while it works, and begun again in a way drawn at random; the last one is left
alone. What must be equal is every row of the output, in its place. Drivers on Ray join one cluster, which stays; its
actors are killed, and the drivers.
"""

import argparse
import math
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from tests.annotate.made import label, request_of, rows_of, same_rows, save_model, save_photos, save_tars
from tests.training.file_operations import FileOperations
from tests.training.killed_run import fork
from tests.warm_python import warm_python
from visgraft.annotate import Request, annotate, processes

ROOT = Path(__file__).resolve().parents[2]
NUM_IMAGES, ROWS_PER_UNIT = 26, 3
PATIENCE_S = 300.0
Begin = Callable[[Request, Path], list[int]]  # the processes that it starts, by their numbers
Kill = Callable[[list[int], random.Random], bool]  # whether something was killed


# --- Ways to begin


def work(
    request: Request, *, at: int | None = None, torn: bool = False, seen: Path | None = None
) -> Callable[[], None]:
    """Give the work of a process.

    at: it is killed at this file operation; torn: in the middle of it. seen: a file that says how many there were.
    """

    def run() -> None:
        torch.set_num_threads(1)
        processes.COMMAND[:] = [*warm_python(), *processes.COMMAND[1:]]
        operations = FileOperations([Path(request.output)], kill_at=at, torn=torn)
        if at is not None or seen is not None:
            operations.install()
        annotate(request, say=print, is_shown=True)
        if seen is not None:
            seen.write_text(str(len(operations.seen)))

    return run


def one_process(request: Request, log: Path) -> list[int]:
    return [fork(work(request), log)]


def two_calls(request: Request, log: Path) -> list[int]:
    return [fork(work(request), log), fork(work(request), log)]


def driver(request: Request, log: Path) -> list[int]:
    return [fork(work(replace(request, workers=2)), log)]


def ray_driver(request: Request, log: Path) -> list[int]:
    return [fork(work(replace(request, engine="ray", workers=2)), log)]


# --- Ways to kill


def kill_all(pids: list[int], chance: random.Random) -> bool:
    return sum(send(pid) for pid in pids) > 0


def kill_one(pids: list[int], chance: random.Random) -> bool:
    return send(chance.choice(pids))


def kill_a_worker(pids: list[int], chance: random.Random) -> bool:
    """Kill a process that the driver started, if there is one by now."""
    found = children_of(pids[0])
    return bool(found) and send(chance.choice(found))


def kill_an_actor(pids: list[int], chance: random.Random) -> bool:
    """Kill one of the cluster's actors: what we started, the cluster is our child."""
    found = [pid for pid in descendants_of(os.getpid()) if "ray::Labelling" in command_of(pid)]
    return bool(found) and send(chance.choice(found))


def send(pid: int) -> bool:
    """Kill a process; say whether it was alive."""
    try:
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return False
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, OSError):
        return False
    return True


def children_of(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def descendants_of(pid: int) -> list[int]:
    found, left = [], [pid]
    while left:
        inside = children_of(left.pop())
        found += inside
        left += inside
    return found


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


@dataclass(frozen=True)
class Kind:
    """A kind of call, and what of it is killed."""

    name: str
    begin: Begin
    kills: tuple[Kill, ...]
    needs: str = "local"


KINDS = (
    Kind("one process", one_process, (kill_all,)),
    Kind("two calls on one folder", two_calls, (kill_one, kill_all)),
    Kind("a driver with two workers", driver, (kill_all, kill_a_worker)),
    Kind("ray", ray_driver, (kill_all, kill_an_actor), needs="ray"),
)


# --- Killing


@dataclass
class Ground:
    """Data, a model, what an undisturbed call gives, and how long each kind takes."""

    folder: Path
    requests: list[Request] = field(default_factory=list)
    expected: list[list[dict[str, object]]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    num_operations: int = 0

    def __post_init__(self) -> None:
        model = save_model(self.folder)
        photos = save_photos(self.folder / "photos", number=NUM_IMAGES, bad=2)
        tars = save_tars(self.folder / "tars", photos, number=NUM_IMAGES, per_tar=7)
        for number, data in enumerate((photos, tars)):
            output = self.folder / f"undisturbed-{number}"
            self.requests.append(request_of(model, data, output, rows_per_unit=ROWS_PER_UNIT))
            label(self.requests[-1])
            self.expected.append(rows_of(output))
        counted = replace(self.requests[0], output=str(self.folder / "counted"))
        wait([fork(work(counted, seen=self.folder / "seen"), self.log)])
        self.num_operations = int((self.folder / "seen").read_text())

    def time(self, kind: Kind) -> float:
        """Say how long a call of a kind takes that nobody kills."""
        if kind.name not in self.seconds:
            started = time.monotonic()
            reason = self.finish(self.requests[0], kind.begin, self.folder / "timed")
            assert not reason, f"{kind.name}, left alone: {reason}"
            self.seconds[kind.name] = time.monotonic() - started
            self.clear(self.folder / "timed")
        return self.seconds[kind.name]

    def kill(self, kind: Kind, chance: random.Random) -> tuple[int, str]:
        """Kill a call once to three times, then let it end; return how often, and what is different in the end."""
        number = chance.randrange(len(self.requests))
        output = self.folder / "killed"
        request = replace(self.requests[number], output=str(output))
        killed = 0
        for _ in range(chance.choice((1, 1, 2, 3))):
            begin = chance.choice([kind.begin, kind.begin, one_process])
            if begin is one_process and chance.random() < 0.5:  # at a file operation, perhaps in the middle of it
                at, torn = chance.randrange(self.num_operations), chance.random() < 0.5
                killed += wait([fork(work(request, at=at, torn=torn), self.log)]) == [-signal.SIGKILL]
                continue
            pids = begin(request, self.log)
            time.sleep(chance.uniform(0.0, self.time(kind) if begin is kind.begin else self.time(KINDS[0])))
            kill = chance.choice(kind.kills) if begin is kind.begin else kill_all
            killed += kill(pids, chance)
            wait(pids)
        last = chance.choice([kind.begin, one_process])
        reason = self.finish(request, last, output)
        if not reason and not same_rows(rows_of(output), self.expected[number]):
            reason = f"{len(rows_of(output))} rows, and not those {len(self.expected[number])} of an undisturbed call"
        if not reason:
            left = [path.name for path in output.rglob("*") if path.name.startswith(".") or path.name == "claims"]
            reason = f"left behind: {left}" if left else ""
        self.clear(output)
        return killed, reason

    def finish(self, request: Request, begin: Begin, output: Path) -> str:
        """Let a call come to its end; say what went wrong."""
        statuses = wait(begin(replace(request, output=str(output)), self.log))
        return "" if not any(statuses) else f"ended with {statuses}: {self.log.read_text()[-2000:]}"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def clear(self, output: Path) -> None:
        shutil.rmtree(output, ignore_errors=True)
        self.log.unlink(missing_ok=True)


def wait(pids: list[int]) -> list[int]:
    """Wait until processes have ended; one that hangs is ended, and is an error."""
    end, statuses = time.monotonic() + PATIENCE_S, []
    for pid in pids:
        while True:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                statuses.append(os.waitstatus_to_exitcode(status))
                break
            if time.monotonic() > end:
                send(pid)
            time.sleep(0.01)
    return statuses


@contextmanager
def ray_cluster() -> Iterator[None]:
    """Let drivers find a cluster that outlives them."""
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}  # newer releases want one
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.annotate.ray_cluster"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env=environment, text=True
    ) as cluster:
        assert cluster.stdin is not None and cluster.stdout is not None
        os.environ["RAY_ADDRESS"] = cluster.stdout.readline().strip()
        try:
            yield
        finally:
            del os.environ["RAY_ADDRESS"]
            cluster.stdin.close()


def kill_kind(kind: Kind, ground: Ground, *, kills: int, until: float, chance: random.Random) -> Counter[str]:
    """Kill calls of a kind so many times, or as often as there is time for."""
    ended: Counter[str] = Counter()
    while ended["kills"] < kills and (time.monotonic() < until or not ended["kills"]):
        killed, reason = ground.kill(kind, chance)
        ended["kills"] += killed
        ended["equal" if not reason else "not equal"] += 1
        say(f"{kind.name}: {ended['kills']} of {kills} kills")
        if reason:
            say(f"{kind.name}, call {ended.total()}: {reason}")
    return ended


def say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--kills", type=int, default=100, help="of all kinds together")
    options.add_argument("--minutes", type=float, default=math.inf, help="of each kind, then it is enough")
    options.add_argument("--seed", type=int, help="default: drawn, and printed")
    options.add_argument("--only", action="append", help="a kind of call; may be given often")
    given = options.parse_args()
    seed = random.randrange(10**6) if given.seed is None else given.seed
    kinds = [kind for kind in KINDS if (kind.name in given.only if given.only else kind.needs == "local")]
    say(f"seed {seed}")
    lines = ["| call | kills | calls that went on | equal | not equal |", "| --- | ---: | ---: | ---: | ---: |"]
    is_good = bool(kinds)
    warm_python()  # its server is this process's child, not one of a call that is killed
    with tempfile.TemporaryDirectory() as folder:
        ground = Ground(Path(folder))
        for number, kind in enumerate(kinds):
            kills = given.kills // len(kinds) + (number < given.kills % len(kinds))
            began = time.monotonic()
            chance = random.Random(f"{seed} {kind.name}")
            with ray_cluster() if kind.needs == "ray" else nullcontext():
                until = time.monotonic() + 60 * given.minutes
                ended = kill_kind(kind, ground, kills=kills, until=until, chance=chance)
            say(f"{kind.name}: {dict(ended)} in {time.monotonic() - began:.0f} s")
            calls = ended["equal"] + ended["not equal"]
            lines.append(f"| {kind.name} | {ended['kills']} | {calls} | {ended['equal']} | {ended['not equal']} |")
            is_good = is_good and not ended["not equal"]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
