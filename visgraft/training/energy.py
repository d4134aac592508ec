"""What a run took from the mains, where the machine says it: joules of its GPUs and of its processors.

In: the device of a process. Out: joules since the last look. A GPU is asked through NVML (the package nvidia-ml-py),
which knows what the whole GPU took; processors through Linux's powercap (RAPL), which knows what the packages of the
whole machine took, and which only root may read on most systems.

    meter = EnergyMeter(device, counts_processors=True)
    meter.spent()                    # {"gpu": 512.3, "cpu": 98.1}; what is not known is left out
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from visgraft.listing import listing

POWERCAP = Path("/sys/class/powercap")
SOURCES = ("gpu", "cpu")
Counter = Callable[[], float | None]  # joules since some moment; None: it is not said


class EnergyMeter:
    """The counters of the hardware that one process runs on."""

    def __init__(self, device: torch.device, *, counts_processors: bool) -> None:
        """Look for counters; `counts_processors` in one process of a machine, as they count for all of it."""
        packages = processor_packages() if counts_processors else []
        self._counters: dict[str, list[Counter]] = {
            "gpu": [gpu_counter(device)] if device.type == "cuda" else [],
            "cpu": [Package(path).joules for path in packages],
        }
        self._before = self._look()

    def spent(self) -> dict[str, float]:
        """Give the joules since the last call, or since the beginning, of each source that says them."""
        now, before = self._look(), self._before
        self._before = now
        return {name: now[name] - before[name] for name in now if name in before}

    def _look(self) -> dict[str, float]:
        found = {}
        for name, counters in self._counters.items():
            values = [counter() for counter in counters]
            known = [value for value in values if value is not None]
            if known and len(known) == len(values):
                found[name] = sum(known)
        return found


def added(before: Mapping[str, float] | None, spent: Mapping[str, float]) -> dict[str, float]:
    """Add what was spent to what is known of the time before; a source that was not told once is not known any more.

    Args:
        before: None = nothing was spent before.
        spent: since then.
    """
    return dict(spent) if before is None else {name: before[name] + spent[name] for name in spent if name in before}


class Package:
    """A processor's counter, which begins again at 0 where it is full."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._last: int | None = None
        self._rounds = 0

    def joules(self) -> float | None:
        """Give its joules; None: this user may not read it."""
        with suppress(OSError, ValueError):
            now, full = (int((self._folder / name).read_text()) for name in ("energy_uj", "max_energy_range_uj"))
            if self._last is not None and now < self._last:
                self._rounds += 1
            self._last = now
            return (self._rounds * full + now) / 1e6
        return None


def processor_packages() -> list[Path]:
    """List the counters of whole processors: intel-rapl:0, intel-rapl:1, ... (AMD's have that name too)."""
    return [found.path for found in listing(POWERCAP, "intel-rapl:*") if found.path.name.count(":") == 1]


def gpu_counter(device: torch.device) -> Counter:
    """Give what counts the joules of a GPU since its driver was loaded."""
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return lambda: None

    def joules() -> float | None:
        try:
            nvml.nvmlInit()
            handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
            return float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
        except (nvml.NVMLError, AttributeError):  # a GPU before Volta, part of one, an older torch
            return None

    return joules
