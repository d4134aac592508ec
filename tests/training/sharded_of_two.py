"""One of two processes that share every weight out among them; what test_sharding.py launches.

accelerate's FSDP2 quietly becomes DDP on a CPU, so its `prepare` is replaced by torch's own `fully_shard` here.
In: folders that hold a recipe.json; the first one perhaps a file `hybrid`. Out: in each, `gradients.pt` of the first
step, the runs `whole/` and `resumed/`.
Usage: `torchrun --standalone --nproc_per_node 2 -m tests.training.sharded_of_two folder another`
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from visgraft.config import load_recipe
from visgraft.model.trainable import find_blocks
from visgraft.training.interrupt import Interrupted
from visgraft.training.loop import train, train_step
from visgraft.training.progress import make_progress
from visgraft.training.setup import open_session
from visgraft.training.sharding import is_sharded, whole
from visgraft.training.steps import load_steps

prepare = Accelerator.prepare
IS_HYBRID = (Path(sys.argv[1]) / "hybrid").exists()


def shard(accelerator: Accelerator, model: Any, optimizer: torch.optim.Optimizer) -> Any:
    """Do what `Accelerator.prepare` does under FSDP2 on a GPU."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
    mesh = init_device_mesh("cpu", (accelerator.num_processes,))
    if IS_HYBRID:  # as launch/fsdp2_hybrid: whole on each of two nodes, shared out inside it
        mesh = init_device_mesh("cpu", (2, accelerator.num_processes // 2), mesh_dim_names=("replicate", "shard"))
    for block in (*find_blocks(model.vision), *find_blocks(model.language), model):
        fully_shard(block, mesh=mesh)
    now = dict(model.named_parameters())
    for group, members in zip(optimizer.param_groups, groups, strict=True):
        group["params"] = [now[name] for name in members]
    return model, prepare(accelerator, optimizer)


def run(folder: Path) -> None:
    recipe = load_recipe(json.loads((folder / "recipe.json").read_text()))
    session = open_session(recipe, folder=folder / "first", progress=make_progress(show=False))
    assert is_sharded(session.model)
    assert all(isinstance(parameter, DTensor) for parameter in session.model.parameters())
    largest = session.model.language.get_input_embeddings().weight
    assert largest.to_local().shape[0] < largest.shape[0]
    gradients: dict[str, torch.Tensor] = {}
    session.optimizer.step = lambda: gradients.update({n: whole(p.grad) for n, p in session.trained.items()})
    train_step(session, load_steps(session.planner, session.state.position, epochs=1.0, settings=session.loader))
    if session.accelerator.is_main_process:
        torch.save(gradients, folder / "gradients.pt")
    train(recipe, folder=folder / "whole", progress=make_progress(show=False))
    try:
        train(recipe, folder=folder / "resumed", progress=make_progress(show=False), stop=lambda step: step == 2)
    except Interrupted as stopped:
        train(resume=stopped.folder, progress=make_progress(show=False))


if __name__ == "__main__":
    Accelerator.prepare = shard  # type: ignore[method-assign]
    for argument in sys.argv[1:]:
        run(Path(argument))
