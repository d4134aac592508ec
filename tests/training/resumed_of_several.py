"""One of several processes: a whole run, and the same run stopped after two steps and resumed.

In: folders that hold a recipe.json, and perhaps a memory.json: which process can take no more at once than the filler.
Out: in each, the runs `whole/` and `resumed/`.
Usage: `torchrun --standalone --nproc_per_node 2 -m tests.training.resumed_of_several folder another`
"""

import json
import sys
from pathlib import Path
from typing import Any

from tests.training.small_memory import limit_memory
from visgraft.config import load_recipe
from visgraft.training import loop
from visgraft.training.interrupt import Interrupted
from visgraft.training.progress import make_progress
from visgraft.training.session import Session
from visgraft.training.setup import open_session


def run(folder: Path) -> None:
    recipe = load_recipe(json.loads((folder / "recipe.json").read_text()))
    memory = folder / "memory.json"

    def opened(*arguments: Any, **settings: Any) -> Session:
        session = open_session(*arguments, **settings)
        if memory.exists() and json.loads(memory.read_text()) == session.accelerator.process_index:
            limit_memory(session.model, largest=session.filler.kind.numel())
        return session

    loop.open_session = opened  # type: ignore[assignment]
    loop.train(recipe, folder=folder / "whole", progress=make_progress(show=False))
    try:
        stop = {"stop": lambda step: step == 2}
        loop.train(recipe, folder=folder / "resumed", progress=make_progress(show=False), **stop)  # type: ignore[arg-type]
    except Interrupted:
        loop.train(resume=folder / "resumed", progress=make_progress(show=False))


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        run(Path(argument))
