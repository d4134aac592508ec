"""Joules are those that the hardware counts, and null where it says none."""

import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.tiny import tiny_recipe
from visgraft.runs import Run
from visgraft.training import energy
from visgraft.training.energy import EnergyMeter, added, gpu_counter
from visgraft.training.interrupt import Interrupted
from visgraft.training.loop import train
from visgraft.training.progress import TrainProgress

CPU, FULL = torch.device("cpu"), 10_000_000


@pytest.fixture
def powercap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two processors' counters, and one of a part of the first."""
    folder = tmp_path / "powercap"
    for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"):
        (folder / name).mkdir(parents=True)
        (folder / name / "energy_uj").write_text("1000000\n")
        (folder / name / "max_energy_range_uj").write_text(f"{FULL}\n")
    monkeypatch.setattr(energy, "POWERCAP", folder)
    return folder


def count(powercap: Path, number: int, microjoules: int) -> None:
    (powercap / f"intel-rapl:{number}" / "energy_uj").write_text(f"{microjoules}\n")


def test_processors_are_summed_and_counted_on_where_they_begin_again(powercap: Path) -> None:
    meter = EnergyMeter(CPU, counts_processors=True)
    count(powercap, 0, 3_500_000)
    count(powercap, 1, 2_000_000)
    assert meter.spent() == {"cpu": pytest.approx(3.5)}
    count(powercap, 0, 500_000)  # full on its way
    assert meter.spent() == {"cpu": pytest.approx((FULL - 3_000_000) / 1e6)}
    assert meter.spent() == {"cpu": 0.0}


def test_what_may_not_be_read_is_not_known(powercap: Path) -> None:
    (powercap / "intel-rapl:1" / "energy_uj").unlink()
    assert EnergyMeter(CPU, counts_processors=True).spent() == {}
    assert EnergyMeter(CPU, counts_processors=False).spent() == {}


def test_elsewhere_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "nowhere")
    assert EnergyMeter(CPU, counts_processors=True).spent() == {}


class NVMLError(Exception):
    pass


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A library of one GPU."""
    said: dict[str, Any] = {"GPU-abc": 2000}

    def total(uuid: str) -> int:
        if uuid not in said:
            raise NVMLError
        return said[uuid]

    made: Any = types.ModuleType("pynvml")
    made.NVMLError, made.nvmlInit = NVMLError, lambda: None
    made.nvmlDeviceGetHandleByUUID, made.nvmlDeviceGetTotalEnergyConsumption = (lambda uuid: uuid), total
    monkeypatch.setitem(sys.modules, "pynvml", made)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(uuid="abc"))
    yield said


def test_a_gpu_is_counted_by_its_own_name(nvml: dict[str, Any]) -> None:
    meter = EnergyMeter(torch.device("cuda", 0), counts_processors=False)
    nvml["GPU-abc"] = 5500
    assert meter.spent() == {"gpu": 3.5}
    del nvml["GPU-abc"]
    assert meter.spent() == {}


def test_without_the_library_a_gpu_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu_counter(torch.device("cuda", 0))() is None


def test_what_was_not_told_once_is_not_known_any_more() -> None:
    assert added(None, {"gpu": 1.0, "cpu": 2.0}) == {"gpu": 1.0, "cpu": 2.0}
    assert added({"gpu": 1.0, "cpu": 2.0}, {"gpu": 4.0}) == {"gpu": 5.0}
    assert added({"gpu": 1.0}, {"gpu": 4.0, "cpu": 1.0}) == {"gpu": 5.0}
    assert added({}, {"gpu": 4.0}) == {}


@pytest.mark.slow
def test_a_run_that_was_stopped_counts_the_joules_of_both_times(
    tmp_path: Path, powercap: Path, quiet: TrainProgress
) -> None:
    recipe, folder = tiny_recipe(tmp_path, max_steps=2), tmp_path / "run"

    def stop(step: int) -> bool:
        count(powercap, 0, 2_000_000)
        return step == 1

    with pytest.raises(Interrupted):
        train(recipe, folder=folder, progress=quiet, stop=stop)
    train(resume=folder, progress=quiet, stop=lambda step: bool(count(powercap, 1, 4_000_000)))
    summary = Run.open(folder).read_summary()
    assert summary is not None
    assert (summary["joules"], summary["joules_of"]) == (pytest.approx(1.0 + 3.0), ["cpu"])
    assert json.loads((folder / "summary.json").read_text())["hours"] > 0
