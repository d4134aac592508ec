"""The same work by actors on a Ray cluster: Ray places them and hands units out, a lost actor's unit is taken up again.

In: a request. Out: all units done. Where no cluster runs, Ray starts one on this machine.

    progress = run_on_ray(request, say=print, is_shown=True)

The driver claims units and hands each to an actor that is free; so it works beside other calls on the same folder. An
actor gets one GPU, or cores. One that Ray cannot place yet is waited for, so that a cluster is used as it grows.
The extra `ray` brings it; visgraft must be installed on every node, model and data at the same place for all.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from visgraft.annotate.claims import Claims
from visgraft.annotate.folder import CLAIMS, Unit
from visgraft.annotate.job import Job, Say, settled_precision
from visgraft.annotate.labelling import Labelled
from visgraft.annotate.progress import Progress
from visgraft.annotate.request import Request
from visgraft.annotate.working import Work, load_labeller
from visgraft.errors import DataError, MissingAssetError, VisgraftError
from visgraft.model.precision import Precision

MOST_LOSSES = 3  # actors, one behind the other, without a unit done
WAIT_S = 1.0
HANDED_ON = ("HF_HUB_OFFLINE", "HF_HOME", "HF_TOKEN", "VISGRAFT_CACHE")  # of the driver's environment


@dataclass
class _Busy:
    """What an actor is doing: a unit, or None: it starts."""

    actor: Any
    unit: Unit | None
    is_new: bool = True


def run_on_ray(request: Request, *, say: Say, is_shown: bool) -> Progress:
    """Work through a request on Ray.

    Raises:
        MissingAssetError: Ray is not installed.
        VisgraftError: what an actor could not go on with, or actors are lost again and again.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingAssetError("--engine ray: Ray is not installed; `pip install 'visgraft[ray]'`") from error
    is_ours = not ray.is_initialized()
    if is_ours:
        ray.init(log_to_driver=False, logging_level="error", include_dashboard=False)
    try:
        needs, count = _resources(ray, request)
        request = replace(request, precision=_precision(ray, request, needs), workers=None)
        job = Job.begin(request, say=say)
        with Progress(job, is_shown=is_shown) as progress, Claims(job.output.folder / CLAIMS) as claims:
            _hand_out(ray, job, work=Work(job, claims=claims), needs=needs, count=count, progress=progress)
        return progress
    finally:
        if is_ours:
            ray.shutdown()


def _resources(ray: Any, request: Request) -> tuple[dict[str, Any], int]:
    """Say what an actor needs, and how many there are to be."""
    there = ray.cluster_resources()
    gpus, cpus = int(there.get("GPU", 0)), max(1, int(there.get("CPU", 1)))
    if request.device == "cuda" or (request.device is None and gpus):
        return {"num_gpus": 1}, request.workers or max(1, gpus)
    count = request.workers or 1
    return {"num_cpus": max(1, cpus // count)}, count


def _precision(ray: Any, request: Request, needs: dict[str, Any]) -> Precision:
    """Ask where the actors will be in which number format they would compute; the driver may be on another machine."""
    if request.precision != "auto" or "num_gpus" not in needs:
        return settled_precision(request)
    found: Precision = ray.get(ray.remote(settled_precision).options(**needs).remote(replace(request, device=None)))
    return found


class Labelling:
    """An actor: a process with the model loaded, which labels the units that it is given."""

    def __init__(self, request: dict[str, Any], environment: dict[str, str], folder: str) -> None:
        os.environ.update(environment)
        if Path(folder).is_dir():  # from which the user's paths count
            os.chdir(folder)
        from transformers.utils import logging

        logging.disable_progress_bar()
        self.labeller = load_labeller(Job.begin(Request(**request), say=lambda text: None))

    def ready(self) -> None:
        """Say that it runs."""

    def label(self, unit: Unit) -> Labelled:
        """Label a unit."""
        return self.labeller.label(unit)

    def pid(self) -> int:
        """Say which process it is."""
        return os.getpid()


def _hand_out(ray: Any, job: Job, *, work: Work, needs: dict[str, Any], count: int, progress: Progress) -> None:
    """Keep every actor busy until nothing is left."""
    environment = {name: os.environ[name] for name in HANDED_ON if name in os.environ}
    if "num_cpus" in needs:
        environment["OMP_NUM_THREADS"] = str(needs["num_cpus"])
    actor_class = ray.remote(Labelling).options(**needs)
    busy: dict[Any, _Busy] = {}

    def start() -> None:
        actor = actor_class.remote(asdict(job.request), environment, str(Path.cwd()))
        busy[actor.ready.remote()] = _Busy(actor, None)

    units = work.take()
    is_over, losses = False, 0
    free: list[Any] = []
    for unit in units:  # nothing is started where nothing is left
        if unit is not None:
            work.release(unit)
            units.close()  # type: ignore[attr-defined]  # a generator
            break
    else:
        work.refuse_damaged()
        return
    units = work.take()
    for _ in range(count):
        start()
    while not is_over or any(each.unit is not None for each in busy.values()):
        while free and not is_over:
            unit = next(units, _OVER)
            if unit is _OVER:
                is_over = True
            elif unit is None:
                break
            else:
                actor = free.pop()
                busy[actor.label.remote(unit)] = _Busy(actor, unit, is_new=not job.output.part(unit).exists())
        if not busy:
            time.sleep(WAIT_S)  # all that is left is held by other calls
        done, _ = ray.wait([*busy], num_returns=1, timeout=WAIT_S) if busy else ([], [])
        for each in done:
            was = busy.pop(each)
            try:
                labelled = ray.get(each)
            except ray.exceptions.RayActorError as error:
                losses += 1
                progress.say(f"an actor was lost ({_first_line(error)}); another one takes its place")
                if losses >= MOST_LOSSES:
                    raise VisgraftError(
                        f"{losses} actors were lost one behind the other: {_first_line(error)}; see Ray's own logs. "
                        "What is done stays"
                    ) from error
                start()
                continue
            except ray.exceptions.RayTaskError as error:
                _refuse(error.cause, work=work, unit=was.unit)
            else:
                if was.unit is not None:
                    work.finished(was.unit)
                    losses = 0
                    progress.unit_done(labelled, is_new=was.is_new)
            finally:
                if was.unit is not None:
                    work.release(was.unit)
            free.append(was.actor)
        progress.tick()
    for each in [*busy.values(), *(_Busy(actor, None) for actor in free)]:
        with suppress(Exception):  # it ends with the driver in any case
            ray.kill(each.actor)
    work.refuse_damaged()


_OVER: Any = object()


def _refuse(cause: BaseException, *, work: Work, unit: Unit | None) -> None:
    """Set a shard aside that cannot be read; raise all else."""
    if unit is None or not isinstance(cause, DataError | MissingAssetError):
        raise cause
    work.set_aside(unit.shard, str(cause))


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
