"""What the loss over a large vocabulary costs: logits, cross-entropy and the way back to the states.

    python bench/loss.py                         # writes bench/results/loss.json
    python bench/loss.py --rounds 1 --tiny

States of so many supervised positions go through a frozen bf16 head of 50,272 words, as OPT's. The same with:

    products    the two matrix products alone, forward and backward, which every way needs
    pytorch     bf16 logits widened as a whole, and PyTorch's own cross_entropy
    own         visgraft/model/loss.py: widened a few rows at a time
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import interleave, machine, positive, ratio, write
from torch import Tensor, nn

from visgraft.model.loss import cross_entropy


def pytorchs(logits: Tensor, target: Tensor) -> Tensor:
    """Compute the losses with PyTorch's own functions."""
    return nn.functional.cross_entropy(logits.float(), target, reduction="none")


def measure(num_rows: int, *, width: int, vocabulary: int, rounds: int) -> dict[str, Any]:
    """Time each way over states of so many positions."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(num_rows, width, generator=generator).bfloat16().requires_grad_()
    head = (torch.randn(vocabulary, width, generator=generator) / 20).bfloat16()
    target = torch.randint(vocabulary, (num_rows,), generator=generator)

    def products() -> None:
        (states.detach() @ head.T) @ head

    def with_loss(losses: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], None]:
        return lambda: losses(states @ head.T, target).mean().backward()

    ways = {"products": products, "pytorch": with_loss(pytorchs), "own": with_loss(cross_entropy)}
    measured = interleave(ways, rounds=rounds, units=num_rows, unit="positions")
    return {"pytorch / own": ratio(measured, slow="pytorch", fast="own"), "ways": measured}


def main() -> None:
    """Measure a step of few positions and steps of more, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=positive, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--rounds", type=positive, default=9)
    parser.add_argument("--tiny", action="store_true", help="tiny shapes: only shows that the script runs")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "loss.json")
    given = parser.parse_args()
    shape = {"width": 32, "vocabulary": 300} if given.tiny else {"width": 512, "vocabulary": 50_272}
    result = {
        "what": "seconds of head and loss, forward and backward, by supervised positions",
        **shape,
        "positions": {number: measure(number, **shape, rounds=given.rounds) for number in given.positions},
        "machine": machine(),
    }
    write(result, path=given.output)


if __name__ == "__main__":
    main()
