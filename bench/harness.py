"""Measure variants side by side: interleaved rounds, medians, ratios, one JSON result with the machine beside it.

In: named callables that each do the same work. Out: a dict per variant (seconds of every round, median, best), ratios
of rounds that ran next to each other, and the facts of the machine.

    result = interleave({"rows": rows_step, "shared": shared_step}, rounds=5, units=20)
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

console = Console(stderr=True)


def interleave(
    variants: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    units: int,
    unit: str,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Time every variant once a round, after one warm-up each.

    Args:
        variants: name -> one step; all do the same work.
        rounds: how often each is timed.
        units: how much work a step is (captions, images, tokens).
        unit: what a unit is.
        clock: `time.process_time`, with one thread, on a machine that others use at the same time.

    Returns:
        name -> {"seconds": [...], "median_s", "best_s", f"{unit}_per_s"}.
    """
    for name, step in variants.items():
        console.print(f"warm-up {name}")
        step()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for index in range(rounds):
        for name, step in variants.items():
            synchronize()
            start = clock()
            step()
            synchronize()
            seconds[name].append(clock() - start)
        shown = "  ".join(f"{name} {times[-1]:.2f} s" for name, times in seconds.items())
        console.print(f"round {index + 1}/{rounds}: {shown}")
    return {
        name: {
            "seconds": [round(value, 4) for value in times],
            "median_s": round(statistics.median(times), 4),
            "best_s": round(min(times), 4),
            f"{unit}_per_s": round(units / statistics.median(times), 3),
        }
        for name, times in seconds.items()
    }


def ratio(result: Mapping[str, Any], *, slow: str, fast: str) -> float:
    """Give the median over rounds of how many times faster `fast` was than `slow` in the same round."""
    pairs = zip(result[slow]["seconds"], result[fast]["seconds"], strict=True)
    return round(statistics.median(slow_s / fast_s for slow_s, fast_s in pairs), 2)


def machine() -> dict[str, Any]:
    """Describe where and with what a measurement was made."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    return {
        "device": device,
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def positive(text: str) -> int:
    """Read a whole number of at least 1 from the command line: `type=positive` of an argparse option."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, must be a whole number of at least 1")
    return int(text)


def write(result: Mapping[str, Any], *, path: Path) -> None:
    """Write a result as JSON and say where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    console.print(f"wrote {path}")


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
