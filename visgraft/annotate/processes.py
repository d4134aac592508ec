"""Several processes on this machine: each takes units until nothing is left; this one starts them, listens and shows.

In: an open job. Out: all units done, whichever of the processes are killed on the way.

    run_processes(job, progress)

On GPUs each process sees one (CUDA_VISIBLE_DEVICES); on a CPU they share out its threads. A process tells by lines of
JSON what it has done. It ends when its standard input does: with the driver, however that ends, or when that wants it.
"""

from __future__ import annotations

import _thread
import json
import os
import queue
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from visgraft.annotate.claims import Claims
from visgraft.annotate.folder import CLAIMS
from visgraft.annotate.job import Job
from visgraft.annotate.labelling import Labelled
from visgraft.annotate.progress import Progress
from visgraft.annotate.request import Request
from visgraft.annotate.working import work_through
from visgraft.errors import ConfigError, VisgraftError
from visgraft.model.precision import pick_device
from visgraft.parsing import parse_json

MOST_DEATHS = 3  # of a process, one behind the other, without a unit done
TELL_EVERY_S = 0.2
END_WITHIN_S = 10.0
COMMAND = [sys.executable, "-c", "from visgraft.annotate.processes import work_for_driver; work_for_driver()"]


# --- The driver


@dataclass
class _Worker:
    """One process, and those that took its place."""

    number: int
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    deaths: int = 0
    is_finished: bool = False
    error: str = ""
    threads: list[threading.Thread] = field(default_factory=list)


def run_processes(job: Job, progress: Progress) -> None:
    """Work through a job in `job.request.workers` processes.

    Raises:
        VisgraftError: what one of them could not go on with.
        ConfigError: one dies again and again.
    """
    count = job.request.workers or 1
    events: queue.Queue[tuple[int, dict[str, Any]]] = queue.Queue()
    workers = [_Worker(number, environment_of(number, count, device=job.request.device)) for number in range(count)]
    try:
        for worker in workers:
            _start(worker, job, count=count, events=events)
        while not all(worker.is_finished for worker in workers):
            with suppress(queue.Empty):
                number, event = events.get(timeout=0.5)
                _take(workers[number], event, progress=progress)
                if "ended" in event and not workers[number].is_finished:
                    progress.worker_lost(number)
                    _start(workers[number], job, count=count, events=events)
            progress.tick()
    finally:
        _end_all(workers)


def environment_of(number: int, count: int, *, device: str | None) -> dict[str, str]:
    """Give a process its GPU, or its share of the CPU's threads."""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "TRANSFORMERS_VERBOSITY": "error"}
    if pick_device(device).type == "cuda" and device in (None, "cuda"):
        named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        visible = named or [str(index) for index in range(torch.cuda.device_count())]
        environment["CUDA_VISIBLE_DEVICES"] = visible[number % len(visible)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // count)))
    return environment


def _start(worker: _Worker, job: Job, *, count: int, events: queue.Queue[tuple[int, dict[str, Any]]]) -> None:
    worker.process = process = subprocess.Popen(
        COMMAND,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=worker.environment,
        start_new_session=True,  # Ctrl-C is the driver's
    )
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it is dead already, which its end tells
        request = {"request": asdict(job.request), "number": worker.number, "count": count}
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
    thread = threading.Thread(target=_listen, args=(worker.number, process, events), daemon=True)
    thread.start()
    worker.threads.append(thread)


def _listen(number: int, process: subprocess.Popen[bytes], events: queue.Queue[tuple[int, dict[str, Any]]]) -> None:
    """Hand on what a process tells, and its end."""
    assert process.stdout is not None
    with process.stdout as lines:
        for line in lines:
            with suppress(ValueError):  # a line that a kill tore
                events.put((number, parse_json(line)))
    status = process.wait()
    with suppress(OSError):
        process.stdin.close()  # type: ignore[union-attr]  # it is a pipe
    events.put((number, {"ended": status}))


def _take(worker: _Worker, event: dict[str, Any], *, progress: Progress) -> None:
    """Take in what a process told; decide what its end means. Raises VisgraftError."""
    if "advance" in event:
        progress.advance(event["advance"], worker=worker.number)
    elif "done" in event:
        worker.deaths = 0
        progress.unit_done(Labelled(**event["done"]), worker=worker.number, is_new=event["is_new"])
    elif "error" in event:
        worker.error = event["error"]
    elif event["ended"] == 0:
        worker.is_finished = True
    elif worker.error:
        raise VisgraftError(worker.error)
    else:
        worker.deaths += 1
        status = event["ended"]
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        if worker.deaths >= MOST_DEATHS:
            raise ConfigError(
                f"worker {worker.number} {how}, and {MOST_DEATHS} times in a row without a unit done; if memory is "
                "short, take fewer --workers or a smaller --batch-size. What is done stays"
            )
        progress.say(f"worker {worker.number} {how}; another one takes its place")


def _end_all(workers: list[_Worker]) -> None:
    """Ask all to end, and end those that do not."""
    running = [worker.process for worker in workers if worker.process is not None]
    for process in running:
        if process.stdin is not None:
            with suppress(OSError):
                process.stdin.close()
    end = time.monotonic() + END_WITHIN_S
    for process in running:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, end - time.monotonic()))
        if process.poll() is None:
            process.kill()
            process.wait()
    for worker in workers:
        for thread in worker.threads:
            thread.join(END_WITHIN_S)


# --- A worker


def work_for_driver() -> None:
    """Work as one of several: read the request from standard input, tell on standard output."""
    telling = os.dup(1)
    os.dup2(2, 1)  # what a library prints must not come between
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(0, 1)
        if not piece:
            return
        line += piece
    asked = parse_json(line)
    threading.Thread(target=_end_with_driver, daemon=True).start()
    told = _Pipe(telling)
    try:
        from transformers.utils import logging

        logging.disable_progress_bar()
        job = Job.begin(Request(**asked["request"]), say=lambda text: None)
        with Claims(job.output.folder / CLAIMS) as claims:
            work_through(job, told=told, claims=claims, first=asked["number"] / asked["count"])
    except VisgraftError as error:
        told.tell({"error": str(error)})
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _end_with_driver() -> None:
    """Wait until standard input ends, then stop: between two instructions, or where that takes long, at once."""
    while os.read(0, 64):
        pass
    _thread.interrupt_main()
    time.sleep(END_WITHIN_S / 2)
    os._exit(130)


class _Pipe:
    """Tell the driver; see Told."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._rows = 0
        self._told = time.monotonic()

    def advance(self, number: int) -> None:
        """Tell of rows, a few at a time."""
        self._rows += number
        if time.monotonic() - self._told >= TELL_EVERY_S:
            self.tell({"advance": self._rows})
            self._rows, self._told = 0, time.monotonic()

    def unit_done(self, labelled: Labelled, *, is_new: bool = True) -> None:
        """Tell of a unit."""
        self._rows = 0
        self.tell({"done": asdict(labelled), "is_new": is_new})

    def tell(self, event: dict[str, Any]) -> None:
        """Write a line."""
        data = json.dumps(event).encode() + b"\n"
        while data:
            data = data[os.write(self._handle, data) :]
