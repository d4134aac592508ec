"""Learning rates and decay land on the right weights, and the schedule is a pure function."""

import pytest
import torch
from torch import nn

from visgraft.config import TrainSettings
from visgraft.training.optimizer import build_optimizer, rate_factor, set_learning_rates


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.ones(*shape))


def test_every_part_has_its_own_rate_and_vectors_are_not_decayed() -> None:
    trained = {
        "projection": {"projection.linear.weight": weight(3, 3), "projection.norm.weight": weight(3)},
        "language": {"language.lora_A.weight": weight(2, 3)},
        "head": {},
    }
    settings = TrainSettings(learning_rate={"projection": 1e-3, "language": 1e-4}, weight_decay=0.1)
    optimizer = build_optimizer(trained, settings)  # type: ignore[arg-type]
    assert [(g["part"], g["lr"], g["weight_decay"], len(g["params"])) for g in optimizer.param_groups] == [
        ("projection", 1e-3, 0.1, 1),
        ("projection", 1e-3, 0.0, 1),
        ("language", 1e-4, 0.1, 1),
    ]


def test_rates_are_set_from_the_base_however_often() -> None:
    optimizer = build_optimizer({"projection": {"w": weight(2, 2)}}, TrainSettings(learning_rate=1e-2))
    assert set_learning_rates(optimizer, 0.5) == {"projection": 5e-3}
    assert set_learning_rates(optimizer, 0.5) == {"projection": 5e-3}
    assert optimizer.param_groups[0]["lr"] == 5e-3


def test_the_rate_climbs_over_the_warm_up_and_is_then_full() -> None:
    factors = [rate_factor(step, fraction_done=0.0, warmup_steps=4, schedule="constant") for step in range(6)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert rate_factor(0, fraction_done=0.0, warmup_steps=0, schedule="linear") == 1.0


@pytest.mark.parametrize(
    ("schedule", "quarter", "half", "end"),
    [("constant", 1, 1, 1), ("linear", 0.75, 0.5, 0), ("cosine", 0.8536, 0.5, 0)],
)
def test_the_rate_falls_with_progress(schedule: str, quarter: float, half: float, end: float) -> None:
    factors = [rate_factor(99, fraction_done=p, warmup_steps=0, schedule=schedule) for p in (0.25, 0.5, 1.0, 1.1)]  # type: ignore[arg-type]
    assert factors == pytest.approx([quarter, half, end, end], abs=1e-4)
