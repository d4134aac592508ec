"""What a run cost and how good its model is: `summary.json`, one form for every run (docs/runs.md).

In: a session at its end. Out: plain values.

    note_cost(session)          # at every checkpoint, so that a resumed run counts all its time
    write_summary(session, model_step=step)
"""

from __future__ import annotations

import math
import sys
import time
from typing import Any

import torch

from visgraft.atomic import write_json
from visgraft.model.parts import full_names, trained_parameters
from visgraft.training.energy import SOURCES, added
from visgraft.training.progress import VALIDATION_KEYS
from visgraft.training.session import Session


def note_cost(session: Session) -> None:
    """Add wall time and joules since the last call to the state, and the most memory held by any process so far."""
    now, state, accelerator = time.monotonic(), session.state, session.accelerator
    spent = session.energy.spent()
    # Processors are counted by one process of each machine. What one that should count does not know, no one knows.
    own = [spent.get("gpu", math.nan), spent.get("cpu", math.nan if accelerator.is_local_main_process else 0.0)]
    found = session.each([*own, peak_memory_bytes(accelerator.device)])  # of each process three numbers
    totals = {name: sum(found[place::3]) for place, name in enumerate(SOURCES)}
    known = {name: joules for name, joules in totals.items() if not math.isnan(joules)}
    is_first = state.joules is None and state.wall_seconds == 0  # else a checkpoint of an older version
    state.joules = added(None if is_first else state.joules or {}, known)
    state.wall_seconds += now - session.counted_until
    session.counted_until = now
    state.peak_memory_bytes = max(state.peak_memory_bytes, int(max(found[2::3])))


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory that this process held: of its GPU, else resident in main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ModuleNotFoundError:  # on Windows
        import psutil  # accelerate brings it

        held = psutil.Process().memory_info()
        return int(getattr(held, "peak_wset", held.rss))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def write_summary(session: Session, *, model_step: int) -> None:
    """Write `summary.json`; the last thing that a run does. The weights in `model/` are those of `model_step`."""
    write_json(session.run.summary_path, summarise(session, model_step=model_step))


def summarise(session: Session, *, model_step: int) -> dict[str, Any]:
    """Gather what `summary.json` holds."""
    state, device, steps = session.state, session.accelerator.device, session.run.steps()
    validations = [record for record in session.run.validations() if record["step"] == model_step]
    validation = validations[-1] if validations else {}
    parts, trained = full_names(session.model), trained_parameters(session.model)
    seconds = sum(record["seconds"] for record in steps)
    totals = {
        key: sum(record[key] for record in steps) for key in ("samples", "dialogs", "text_tokens", "supervised_tokens")
    }
    return {
        "steps": state.step,
        "epochs": session.planner.epochs_done(state.position),
        **totals,
        "parameters": {part: sum(p.numel() for p in inside.values()) for part, inside in parts.items()},
        "trainable_parameters": {part: sum(p.numel() for p in inside.values()) for part, inside in trained.items()},
        "step_seconds": seconds,
        "wall_seconds": state.wall_seconds,
        "hours": state.wall_seconds / 3600,
        "joules": sum(state.joules.values()) if state.joules else None,
        "joules_of": sorted(state.joules or ()),
        "samples_per_second": totals["samples"] / max(seconds, 1e-9),
        "supervised_tokens_per_second": totals["supervised_tokens"] / max(seconds, 1e-9),
        "peak_memory_bytes": state.peak_memory_bytes,
        "memory": "cuda" if device.type == "cuda" else "resident",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "num_processes": session.accelerator.num_processes,
        "loss": steps[-1]["loss"] if steps else None,
        "model_step": model_step,
        "validation_step": validation.get("step"),
        "validation_loss": validation.get("validation_loss"),
        "validation_loss_per_character": validation.get("validation_loss_per_character"),
        "scores": {key: value for key, value in validation.items() if key not in VALIDATION_KEYS},
    }
