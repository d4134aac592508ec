"""`visgraft env`: where this program runs, for a report of a mistake.

In: nothing. Out: versions, devices and folders, as text to paste or as JSON. Usage: `visgraft env`
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from visgraft.cli.options import AsJson
from visgraft.cli.terminal import labelled, note, print_json, print_rich, quiet_libraries
from visgraft.runs import environment

EXTRAS = ("torchvision", "timm", "bitsandbytes", "tensorboard", "wandb", "av", "fastapi", "ray", "pycocoevalcap")
VARIABLES = (
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "VISGRAFT_CACHE",
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "GOMP_SPINCOUNT",
)


def env(as_json: AsJson = False) -> None:
    """Print versions, devices and folders: what a report of a mistake should hold.

    No path of yours stands in it but those of the two caches, and no key or token.
    """
    note("loading PyTorch")
    quiet_libraries()
    facts = _facts()
    if as_json:
        print_json(facts)
        return
    shown = {key: value for key, value in facts.items() if key not in ("versions", "devices", "variables")}
    shown["devices"] = "; ".join(facts["devices"])
    for group in ("versions", "variables"):
        known = [f"{name} {value}" for name, value in facts[group].items() if value is not None]
        shown[group] = ", ".join(known) or "none"
    print_rich(labelled((key.replace("_", " "), str(value)) for key, value in shown.items() if value is not None))


def _facts() -> dict[str, Any]:
    from importlib import metadata

    import torch

    from visgraft.disk_cache import cache_folder

    facts = environment()
    for extra in EXTRAS:
        try:
            facts["versions"][extra] = metadata.version(extra)
        except metadata.PackageNotFoundError:
            facts["versions"][extra] = None
    facts["devices"] = _devices()
    facts["threads"] = torch.get_num_threads()
    facts["cuda"] = torch.version.cuda
    facts["memory_gb"] = _memory_gb()
    facts["variables"] = {name: os.environ.get(name) for name in VARIABLES}
    for name, folder in (("visgraft_cache", str(cache_folder())), ("hub_cache", _hub_cache())):
        facts[name] = f"{folder} ({_free_gb(folder)} GB free)"
    return facts


def _devices() -> list[str]:
    import torch

    devices = [f"cpu ({torch.backends.cpu.get_cpu_capability()})"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append(f"cuda:{index} {properties.name} ({properties.total_memory / 1e9:.0f} GB)")
    if torch.backends.mps.is_available():
        devices.append("mps")
    return devices


def _hub_cache() -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    return str(HF_HUB_CACHE)


def _memory_gb() -> float | None:
    """Give the machine's memory; None where the system does not tell it by this name."""
    if not hasattr(os, "sysconf") or not {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= set(os.sysconf_names):
        return None
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)


def _free_gb(folder: str) -> str:
    """Give the room on the disk of a folder that may not be there yet."""
    there = next(path for path in (Path(folder), *Path(folder).absolute().parents) if path.exists())
    return f"{shutil.disk_usage(there).free / 1e9:.0f}"
