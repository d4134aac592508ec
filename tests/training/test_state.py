"""A checkpoint gives back what was put in, bit for bit, and says what is wrong with it."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from visgraft.errors import CheckpointError
from visgraft.training.plan import Position
from visgraft.training.state import TrainState, get_random_state, load_state, load_trained, save_state, set_random_state

CPU = torch.device("cpu")


def make() -> tuple[dict[str, nn.Parameter], torch.optim.Optimizer]:
    trained = {"a.weight": nn.Parameter(torch.randn(2, 3)), "b": nn.Parameter(torch.randn(3))}
    optimizer = torch.optim.AdamW(trained.values(), lr=0.1)
    sum(parameter.square().sum() for parameter in trained.values()).backward()
    optimizer.step()
    return trained, optimizer


def test_a_checkpoint_gives_back_weights_moments_and_counters(tmp_path: Path) -> None:
    trained, optimizer = make()
    state = TrainState(step=7, position=Position(1, 4), samples=9, best_step=5, best_loss=0.1, epoch_ended=True)
    save_state(tmp_path, state, trained=trained, moments=optimizer.state_dict(), random_states=[get_random_state(CPU)])
    others, another = make()
    loaded, random_states = load_state(tmp_path, trained=others, optimizer=another)
    assert loaded == state
    assert isinstance(loaded.position, Position)
    assert len(random_states) == 1
    assert all(torch.equal(trained[name], others[name]) for name in trained)
    for old, new in zip(optimizer.state.values(), another.state.values(), strict=True):
        assert all(torch.equal(old[key], new[key]) for key in old)


def test_random_states_come_back(tmp_path: Path) -> None:
    trained, optimizer = make()
    save_state(
        tmp_path, TrainState(), trained=trained, moments=optimizer.state_dict(), random_states=[get_random_state(CPU)]
    )
    drawn = (random.random(), np.random.rand(), torch.rand(2).tolist())
    _, [state] = load_state(tmp_path, trained=trained, optimizer=optimizer)
    set_random_state(state, device=CPU)
    assert (random.random(), np.random.rand(), torch.rand(2).tolist()) == drawn


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    trained, optimizer = make()
    save_state(tmp_path, TrainState(), trained=trained, moments=optimizer.state_dict(), random_states=[])
    with pytest.raises(CheckpointError, match=r"holds other weights than those that train now \(\['b', 'c'\]\)"):
        load_trained(tmp_path, trained={"a.weight": trained["a.weight"], "c": trained["b"]})


def test_a_checkpoint_that_lacks_a_file_says_what_to_do(tmp_path: Path) -> None:
    trained, optimizer = make()
    save_state(tmp_path, TrainState(), trained=trained, moments=optimizer.state_dict(), random_states=[])
    (tmp_path / "random.pt").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=r"cannot be read .*; remove it to resume from the one before"):
        load_state(tmp_path, trained=trained, optimizer=optimizer)
    (tmp_path / "trained.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"trained\.safetensors: missing; remove .* to resume from"):
        load_state(tmp_path, trained=trained, optimizer=optimizer)
