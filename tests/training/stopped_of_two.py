"""Two processes of a run that signals stop, and the same run gone on with; what test_stopped.py looks at.

In: a recipe's file, an empty folder. Out: in the folder the runs `whole`, never stopped, and `validation` and `step`,
each stopped there and gone on with; beside each a file `NAME.json`: `statuses`, with which both processes ended as it
was stopped, and `saved`, its checkpoints then.
Usage: `python -m tests.training.stopped_of_two recipe.yaml folder`
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from tests.training.killed_run import Kill, fork, free_port, place_among, wait_for
from visgraft.cli.program import main
from visgraft.runs import Run
from visgraft.training import interrupt, loop, validate


def stop_in_validation(rank: int) -> None:
    """Let the second process alone get SIGUSR1 as it has measured one step of the validation."""
    load_steps = validate.load_steps

    def loading(*args: Any, **settings: Any) -> Any:
        for number, step in enumerate(load_steps(*args, **settings)):
            if number == 1 and rank == 1:
                os.kill(os.getpid(), signal.SIGUSR1)
            yield step

    validate.load_steps = loading


def stop_in_step(rank: int) -> None:
    """Let both get SIGTERM in a third step that takes far longer than there is time."""
    interrupt.SAVED_WITHIN_S, loop.LEAST_SECONDS_TO_SAVE = 10.5, 10.0
    add_gradients, steps = loop.add_gradients, iter(range(1, 99))

    def slow(*args: Any) -> Any:
        done = add_gradients(*args)
        if next(steps) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            end = time.monotonic() + 60.0
            while time.monotonic() < end:
                time.sleep(0.05)
        return done

    loop.add_gradients = slow  # type: ignore[attr-defined]


PLACES = {"whole": None, "validation": stop_in_validation, "step": stop_in_step}


def run(recipe: Path, folder: Path, *, name: str, is_stopped: bool) -> list[int]:
    """Run two processes, and return how they end."""
    port, processes = free_port(), []
    for rank in range(2):

        def work(rank: int = rank) -> int:
            os.environ.update(place_among(rank, num_processes=2, port=port))
            torch.set_num_threads(1)
            stop = PLACES[name]
            if is_stopped and stop is not None:
                stop(rank)
            return main(["train", str(recipe), "-o", str(folder / name), "--resume-or-start"])

        processes.append(fork(work, folder / f"{name}.log"))
    return wait_for(processes, Kill())


if __name__ == "__main__":
    given, place = Path(sys.argv[1]), Path(sys.argv[2])
    for stopped in PLACES:
        statuses = run(given, place, name=stopped, is_stopped=True)
        saved = list(Run(place / stopped).checkpoints())
        if any(statuses):
            assert run(given, place, name=stopped, is_stopped=False) == [0, 0], (place / f"{stopped}.log").read_text()
        (place / f"{stopped}.json").write_text(json.dumps({"statuses": statuses, "saved": saved}))
