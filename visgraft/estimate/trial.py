"""Try a recipe out for a few steps: how long they take, and how much memory.

In: a recipe and data that are there. Out: seconds of each step behind the first, and the largest memory of the steps.

    trial = try_out(load_recipe("recipe.yaml"), num_steps=2)
    trial.seconds, trial.peak_bytes

Nothing is kept: the run folder is made in a temporary place and removed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache

from visgraft.config import Recipe
from visgraft.training.loop import train_step
from visgraft.training.progress import make_progress
from visgraft.training.setup import open_session
from visgraft.training.steps import load_steps

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Trial:
    """What was measured.

    Attributes:
        device: where.
        seconds: of every step but the first, which warms up.
        peak_bytes: the most that the steps held: of a GPU, allocated by torch; of a CPU, the process's largest resident
            set less that before the model was loaded. None where the system does not say.
    """

    device: str
    seconds: tuple[float, ...]
    peak_bytes: int | None


def try_out(recipe: Recipe, *, num_steps: int = 2, say: Callable[[str], None] = lambda text: None) -> Trial:
    """Train a warm-up step and `num_steps` more.

    Raises:
        VisgraftError: what a run raises that cannot begin.
    """
    # Nothing that takes long before the first step and is no part of one.
    recipe = replace(
        recipe,
        train=replace(recipe.train, cache_vision=None),
        data=replace(recipe.data, validation=()),
    )
    before = resident_bytes("VmRSS")
    with tempfile.TemporaryDirectory() as folder, make_progress(show=False) as shown:
        say("loading the model")
        session = open_session(recipe, folder=Path(folder) / "run", progress=shown)
        device = session.accelerator.device
        reset_peak(device)
        steps = load_steps(session.planner, session.state.position, epochs=recipe.train.epochs, settings=session.loader)
        for number in range(num_steps + 1):
            if session.is_over:
                break
            say(f"step {number + 1} of {num_steps + 1}")
            train_step(session, steps)
        seconds = tuple(record["seconds"] for record in session.run.steps())
    return Trial(str(device), seconds[1:] or seconds, peak_bytes(device, before=before))


def has_weights(recipe: Recipe) -> bool:
    """Say whether everything that a recipe (no `starter:` names) names is here, so that nothing is fetched."""
    model = recipe.model
    names = [model.vision, model.language.name if model.language else None]
    return all(_is_here(name) for name in names if name is not None)


def _is_here(name: str) -> bool:
    folder = Path(name).expanduser()
    if folder.is_dir():
        return any(path.suffix in (".safetensors", ".bin") for path in folder.iterdir())
    files = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
    return any(isinstance(try_to_load_from_cache(name, file), str) for file in files)


def reset_peak(device: torch.device) -> None:
    """Begin again to look for the largest memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif CLEAR_REFS.exists():
        CLEAR_REFS.write_text("5")  # the largest resident set becomes the present one: proc(5)


def peak_bytes(device: torch.device, *, before: int | None) -> int | None:
    """Return the largest memory since `reset_peak`; on a CPU less what was resident `before`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resident_bytes("VmHWM") if device.type == "cpu" else None
    return None if peak is None or before is None else peak - before


def resident_bytes(field: str) -> int | None:
    """Read the resident set of this process (VmRSS: now, VmHWM: its largest); None away from Linux."""
    if not STATUS.exists():
        return None
    lines = STATUS.read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{field}:")))
