"""What a checkpoint holds: enough to go on as if the run had never stopped.

In: the state of a run between two steps. Out: a folder; and back, bit for bit.

    trained.safetensors   every weight that trains, by its full name
    optimizer.pt          moments and step counts; the loss scaler, where there is one
    random.pt             the state of every random generator, one entry a process
    state.json            counters and the position in the data

    save_state(folder, state, trained=trained, moments=optimizer.state_dict(), random_states=[...])
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from visgraft.atomic import write_json
from visgraft.errors import CheckpointError
from visgraft.training.plan import Position
from visgraft.training.sharding import share, share_moments

START = Position(0, 0)
RandomState = dict[str, Any]
RENAMED = {"probed_step": "sampled_step"}  # in state.json of older checkpoints


@dataclass
class TrainState:
    """How far a run is, between two steps.

    Attributes:
        step: optimizer steps done.
        position: where in the data the next step starts.
        samples: samples learned from so far; a sample whose dialogs were divided counts for each share.
        supervised_tokens: tokens that carried loss so far.
        texts: texts learned from so far, of each source.
        seconds: time spent in steps so far.
        wall_seconds: time spent since the run was first opened, up to the last checkpoint: loading, validation and all.
        peak_memory_bytes: the most memory that a process held so far.
        epoch_ended: the last step reached the end of an epoch.
        validated_step: the step that was last validated.
        sampled_step: the step after which the sample prompts were last answered.
        best_step: the step with the lowest validation loss.
        best_loss: that loss, per supervised token.
        micro_batch_positions: the largest micro-batch that memory allows, found by halving; None: none was halved.
        proven_positions: the largest micro-batch, in positions, that went through the model on every process.
    """

    step: int = 0
    position: Position = START
    samples: int = 0
    supervised_tokens: int = 0
    texts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    wall_seconds: float = 0.0
    peak_memory_bytes: int = 0
    epoch_ended: bool = False
    validated_step: int | None = None
    sampled_step: int | None = None
    best_step: int | None = None
    best_loss: float | None = None
    micro_batch_positions: int | None = None
    proven_positions: int = 0


def save_state(
    folder: Path,
    state: TrainState,
    *,
    trained: Mapping[str, Tensor],
    moments: Mapping[str, Any],
    scaler: Any = None,
    random_states: Sequence[RandomState],
) -> None:
    """Write a checkpoint into an empty folder; `moments` is the optimizer's state, all tensors whole."""
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in trained.items()}, folder / "trained.safetensors"
    )
    states = {"optimizer": dict(moments), "scaler": None if scaler is None else scaler.state_dict()}
    torch.save(states, folder / "optimizer.pt")
    torch.save(list(random_states), folder / "random.pt")
    write_json(folder / "state.json", asdict(state))


def load_state(
    folder: Path, *, trained: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, scaler: Any = None
) -> tuple[TrainState, list[RandomState]]:
    """Read a checkpoint back into weights and optimizer.

    Returns:
        The state, and the random states of all processes (to be set last, by `set_random_state`).

    Raises:
        CheckpointError: it is not of this model, or incomplete.
    """
    load_trained(folder, trained=trained)
    try:
        values = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        values = {RENAMED.get(key, key): value for key, value in values.items()}
        moments = torch.load(folder / "optimizer.pt", weights_only=True, map_location="cpu")
        random_states = torch.load(folder / "random.pt", weights_only=True, map_location="cpu")
        state = TrainState(**{**values, "position": Position(*values["position"])})
    except (OSError, EOFError, ValueError, TypeError, LookupError, RuntimeError, UnpicklingError) as error:
        raise CheckpointError(f"{folder}: cannot be read ({error}); remove it to resume from the one before") from error
    optimizer.load_state_dict(moments["optimizer"])
    share_moments(optimizer)
    if scaler is not None and moments["scaler"] is not None:
        scaler.load_state_dict(moments["scaler"])
    return state, random_states


def load_trained(folder: Path, *, trained: Mapping[str, nn.Parameter]) -> None:
    """Read the trained weights of a checkpoint.

    Raises:
        CheckpointError: they are not those that train.
    """
    path = folder / "trained.safetensors"
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; remove {folder} to resume from the checkpoint before")
    saved = load_file(path)
    if set(saved) != set(trained):
        raise CheckpointError(
            f"{path}: holds other weights than those that train now ({sorted(set(saved) ^ set(trained))[:5]}); "
            "resume with the recipe, the parts and the versions that the run began with"
        )
    with torch.no_grad():
        for name, tensor in saved.items():
            trained[name].copy_(share(tensor, like=trained[name]))


def get_random_state(device: torch.device) -> RandomState:
    """Collect the state of every random generator of this process."""
    version, keys, gauss = random.getstate()
    kind, numpy_keys, *rest = np.random.get_state()
    return {
        "python": [version, list(keys), gauss],
        "numpy": [kind, np.asarray(numpy_keys).tolist(), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "mps": torch.mps.get_rng_state() if device.type == "mps" else None,
    }


def set_random_state(state: RandomState, *, device: torch.device) -> None:
    """Put every random generator of this process back to where it was."""
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, numpy_keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(numpy_keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
    if device.type == "mps" and state["mps"] is not None:
        torch.mps.set_rng_state(state["mps"])
