"""Where the time of a training step goes: by its phases, and by what kind of work it is.

    python bench/step_profile.py      # both mixes of the ladder, filled rows; writes bench/results/step_profile.json
    python bench/step_profile.py --tiny --rounds 1

The step is that of `ladder.py`'s rung `filled`. Phases are read off a clock between them: the encoder, the projection,
the language model's blocks, its head with the loss, the way back, the optimizer. Kinds come from PyTorch's profiler,
which is on in a round of its own: each operation's own time, without those that it calls; what no operation accounts
for is Python and PyTorch's way to its kernels. The table is written in Markdown, too, as docs/performance.md has it.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from arithmetic import SIZES, MatrixRate, needed_operations
from harness import console, machine, positive, write
from ladder import make_mix, make_rung
from torch import nn
from torch.profiler import ProfilerActivity, profile
from train_step import Training, configs

RESULTS = Path(__file__).parent / "results"
MIXES = ("captions", "vqa")
PHASES = ("encoder", "projection", "language model", "head and loss", "way back", "optimizer")
# a kind, and the names of the operations that are its; the first that fits counts
KINDS = {
    "matrix products": r"mm$|addmm|bmm|mkldnn_linear|onednn|conv",
    "attention (fused kernel)": r"scaled_dot_product|flash_attention",
    "norms": r"norm",
    "activations and softmax": r"gelu|relu|silu|sigmoid|softmax|threshold|tanh|logsumexp|exp",
    "number formats and copies": r"copy|_to_copy|contiguous|clone|cat$|transpose",
    "optimizer": r"adam|foreach|Optimizer|sqrt|addcmul|addcdiv|lerp",
    "gathering and filling": r"index|gather|scatter|embedding|fill|zero|masked|where|nonzero|arange|empty",
    "sums and elementwise": r"add|mul|div|sub|sum|neg|mean|pow",
}
OTHER = "everything else"
PYTHON = "Python and PyTorch's way to its kernels"


class Phases:
    """One step of a `Training`, timed phase by phase."""

    def __init__(self, step: Training) -> None:
        """Watch the parts of its model."""
        self.step, self.seconds = step, dict.fromkeys(PHASES, 0.0)
        model: Any = step.model
        for phase, module in (
            ("encoder", model.vision),
            ("projection", model.projection),
            ("language model", model.language.get_decoder()),
        ):
            self._watch(phase, module)

    def _watch(self, phase: str, module: nn.Module) -> None:
        started: list[float] = []
        module.register_forward_pre_hook(lambda *_: started.append(time.perf_counter()))
        module.register_forward_hook(lambda *_: self._add(phase, time.perf_counter() - started.pop()))

    def _add(self, phase: str, seconds: float) -> None:
        self.seconds[phase] += seconds

    def __call__(self) -> dict[str, float]:
        """Make the step, and give the seconds of each phase."""
        self.seconds = dict.fromkeys(PHASES, 0.0)
        start = time.perf_counter()
        loss = self.step.loss()
        forward = time.perf_counter()
        self._add("head and loss", forward - start - sum(self.seconds.values()))
        loss.backward()
        back = time.perf_counter()
        self._add("way back", back - forward)
        self.step.optimizer.step()
        self.step.optimizer.zero_grad()
        self._add("optimizer", time.perf_counter() - back)
        return self.seconds


def kinds_of(step: Callable[[], Any]) -> dict[str, float]:
    """Give the share of a step's time that each kind of work takes."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        start = time.perf_counter()
        step()
        whole = time.perf_counter() - start
    found: Counter[str] = Counter()
    for event in seen.key_averages():
        if event.key.startswith("aten::") or "Optimizer" in event.key:
            kind = next((kind for kind, names in KINDS.items() if re.search(names, event.key)), OTHER)
            found[kind] += event.self_cpu_time_total / 1e6
    found[PYTHON] = max(0.0, whole - sum(found.values()))
    total = sum(found.values())
    return {kind: round(seconds / total, 4) for kind, seconds in found.most_common()}


def measure(mix: str, *, num_images: int, rounds: int, tiny: bool, rate: MatrixRate) -> dict[str, Any]:
    """Time the phases of a mix's step, with the matrix rate in the same rounds, and profile it once more."""
    vision, language = configs(tiny)
    data = make_mix(mix, num_images, side=vision.image_size, vocabulary=language.vocab_size - 1)
    training, batch = make_rung("filled", data, tiny=tiny)
    assert batch is not None
    needed = needed_operations(training.model, batch)
    phases = Phases(training)
    phases()
    times: list[dict[str, float]] = []
    for number in range(rounds):
        rate()
        times.append(dict(phases()))
        console.print(f"{mix}, round {number + 1}/{rounds}: {sum(times[-1].values()):.2f} s")
    seconds = {phase: statistics.median(each[phase] for each in times) for phase in PHASES}
    whole = statistics.median(sum(each.values()) for each in times)
    return {
        "median_s": round(whole, 4),
        "share_of_matrix_rate": round(needed.total / whole / rate.per_second, 4),
        "at_the_matrix_rate_s": round(needed.total / rate.per_second, 4),
        "encoder_share_of_matrix_rate": round(needed.vision / seconds["encoder"] / rate.per_second, 4),
        "phases_s": {phase: round(value, 4) for phase, value in seconds.items()},
        "phases": {phase: round(value / sum(seconds.values()), 4) for phase, value in seconds.items()},
        "kinds": kinds_of(phases),
    }


def table(mixes: dict[str, dict[str, Any]], what: str) -> str:
    """Write shares of each mix as a table in Markdown."""
    names = list(dict.fromkeys(name for measured in mixes.values() for name in measured[what]))
    lines = [f"| {what} | {' | '.join(mixes)} |", f"| --- |{' ---: |' * len(mixes)}"]
    lines += [f"| {name} | {' | '.join(f'{mixes[mix][what].get(name, 0):.0%}' for mix in mixes)} |" for name in names]
    return "\n".join(lines)


def main() -> None:
    """Profile both mixes, write the result and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=positive, default=4, help="images a step; of `vqa` half as many")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--mixes", nargs="+", choices=MIXES, default=list(MIXES))
    parser.add_argument("--tiny", action="store_true", help="tiny shapes: only shows that the script runs")
    parser.add_argument("--output", type=Path, default=RESULTS / "step_profile.json")
    given = parser.parse_args()
    rate = MatrixRate(torch.device("cpu"), sizes=(64, 128) if given.tiny else SIZES)
    num_images = {"captions": given.images, "vqa": max(1, given.images // 2)}
    mixes = {
        mix: measure(mix, num_images=num_images[mix], rounds=given.rounds, tiny=given.tiny, rate=rate)
        for mix in given.mixes
    }
    for what in ("phases", "kinds"):
        console.print(table(mixes, what), markup=False)
    result = {"what": "where the time of a training step goes (rung `filled` of the ladder)", "mixes": mixes}
    write({**result, "machine": machine()}, path=given.output)


if __name__ == "__main__":
    main()
