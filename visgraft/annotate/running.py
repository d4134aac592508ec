"""Label a whole collection: one call, whatever runs it, begun or gone on with.

In: a request. Out: the folder's parts, and how far it is.

    request = Request(model="runs/my-run", data="photos/", output="labels", prompts=("What is it?",))
    standing = annotate(request, say=print)
    standing.is_finished
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace

from visgraft.annotate.claims import Claims, is_anything_held
from visgraft.annotate.folder import CLAIMS
from visgraft.annotate.job import Job, Say
from visgraft.annotate.on_ray import run_on_ray
from visgraft.annotate.processes import run_processes
from visgraft.annotate.progress import Progress, Standing
from visgraft.annotate.request import Request
from visgraft.annotate.working import work_through
from visgraft.errors import ConfigError
from visgraft.model.precision import pick_device


def annotate(request: Request, *, say: Say, is_shown: bool = True) -> Standing:
    """Label what is left of a collection.

    Args:
        request: what, by which model, where to.
        say: tells the user.
        is_shown: how far it is, is shown on standard error.

    Returns:
        How far all is at the end; a call that does a part of the work (`shard`) ends when that is done.

    Raises:
        CheckpointError: there is no such model, or the folder was begun with another one, or in another way.
        ConfigError: the folder holds something else, or settings do not fit together.
        DataError, MissingAssetError: there is nothing to label, or some of it cannot be read.
        DiskError: the disk takes no more.
    """
    rank, count, request = _place_among(request, os.environ)
    if request.engine == "ray":
        progress = run_on_ray(request, say=say, is_shown=is_shown)
    else:
        job = Job.begin(request, say=say)
        with Progress(job, is_shown=is_shown and rank == 0) as progress:
            if (request.workers or 1) > 1:
                run_processes(job, progress)
            else:
                claiming = nullcontext() if request.shard else Claims(job.output.folder / CLAIMS)
                with claiming as claims:
                    work_through(job, told=progress, claims=claims, first=rank / count)
    standing = progress.standing()
    output = progress.job.output
    if standing.is_finished and request.shard is None and not is_anything_held(output.folder / CLAIMS):
        output.sweep()
    return standing


def _place_among(request: Request, environment: Mapping[str, str]) -> tuple[int, int, Request]:
    """Say which of how many ranks this is, where torchrun or its like started it; each gets a GPU of its own.

    Raises:
        ConfigError: its ranks are to start processes in their turn.
    """
    count = int(environment.get("WORLD_SIZE", "1"))
    if count < 2:
        return 0, 1, request
    if (request.workers or 1) > 1 or request.engine == "ray":
        asked = "--engine ray" if request.engine == "ray" else f"--workers {request.workers}"
        raise ConfigError(
            f"{asked}: got it beside WORLD_SIZE {count}, so that each of torchrun's ranks would start its own; drop it"
        )
    local = int(environment.get("LOCAL_RANK", "0"))
    if request.device is None and pick_device(None).type == "cuda":
        request = replace(request, device=f"cuda:{local}")
    return int(environment.get("RANK", "0")), count, request
