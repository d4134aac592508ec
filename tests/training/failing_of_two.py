"""Two processes of a run, one of which fails; what test_processes.py looks at.

In: a recipe's file, an empty folder and ways to fail. Out: in the folder a file `HOW.json` for each, with the exit
status of each process, the seconds from the failure to the end of the last of them, and all that they wrote.
Usage: `python -m tests.training.failing_of_two recipe.yaml folder data save`; under torchrun it is one of the two
"""

import errno
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.training.killed_run import Kill, fork, free_port, place_among, wait_for
from visgraft.cli.program import main
from visgraft.errors import DataError, ModelError
from visgraft.model.vlm import VisionLanguageModel
from visgraft.training import loop
from visgraft.training.steps import StepDataset


class Failing:
    """A function that fails once the run has written down a step, and notes when that was."""

    def __init__(self, real: Callable[..., Any], fail: Callable[[Any], Any], *, run: Path) -> None:
        self.real, self.fail, self.run = real, fail, run

    def __call__(self, *args: Any, **settings: Any) -> Any:
        """Work, or fail."""
        result = self.real(*args, **settings)
        if not (self.run / "metrics.jsonl").exists():
            return result
        failed_at(self.run).touch()
        return self.fail(result)

    def __get__(self, of: Any, _: type) -> Any:
        return self if of is None else lambda *args, **settings: self(of, *args, **settings)


def failed_at(run: Path) -> Path:
    """Give the file whose time is that of the failure."""
    return run.with_name(run.name + ".failed")


def prepare(how: str, *, rank: int, run: Path) -> None:
    """Let this process fail, if it is the one that does."""

    def raising(error: BaseException) -> Callable[[Any], Any]:
        def fail(_: Any) -> Any:
            raise error

        return fail

    def die(_: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    def is_no_number(output: Any) -> Any:
        output.loss_sum, output.target_losses = output.loss_sum * torch.nan, output.target_losses * torch.nan
        return output

    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "checkpoints")
    places: dict[str, tuple[int, Any, str, Callable[[Any], Any]]] = {
        "data": (1, StepDataset, "__getitem__", raising(DataError("the shelf is empty"))),
        "loss": (1, VisionLanguageModel, "_batch_loss", raising(ModelError("the shelf is empty"))),
        "number": (1, VisionLanguageModel, "_batch_loss", is_no_number),
        "killed": (1, VisionLanguageModel, "_batch_loss", die),
        "save": (0, loop, "save_state", raising(full)),
    }
    who, where, name, fail = places[how]
    if rank == who:
        setattr(where, name, Failing(getattr(where, name), fail, run=run))


def work(recipe: Path, folder: Path, *, how: str, rank: int) -> int:
    """Be one of the processes; return its exit status."""
    prepare(how, rank=rank, run=folder / how)
    return main(["train", str(recipe), "-o", str(folder / how)])


def fail(recipe: Path, folder: Path, *, how: str) -> None:
    """Run two processes, one of which fails, and write down how they end."""
    port, log = free_port(), folder / f"{how}.log"
    processes = []
    for rank in range(2):

        def one(rank: int = rank) -> int:
            os.environ.update(place_among(rank, num_processes=2, port=port))
            torch.set_num_threads(1)
            return work(recipe, folder, how=how, rank=rank)

        processes.append(fork(one, log))
    statuses = wait_for(processes, Kill(alone=True, process=1))
    seconds = time.time() - failed_at(folder / how).stat().st_mtime
    result = {"statuses": statuses, "seconds": seconds, "said": log.read_text()}
    (folder / f"{how}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    given, place = Path(sys.argv[1]), Path(sys.argv[2])
    for name in sys.argv[3:]:
        if "RANK" in os.environ:
            sys.exit(work(given, place, how=name, rank=int(os.environ["RANK"])))
        fail(given, place, how=name)
