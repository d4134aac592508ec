"""What a checkpoint holds: enough to go on as if the run had never stopped, and the proof that it is all there.

In: the state of a run between two steps. Out: a folder; and back, bit for bit.

    trained.safetensors   every weight that trains, by its full name
    optimizer.pt          moments and step counts; the loss scaler, where there is one
    state.json            written last: counters, the position in the data, the state of every random generator (one
                          entry a process), where the logs end, and `files`: bytes and CRC-32 of the other files

    save_state(folder, state, trained=trained, moments=optimizer.state_dict(), random_states=[...])
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.serialization import config as torch_files

from visgraft.atomic import whole_folder
from visgraft.errors import CheckpointError
from visgraft.runs import STATE_FILE, Run, check_checkpoint, read_state
from visgraft.sealed import Sum, Summed, write_sealed
from visgraft.training.plan import Position
from visgraft.training.sharding import share, share_moments

START = Position(0, 0)
RandomState = dict[str, Any]
DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}  # of safetensors


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
        joules: what was taken from the mains in that time, by source (`gpu`, `cpu`), of those that told it all the
            time; None: no time was counted yet.
        peak_memory_bytes: the most memory that a process held so far.
        epoch_ended: the last step reached the end of an epoch.
        validated_step: the step that was last validated.
        sampled_step: the step after which the sample prompts were last answered.
        best_step: the step with the lowest validation loss, or the best by `train.best_by`.
        best_loss: that loss, per supervised token; of a score of which more is better, its negative.
        micro_batch_positions: the largest micro-batch that memory allows, found by halving; None: none was halved.
        proven_positions: the largest micro-batch, in positions, that went through the model on every process.
        validated_so_far: of a validation that was stopped on its way: the position behind its last step, and of each
            process the sums over its share (loss, supervised tokens, characters).
        logs: how many bytes of each log belong to the run up to here (see `Run.sync_logs`).
    """

    step: int = 0
    position: Position = START
    samples: int = 0
    supervised_tokens: int = 0
    texts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    wall_seconds: float = 0.0
    joules: dict[str, float] | None = None
    peak_memory_bytes: int = 0
    epoch_ended: bool = False
    validated_step: int | None = None
    sampled_step: int | None = None
    best_step: int | None = None
    best_loss: float | None = None
    micro_batch_positions: int | None = None
    proven_positions: int = 0
    validated_so_far: dict[str, Any] | None = None
    logs: dict[str, int] = field(default_factory=dict)


def save_state(
    folder: Path,
    state: TrainState,
    *,
    trained: Mapping[str, Tensor],
    moments: Mapping[str, Any],
    scaler: Any = None,
    random_states: Sequence[RandomState],
) -> None:
    """Write a checkpoint, whole or not at all; where its weights and moments are there already, only its state.

    Args:
        folder: the checkpoint; what else it held is replaced.
        state: how far the run is.
        trained: full name -> weight, whole.
        moments: the optimizer's state, all tensors whole.
        scaler: of the loss.
        random_states: of every process.

    Raises:
        DiskError: the disk took no more; what was there is still there.
    """
    states = {"optimizer": dict(moments), "scaler": None if scaler is None else scaler.state_dict()}
    writers: dict[str, Writer] = {
        "trained.safetensors": partial(_write_tensors, trained),
        "optimizer.pt": partial(_write_states, states),
    }
    values = {**asdict(state), "random_states": list(random_states)}
    there = _files_of(folder)
    if there is not None and there == {name: _sum(writer) for name, writer in writers.items()}:
        write_sealed(folder / STATE_FILE, {**values, "files": there})
        return

    def num_bytes() -> int:
        return sum(_sum(writer)["bytes"] for writer in writers.values()) + len(json.dumps(values, indent=2))

    with whole_folder(folder, num_bytes=num_bytes) as building:
        files = {name: _write(building / name, writer) for name, writer in writers.items()}
        write_sealed(building / STATE_FILE, {**values, "files": files})


Writer = Callable[[Summed], None]


def load_state(
    folder: Path, *, trained: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, scaler: Any = None
) -> tuple[TrainState, list[RandomState]]:
    """Read a checkpoint back into weights and optimizer, once every file of it is found to be as it was written.

    Returns:
        The state, and the random states of all processes (to be set last, by `set_random_state`).

    Raises:
        CheckpointError: it is not of this model, incomplete or damaged.
    """
    values = check_checkpoint(folder)
    values.pop("files")
    random_states = values.pop("random_states")
    try:
        state = TrainState(**{**values, "position": Position(*values["position"])})
        moments = torch.load(folder / "optimizer.pt", weights_only=True, map_location="cpu")
    except (OSError, EOFError, ValueError, TypeError, LookupError, RuntimeError, UnpicklingError) as error:
        raise CheckpointError(
            f"{folder}: written by another version of visgraft or torch, which this one cannot read ({error}); "
            "resume with the versions that environment.json names"
        ) from error
    _load_weights(folder, trained=trained)
    optimizer.load_state_dict(moments["optimizer"])
    share_moments(optimizer)
    if scaler is not None and moments["scaler"] is not None:
        scaler.load_state_dict(moments["scaler"])
    return state, random_states


def load_trained(folder: Path, *, trained: Mapping[str, nn.Parameter]) -> None:
    """Read the trained weights of a checkpoint, once they are found to be as they were written.

    Raises:
        CheckpointError: they are damaged, or not those that train.
    """
    check_checkpoint(folder, names=["trained.safetensors"])
    _load_weights(folder, trained=trained)


def find_damage(run: Run, step: int) -> str | None:
    """Say what is wrong with the trained weights of a step's checkpoint; None if they are as they were written."""
    try:
        check_checkpoint(run.checkpoints().get(step, run.checkpoint_path(step)), names=["trained.safetensors"])
    except CheckpointError as error:
        return str(error)
    return None


def _load_weights(folder: Path, *, trained: Mapping[str, nn.Parameter]) -> None:
    path = folder / "trained.safetensors"
    saved = load_file(path)
    if set(saved) != set(trained):
        raise CheckpointError(
            f"{path}: holds other weights than those that train now ({sorted(set(saved) ^ set(trained))[:5]}); "
            "resume with the recipe, the parts and the versions that the run began with"
        )
    with torch.no_grad():
        for name, tensor in saved.items():
            trained[name].copy_(share(tensor, like=trained[name]))


def _files_of(folder: Path) -> dict[str, Sum] | None:
    """Read the sums of a checkpoint that is there, if they can be read."""
    try:
        files: dict[str, Sum] = read_state(folder)["files"]
    except CheckpointError:
        return None
    return files if all((folder / name).is_file() for name in files) else None


def _write(path: Path, writer: Writer) -> Sum:
    with path.open("wb") as file:
        summed = Summed(file)
        writer(summed)
        return summed.sum


def _sum(writer: Writer) -> Sum:
    summed = Summed()
    writer(summed)
    return summed.sum


def _write_tensors(tensors: Mapping[str, Tensor], file: Summed) -> None:
    """Write tensors byte for byte as safetensors does, whose own functions write past any sum.

    The format: the length of a header in JSON, the header, the tensors in its order.
    """
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for _, tensor in ordered:
        file.write(_bytes_of(tensor))


def _write_states(states: Mapping[str, Any], file: Summed) -> None:
    stream: Any = file
    with torch_files.patch({"save.compute_crc32": False}):  # type: ignore[attr-defined]  # a second sum of everything
        torch.save(states, stream)


def get_random_state(device: torch.device) -> RandomState:
    """Collect the state of every random generator of this process, as plain values that JSON holds."""
    version, keys, gauss = random.getstate()
    kind, numpy_keys, *rest = np.random.get_state()
    return {
        "python": [version, _as_text(np.array(keys, dtype=np.uint32)), gauss],
        "numpy": [kind, _as_text(np.asarray(numpy_keys, dtype=np.uint32)), *rest],
        "torch": _as_text(torch.get_rng_state().numpy()),
        "cuda": _as_text(torch.cuda.get_rng_state(device).numpy()) if device.type == "cuda" else None,
        "mps": _as_text(torch.mps.get_rng_state().numpy()) if device.type == "mps" else None,
    }


def set_random_state(state: RandomState, *, device: torch.device) -> None:
    """Put every random generator of this process back to where it was."""
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(_from_text(keys, np.uint32).tolist()), gauss))
    kind, numpy_keys, *rest = state["numpy"]
    np.random.set_state((kind, _from_text(numpy_keys, np.uint32), *rest))
    torch.set_rng_state(torch.from_numpy(_from_text(state["torch"], np.uint8)))
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(torch.from_numpy(_from_text(state["cuda"], np.uint8)), device)
    if device.type == "mps" and state["mps"] is not None:
        torch.mps.set_rng_state(torch.from_numpy(_from_text(state["mps"], np.uint8)))


def _as_text(numbers: Any) -> str:
    return base64.b64encode(numbers.astype(numbers.dtype.newbyteorder("<")).tobytes()).decode()


def _from_text(text: str, dtype: Any) -> Any:
    return np.frombuffer(base64.b64decode(text), np.dtype(dtype).newbyteorder("<")).astype(dtype)


def _bytes_of(tensor: Tensor) -> memoryview:
    array: Any = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return memoryview(array)
