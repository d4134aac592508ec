import mmap
from pathlib import Path

import pytest
import torch

from tests.training.tiny import tiny_recipe
from visgraft.config import load_recipe
from visgraft.estimate import trial as module
from visgraft.estimate.trial import has_weights, peak_bytes, reset_peak, resident_bytes, try_out

ON_LINUX = Path("/proc/self/clear_refs").exists()


def test_a_trial_measures_steps_and_keeps_nothing(tmp_path: Path) -> None:
    recipe = load_recipe({**tiny_recipe(tmp_path), "output": str(tmp_path / "runs")})
    said: list[str] = []
    trial = try_out(recipe, num_steps=2, say=said.append)
    assert len(trial.seconds) == 2
    assert all(seconds > 0 for seconds in trial.seconds)
    assert trial.device == "cpu"
    assert said[0] == "loading the model"
    assert said[-1] == "step 3 of 3"
    assert not (tmp_path / "runs").exists()


def test_a_run_that_is_shorter_than_the_trial_ends_it(tmp_path: Path) -> None:
    recipe = load_recipe(tiny_recipe(tmp_path, max_steps=1))
    assert len(try_out(recipe, num_steps=2).seconds) == 1


def fill(size: int) -> mmap.mmap:
    """Take memory of the system itself: an allocator may hand out again what it kept."""
    held = mmap.mmap(-1, size)
    for page in range(0, size, mmap.PAGESIZE):
        held[page] = 1
    return held


@pytest.mark.skipif(not ON_LINUX, reason="the largest resident set is Linux's")
def test_the_largest_memory_is_that_since_the_reset() -> None:
    device, size = torch.device("cpu"), 64 * 2**20
    fill(2 * size).close()
    reset_peak(device)
    before = resident_bytes("VmRSS")
    fill(size).close()
    peak = peak_bytes(device, before=before)
    assert peak is not None
    assert 0.9 * size < peak < 1.5 * size


def test_elsewhere_memory_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STATUS", Path("/no/such/file"))
    assert resident_bytes("VmRSS") is None
    assert peak_bytes(torch.device("cpu"), before=None) is None


def test_weights_that_are_here_are_found(tmp_path: Path) -> None:
    values = tiny_recipe(tmp_path)
    assert has_weights(load_recipe(values))
    for file in Path(values["model"]["language"]).glob("*.safetensors"):
        file.unlink()
    assert not has_weights(load_recipe(values))
    values["model"]["language"] = "someone/nothing"
    assert not has_weights(load_recipe(values))
