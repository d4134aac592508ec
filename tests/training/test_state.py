"""A checkpoint gives back what was put in, bit for bit, proves itself, and says what is wrong with it."""

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import nn

from visgraft.errors import CheckpointError
from visgraft.runs import check_checkpoint, read_state
from visgraft.sealed import write_sealed
from visgraft.training.plan import Position
from visgraft.training.state import TrainState, get_random_state, load_state, load_trained, save_state, set_random_state

CPU = torch.device("cpu")


def make(seed: int = 0) -> tuple[dict[str, nn.Parameter], torch.optim.Optimizer]:
    torch.manual_seed(seed)
    shapes = {"a.weight": (2, 3), "b": (3,), "none": (0, 2), "one": ()}
    trained = {name: nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}
    trained["half"] = nn.Parameter(torch.randn(5, 3, dtype=torch.bfloat16).T)  # not contiguous
    optimizer = torch.optim.AdamW(trained.values(), lr=0.1)
    sum(parameter.float().square().sum() for parameter in trained.values()).backward()
    optimizer.step()
    return trained, optimizer


def write(folder: Path, state: TrainState | None = None, *, seed: int = 0, **others: Any) -> Path:
    trained, optimizer = make(seed)
    others = {"random_states": [get_random_state(CPU)], **others}
    save_state(folder, state or TrainState(), trained=trained, moments=optimizer.state_dict(), **others)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_checkpoint_gives_back_weights_moments_and_counters(tmp_path: Path) -> None:
    trained, optimizer = make()
    state = TrainState(
        step=7, position=Position(1, 4), samples=9, best_step=5, best_loss=0.1, epoch_ended=True, logs={"metrics": 3}
    )
    write(tmp_path / "step-7", state)
    others, another = make(seed=1)
    loaded, random_states = load_state(tmp_path / "step-7", trained=others, optimizer=another)
    assert loaded == state
    assert isinstance(loaded.position, Position)
    assert len(random_states) == 1
    assert all(torch.equal(trained[name], others[name]) for name in trained)
    for old, new in zip(optimizer.state.values(), another.state.values(), strict=True):
        assert all(torch.equal(old[key], new[key]) for key in old)


def test_random_states_come_back(tmp_path: Path) -> None:
    random.gauss(0, 1), np.random.randn()  # each leaves half a draw behind
    trained, optimizer = make()
    write(tmp_path / "step-0")
    drawn = (random.random(), random.gauss(0, 1), np.random.randn(), torch.rand(2).tolist())
    _, [state] = load_state(tmp_path / "step-0", trained=trained, optimizer=optimizer)
    set_random_state(state, device=CPU)
    assert (random.random(), random.gauss(0, 1), np.random.randn(), torch.rand(2).tolist()) == drawn


def test_weights_are_written_as_safetensors_writes_them(tmp_path: Path) -> None:
    trained, _ = make()
    plain = {name: tensor.detach().contiguous() for name, tensor in trained.items()}
    assert contents(write(tmp_path / "step-0"))["trained.safetensors"] == save(plain)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    trained, _ = make()
    write(tmp_path / "step-0")
    del trained["b"]
    with pytest.raises(CheckpointError, match=r"holds other weights than those that train now \(\['b'\]\)"):
        load_trained(tmp_path / "step-0", trained=trained)


def test_one_flipped_bit_anywhere_is_found_and_nothing_is_loaded(tmp_path: Path) -> None:
    write(tmp_path / "step-3", TrainState(step=3))
    trained, optimizer = make(seed=1)
    before = {name: parameter.detach().clone() for name, parameter in trained.items()}
    chosen = random.Random(0)
    for path in sorted((tmp_path / "step-3").iterdir()):
        whole = path.read_bytes()
        for _ in range(60):
            place, bit = chosen.randrange(len(whole)), chosen.randrange(8)
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            if path.name == "state.json" and _is_same_json(whole, damaged):
                continue
            with pytest.raises(CheckpointError, match=rf"{re.escape(path.name)}: (damaged|holds no sum)"):
                load_state(tmp_path / "step-3", trained=trained, optimizer=optimizer)
        path.write_bytes(whole)
    assert all(torch.equal(before[name], trained[name]) for name in trained)
    load_state(tmp_path / "step-3", trained=trained, optimizer=optimizer)


def _is_same_json(whole: bytes, damaged: bytes) -> bool:
    """Say whether only white space differs."""
    try:
        return bool(json.loads(whole) == json.loads(damaged))
    except ValueError:
        return False


@pytest.mark.parametrize("name", ["trained.safetensors", "optimizer.pt", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "missing", "of another step", "nested"])
def test_a_file_that_is_not_the_one_written_is_named(tmp_path: Path, name: str, damage: str) -> None:
    path = write(tmp_path / "step-3", TrainState(step=3)) / name
    other = write(tmp_path / "step-4", TrainState(step=4), seed=4) / name
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "missing":
        path.unlink()
    elif damage == "of another step":
        shutil.copy(other, path)
    else:
        path.write_text("[" * 100_000)
    trained, optimizer = make()
    of_another = name == "state.json" and damage == "of another step"  # then the others are not those that it lists
    expected = "optimizer.pt|trained.safetensors" if of_another else re.escape(name)
    what = "missing" if damage == "missing" else "damaged"
    with pytest.raises(CheckpointError, match=rf"step-3/({expected}): {what}"):
        load_state(tmp_path / "step-3", trained=trained, optimizer=optimizer)


def test_a_checkpoint_without_sums_is_not_trusted(tmp_path: Path) -> None:
    path = write(tmp_path / "step-3") / "state.json"
    values = json.loads(path.read_text())
    del values["crc32"]
    path.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"state\.json: holds no sum of itself"):
        check_checkpoint(path.parent)


def test_a_checkpoint_of_other_versions_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    trained, optimizer = make()
    write(tmp_path / "step-3")
    write_sealed(tmp_path / "step-3" / "state.json", {**read_state(tmp_path / "step-3"), "unheard_of": 1})
    with pytest.raises(CheckpointError, match=r"written by another version .*unheard_of.*environment\.json names"):
        load_state(tmp_path / "step-3", trained=trained, optimizer=optimizer)


def test_a_second_save_at_one_step_writes_its_state_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "step-3", TrainState(step=3))
    before = {path.name: (path.stat().st_ino, path.read_bytes()) for path in folder.iterdir()}
    trained, optimizer = make(seed=1)
    state, _ = load_state(folder, trained=trained, optimizer=optimizer)  # as a resumed run does
    state.validated_step = 3

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a folder was written")

    monkeypatch.setattr("visgraft.training.state.whole_folder", refuse)
    save_state(folder, state, trained=trained, moments=optimizer.state_dict(), random_states=[])
    after = {path.name: (path.stat().st_ino, path.read_bytes()) for path in folder.iterdir()}
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {"state.json"}
    assert load_state(folder, trained=trained, optimizer=optimizer) == (state, [])


@pytest.mark.parametrize("name", ["trained.safetensors", "optimizer.pt", "state.json"])
def test_a_save_over_a_checkpoint_that_lacks_a_file_writes_all_of_it(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "step-3")
    (folder / name).unlink()
    write(folder)
    check_checkpoint(folder)


def test_other_weights_at_the_same_step_replace_the_folder(tmp_path: Path) -> None:
    write(tmp_path / "step-3")
    others, _ = make(seed=1)
    write(tmp_path / "step-3", seed=1)
    trained, optimizer = make()
    load_state(tmp_path / "step-3", trained=trained, optimizer=optimizer)
    assert all(torch.equal(trained[name], others[name]) for name in trained)
    assert [path.name for path in tmp_path.iterdir()] == ["step-3"]
