"""A job that is open: what is labelled, where to, and by which model; nothing of the model is loaded.

In: a request. Out: a `Job`, the same in every process that works on it.

    job = Job.begin(request, say=print)
    unit = next(job.units(0))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from visgraft.annotate.collection import Collection, open_collection
from visgraft.annotate.folder import Done, Output, Unit, check_folder
from visgraft.annotate.request import Request
from visgraft.data.sample import Source
from visgraft.inference.identity import model_checksum
from visgraft.model.precision import Precision, computing_dtype, pick_device
from visgraft.model.storage.restoring import find_folder
from visgraft.runs import find_model

Say = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """What one process works on.

    Attributes:
        request: with the model's checksum.
        collection: what is labelled.
        output: where to.
    """

    request: Request
    collection: Collection
    output: Output
    _opened: dict[int, Source] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def begin(cls, request: Request, *, say: Say) -> Job:
        """Open the data, and begin the folder or go on with it.

        Raises:
            CheckpointError: there is no such model, or the folder was begun with another one, or in another way.
            ConfigError: the folder holds something else; a device that does not exist.
            DataError, MissingAssetError: there is nothing to label.
            DiskError: the folder cannot be written.
        """
        output = Path(request.output).expanduser()
        check_folder(output)
        folder = find_folder(find_model(request.model))
        collection = open_collection(
            request.data,
            with_texts=request.prompts is None,
            part=request.part,
            split=request.split,
            limit=request.limit,
            say=say,
        )
        checksum = request.checksum or model_checksum(folder)
        request = replace(request, checksum=checksum)
        key = key_of(request)
        begun = Output.begin(output, key=key, collection=collection, rows_per_unit=request.rows_per_unit)
        return cls(request, collection, begun)

    def open(self, shard: int) -> Source:
        """Open an input shard; the last one stays open. Raises DataError, MissingAssetError, OSError."""
        if shard not in self._opened:
            self._opened.clear()
            self._opened[shard] = self.collection.shards[shard].open()
        return self._opened[shard]

    def total_of(self, shard: int, done: Done) -> int | None:
        """Say how many rows a shard has, if that is known without opening it."""
        known = self.collection.shards[shard].num_rows
        return done.totals.get(shard) if known is None else known

    def units(self, shard: int, *, total: int | None = None) -> list[Unit]:
        """List the units of a shard, which is opened where that alone tells how many there are."""
        if total is None:
            known = self.collection.shards[shard].num_rows
            total = len(self.open(shard)) if known is None else known
        return self.output.units_of(shard, total=total)


def key_of(request: Request) -> dict[str, Any]:
    """Say what every answer depends on, and every row; what differs in it may not be mixed in one folder."""
    return {
        "model": {"checksum": request.checksum},
        "prompts": None if request.prompts is None else list(request.prompts),
        "decoding": request.decoding,
        "precision": settled_precision(request),
        "images": "bytes" if request.keep_images else "places",
        "limit": request.limit or "none",
    }


def settled_precision(request: Request) -> Precision:
    """Say in which number format this machine would compute, where the caller leaves it open. Raises ConfigError."""
    if request.precision != "auto":
        return request.precision
    names: dict[Any, Precision] = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
    return names[computing_dtype("auto", device=pick_device(request.device))]
