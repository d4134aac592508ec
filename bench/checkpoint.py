"""How long a checkpoint takes to write, beside one without sums, and how long it takes to prove that it is whole.

In: megabytes of trained weights. Out: bench/results/checkpoint.json: seconds of every round, medians, ratios. `without
sums` is how checkpoints were written before: safetensors' own writer, `torch.save`, every file synced to the disk.

    python bench/checkpoint.py                      # 500 MB of weights, and 1 GB of moments
    python bench/checkpoint.py --megabytes 50 --rounds 2 --check      # exit status 1 where it takes over 10 % longer
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from harness import console, interleave, machine, positive, ratio, write
from safetensors.torch import save_file

from visgraft.atomic import whole_folder, write_json
from visgraft.runs import check_checkpoint
from visgraft.training.state import TrainState, get_random_state, save_state

RESULT = Path(__file__).parent / "results" / "checkpoint.json"
MOST = 1.10  # times as long as without sums
PIECE = 1000  # rows and columns of a weight: 4 MB


def main(args: list[str] | None = None) -> int:
    """Measure, write the result, and with --check say whether the sums are too slow."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=positive, default=500, help="of trained weights (default: 500)")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--check", action="store_true", help="write no result")
    parser.add_argument("--folder", type=Path, default=None, help="where to write (default: a temporary folder)")
    given = parser.parse_args(args)
    torch.manual_seed(0)
    trained = {f"layer.{n}.weight": torch.randn(PIECE, PIECE) for n in range(max(1, given.megabytes // 4))}
    moments = {
        "state": {
            index: {"step": torch.tensor(3.0), "exp_avg": torch.randn_like(weight), "exp_avg_sq": weight.square()}
            for index, weight in enumerate(trained.values())
        },
        "param_groups": [{"lr": 1e-3, "params": list(range(len(trained)))}],
    }
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        result = measure(Path(folder), trained, moments, rounds=given.rounds)
    times = ratio(result, slow="with sums", fast="without sums")
    result |= {"times_as_long": times, "machine": machine()}
    console.print(f"with sums a checkpoint takes {times:.2f} times as long")
    if given.check:
        return int(times > MOST)
    write({"megabytes": given.megabytes, **result}, path=RESULT)
    return 0


def measure(folder: Path, trained: dict[str, Any], moments: dict[str, Any], *, rounds: int) -> dict[str, Any]:
    """Time both ways to write, a second save at the same step, and the check that reading begins with."""
    state, states = TrainState(step=3), [get_random_state(torch.device("cpu"))]

    def without() -> None:
        with whole_folder(folder / "without") as building:
            save_file(trained, building / "trained.safetensors")
            torch.save({"optimizer": moments, "scaler": None}, building / "optimizer.pt")
            torch.save(states, building / "random.pt")
            write_json(building / "state.json", asdict(state))

    def with_sums() -> None:
        (folder / "with" / "state.json").unlink(missing_ok=True)  # else it would only be a second save
        save_state(folder / "with", state, trained=trained, moments=moments, random_states=states)

    def second() -> None:
        save_state(folder / "with", state, trained=trained, moments=moments, random_states=states)

    def check() -> None:
        check_checkpoint(folder / "with")

    variants = {"without sums": without, "with sums": with_sums, "second save": second, "check": check}
    return interleave(variants, rounds=rounds, units=1, unit="checkpoints")


if __name__ == "__main__":
    sys.exit(main())
