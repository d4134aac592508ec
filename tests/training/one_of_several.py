"""One of several processes: the first step of each recipe, then the whole recipe; what test_processes.py launches.

In: folders that hold a recipe.json, and perhaps a memory.json: which process can take no more at once than the filler.
Out: in each, `gradients.pt` of the first step, and the whole run in `whole/`.
Usage: `torchrun --standalone --nproc_per_node 2 -m tests.training.one_of_several folder another`
"""

import json
import sys
from pathlib import Path

import torch

from tests.training.small_memory import limit_memory
from visgraft.config import load_recipe
from visgraft.training.loop import train, train_step
from visgraft.training.progress import make_progress
from visgraft.training.setup import open_session
from visgraft.training.steps import load_steps


def run(folder: Path) -> None:
    recipe = load_recipe(json.loads((folder / "recipe.json").read_text()))
    session = open_session(recipe, folder=folder / "first", progress=make_progress(show=False))
    memory, process = folder / "memory.json", session.accelerator.process_index
    if memory.exists() and json.loads(memory.read_text()) == process:
        limit_memory(session.model, largest=session.filler.kind.numel())
    gradients: dict[str, torch.Tensor] = {}
    session.optimizer.step = lambda: gradients.update({n: p.grad.clone() for n, p in session.trained.items()})
    train_step(session, load_steps(session.planner, session.state.position, epochs=1.0, settings=session.loader))
    (folder / f"limit-{process}.json").write_text(json.dumps(session.loader.micro_batch_positions))
    if session.accelerator.is_main_process:
        torch.save(gradients, folder / "gradients.pt")
    train(recipe, folder=folder / "whole", progress=make_progress(show=False))


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        run(Path(argument))
