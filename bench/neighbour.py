"""How a training step on all cores gets on beside another busy process, by how its threads wait for one another.

    python bench/neighbour.py      # 8 minutes on a machine that does nothing else; writes bench/results/neighbour.json
    python bench/neighbour.py --tiny --rounds 1 --seconds 1

Threads that are done with their part of a product wait for the others: they look again and again (spin), or sleep and
are woken. Sleeping costs time at every one of a step's thousands of products; spinning wastes a core as soon as a
thread that is waited for has none, because another program runs on it. Each way is a process of its own, which makes
the demo's steps (starter pair, 320 text tokens) whenever it is its turn:

    default       as the threads' library does it: 300,000 looks, then sleep
    N             GOMP_SPINCOUNT=N: N looks, then sleep
    passive       OMP_WAIT_POLICY=PASSIVE: sleep at once
    one thread    OMP_NUM_THREADS=1: nobody waits

In a round every way comes twice, alone and beside a process that does nothing but keep one core busy; that process is
started here, and ended here. Ratios are to `default` in the same round, alone; the policy that visgraft sets is that
which keeps 97 % of that alone, and most of it beside a neighbour (`visgraft/cli/threads.py`).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from harness import console, machine, positive, write

RESULTS = Path(__file__).parent / "results"
KEPT = 0.97  # of the speed alone
WAYS = {
    "default": {},
    "1000": {"GOMP_SPINCOUNT": "1000"},
    "10000": {"GOMP_SPINCOUNT": "10000"},
    "30000": {"GOMP_SPINCOUNT": "30000"},
    "100000": {"GOMP_SPINCOUNT": "100000"},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS")
BUSY = "while True: pass"


def make_step(*, tiny: bool) -> tuple[Callable[[], Any], int]:
    """Make a training step, and say how many samples it has."""
    from train_step import Training

    if tiny:
        from ladder import make_mix, make_rung

        data = make_mix("captions", 2, side=32, vocabulary=299)
        return make_rung("shared", data, tiny=True)[0], 2
    import torch

    from visgraft.builder.build import apply_modes, build
    from visgraft.config import load_recipe
    from visgraft.model.attention_kernel import choose_attention, set_attention
    from visgraft.model.precision import computing_dtype
    from visgraft.training.plan import Position
    from visgraft.training.steps import load_steps
    from visgraft.training.training_data import loader_settings, open_planner

    recipe, device = load_recipe("demo"), torch.device("cpu")
    dtype = computing_dtype("auto", device=device)
    model, processor = build(recipe)
    apply_modes(model, recipe.train, frozen_dtype=dtype)
    set_attention(model, choose_attention(model.language, device=device, asked=recipe.model.attention))
    planner = open_planner(recipe, "train", processor)
    step = next(load_steps(planner, Position(0, 0), epochs=1.0, settings=loader_settings(recipe, device="cpu")))
    [batch] = map(processor.finish, step.batches)
    return Training(model, lambda: model.loss(batch).loss, dtype=dtype), step.num_samples


def work(*, tiny: bool) -> None:
    """Make steps for so many seconds at every line of standard input, and say how many samples a second that was."""
    step, num_samples = make_step(tiny=tiny)
    step()
    print("ready", flush=True)
    for line in sys.stdin:
        start, done = time.perf_counter(), 0
        while (seconds := time.perf_counter() - start) < float(line):
            step()
            done += num_samples
        print(done / seconds, flush=True)


@contextmanager
def worker(settings: dict[str, str], *, tiny: bool) -> Iterator[subprocess.Popen[str]]:
    """Start a process that makes steps, with these settings of its threads alone."""
    others = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    command = [sys.executable, __file__, "--work", *(["--tiny"] if tiny else [])]
    with subprocess.Popen(
        command, env={**others, **settings}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            if say(child) != "ready":
                raise SystemExit("a process that makes steps ended before its first")
            yield child
        finally:
            child.kill()


def say(child: subprocess.Popen[str], text: str = "") -> str:
    """Write a line to a process where there is one, and read one."""
    assert child.stdin is not None and child.stdout is not None
    if text:
        child.stdin.write(f"{text}\n")
        child.stdin.flush()
    return child.stdout.readline().strip()


@contextmanager
def neighbour() -> Iterator[None]:
    """Keep one core busy while the context lasts."""
    with subprocess.Popen([sys.executable, "-c", BUSY]) as busy:
        try:
            time.sleep(0.2)
            yield
        finally:
            busy.kill()


def measure(ways: list[str], *, rounds: int, seconds: float, tiny: bool) -> dict[str, dict[str, list[float]]]:
    """Give samples a second of every way in every round, alone and beside a neighbour."""
    found: dict[str, dict[str, list[float]]] = {way: {"alone": [], "beside": []} for way in ways}
    with ExitStack() as stack:
        children = {way: stack.enter_context(worker(WAYS[way], tiny=tiny)) for way in ways}
        for number in range(rounds):
            for way, child in children.items():
                found[way]["alone"].append(float(say(child, str(seconds))))
                with neighbour():
                    found[way]["beside"].append(float(say(child, str(seconds))))
            shown = "  ".join(f"{w} {f['alone'][-1]:.1f}, {f['beside'][-1]:.1f}" for w, f in found.items())
            console.print(f"round {number + 1}/{rounds}: samples/s alone, beside a neighbour: {shown}")
    return found


def summary(found: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """Give medians, ratios to `default` alone, and the way that keeps the speed alone and most beside a neighbour."""
    first = next(iter(found.values()))["alone"]
    ways = {
        way: {
            **{f"{place}_samples_per_s": round(statistics.median(speeds), 2) for place, speeds in places.items()},
            **{
                f"{place} / {next(iter(found))} alone": round(
                    statistics.median(own / whole for own, whole in zip(speeds, first, strict=True)), 3
                )
                for place, speeds in places.items()
            },
            "rounds": {place: [round(speed, 2) for speed in speeds] for place, speeds in places.items()},
        }
        for way, places in found.items()
    }
    alone, beside = (f"{place} / {next(iter(found))} alone" for place in ("alone", "beside"))
    quick = [way for way, own in ways.items() if own[alone] >= KEPT]
    return {"ways": ways, "best": max(quick, key=lambda way: ways[way][beside])}


def main() -> None:
    """Measure every way and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--tiny", action="store_true", help="a tiny model: only shows that the script runs")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=RESULTS / "neighbour.json")
    given = parser.parse_args()
    if given.work:
        work(tiny=given.tiny)
        return
    ways = sorted({"default", *given.ways}, key=list(WAYS).index)
    load = os.getloadavg()[0]
    found = measure(ways, rounds=given.rounds, seconds=given.seconds, tiny=given.tiny)
    result = {
        "what": "samples a second of the demo's training step, alone and beside a process that keeps one core busy",
        "load_before": round(load, 2),  # what else ran: near 0, or nothing here was alone
        **summary(found),
        "machine": machine(),
    }
    write(result, path=given.output)


if __name__ == "__main__":
    main()
