"""What each of several GPUs holds under each launch config, and how long a step takes there."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.training.tiny import tiny_recipe
from visgraft.config.shipped import shipped_recipes
from visgraft.errors import ConfigError
from visgraft.estimate.estimate import Estimate, estimate
from visgraft.estimate.gpus import GPUS, Gpu, find_gpu
from visgraft.estimate.sharing import Blocks, Machines, Sharding, best_of, shardings
from visgraft.estimate.step_cost import StepCost

GB = 10**9
PARTS = {"weights": 40 * GB, "gradients": 40 * GB, "optimizer": 80 * GB, "activations": 6 * GB, "framework": GB}
COST = StepCost(PARTS, {"language": 38 * GB, "vision": 2 * GB}, 40 * GB, 8192, 60e9)
BLOCKS = Blocks(largest_weights=GB, largest_gradients=GB, outside_weights=2 * GB, outside_gradients=2 * GB)
H100 = find_gpu("h100")


def ways(*, machines: Machines, gpu: Gpu = H100, num_passes: int = 1, **settings: Any) -> dict[str, Sharding]:
    chosen = {"num_positions": 8192, "utilisation": 0.4, **settings}
    found = shardings(COST, BLOCKS, gpu=gpu, machines=machines, num_passes=num_passes, **chosen)
    assert all(each.name in shipped_recipes() for each in found)
    return {each.name.removeprefix("launch/"): each for each in found}


def test_memory_a_gpu_is_what_it_keeps_and_what_it_gathers() -> None:
    found = ways(machines=Machines.of(16, 2))
    assert list(found) == ["ddp", "fsdp2_zero2", "fsdp2_hybrid", "fsdp2"]
    rest = PARTS["activations"] + PARTS["framework"]
    totals = {name: each.cost.total_bytes for name, each in found.items()}
    assert totals["ddp"] == (40 + 40 + 80 + 40) * GB + rest
    assert totals["fsdp2"] == 160 * GB // 16 + (2 + 2 + 2 + 2) * GB + rest
    assert totals["fsdp2_hybrid"] == 160 * GB // 8 + 8 * GB + rest
    assert totals["fsdp2_zero2"] == 160 * GB // 16 + (40 + 2 + 2) * GB + rest
    for each in found.values():
        assert each.cost.sizes["weights"] == sum(each.cost.weights.values())


def test_one_machine_has_no_hybrid_and_quantized_weights_stay_whole() -> None:
    assert list(ways(machines=Machines.of(8, 1))) == ["ddp", "fsdp2_zero2", "fsdp2"]
    assert list(ways(machines=Machines.of(4, 4))) == ["ddp", "fsdp2_zero2", "fsdp2"]
    assert list(ways(machines=Machines.of(8, 1), is_quantized=True)) == ["ddp"]


def test_the_time_is_the_arithmetic_and_what_sending_takes_beyond_it() -> None:
    compute = 60e9 * 8192 / (0.4 * 989e12)
    alone = ways(machines=Machines.of(2, 1), gpu=replace(H100, link_gb_s=1e9))
    assert {each.seconds_per_step for each in alone.values()} == {float(f"{compute:.4g}")}
    over_a_wire = ways(machines=Machines.of(16, 2, network_gbit=80))
    sent = 40 * GB / 2 / (10 * GB)  # half of the gradients, at 10 GB/s, in each direction of the ring
    assert over_a_wire["ddp"].seconds_per_step == pytest.approx(compute + 2 * sent - 2 / 3 * compute, abs=1e-3)
    assert over_a_wire["fsdp2"].seconds_per_step == pytest.approx(3 * sent, abs=1e-3)
    inside = 3 * 40 * GB * 7 / 8 / (450 * GB)
    assert over_a_wire["fsdp2_hybrid"].seconds_per_step == pytest.approx(max(compute, inside + 2 * sent), abs=1e-3)
    twice = ways(machines=Machines.of(16, 2, network_gbit=80), num_passes=2)
    assert twice["fsdp2"].seconds_per_step == pytest.approx(6 * sent, abs=1e-3)
    assert twice["ddp"] == over_a_wire["ddp"]  # gradients go once a step
    assert ways(machines=Machines.of(2, 1), gpu=find_gpu("80GB"))["ddp"].seconds_per_step is None


def test_the_quickest_that_fits_is_the_best_and_without_one_the_smallest() -> None:
    found = [*ways(machines=Machines.of(16, 2)).values()]
    assert best_of(found, gpu=find_gpu("50GB")).name == "launch/fsdp2_hybrid"
    assert best_of(found, gpu=find_gpu("400GB")).name == "launch/ddp"
    assert best_of(found, gpu=find_gpu("8GB")).name == "launch/fsdp2"
    rates = {key: (gpu.tflops, gpu.link_gb_s) for key, gpu in GPUS.items()}
    assert all(None not in rate for rate in rates.values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gpus": 12, "nodes": 5}, r"--nodes: got 5 machines for 12 GPUs; each has as many"),
        ({"gpus": 12}, r"--nodes: got 2 machines"),
        ({"gpus": 0}, r"--gpus: got 0, need 1 or more"),
        ({"gpus": 2, "measure": True}, r"--measure: got it beside --gpus 2; steps are measured on one"),
        ({"gpus": 2, "network_gbit": 0}, r"--network: got 0, need Gbit/s above 0"),
        ({"utilisation": 1.5}, r"--utilisation: got 1.5, need a share of the GPU's rate above 0, up to 1"),
    ],
)
def test_machines_that_do_not_exist_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    settings = {"gpu": "h100", **settings}
    if settings.get("gpus") == 12 and "nodes" not in settings:
        assert Machines.of(12, None).num_nodes == 2  # six in each
        return
    with pytest.raises(ConfigError, match=message):
        estimate(tiny_recipe(tmp_path), **settings)


def test_several_gpus_share_a_step_out_and_a_small_step_is_told_of(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, text_tokens_per_step=400, language="full")
    one, four = estimate(recipe, gpu="h100"), estimate(recipe, gpu="h100", gpus=4)
    assert one.shardings == () and one.sharding is None and not one.hints
    assert four.sharding == "launch/ddp" and four.fits
    assert four.num_steps == one.num_steps
    assert four.cost.sizes["activations"] < 0.5 * one.cost.sizes["activations"]
    assert four.cost.sizes["sharing"] == four.cost.sizes["gradients"] == four.cost.sizes["optimizer"] // 2
    many: Estimate = estimate(recipe, gpu="h100", gpus=64)
    assert "for 64 GPUs; let train.text_tokens_per_step grow with them, here to 25,600" in many.hints[0]
    values = many.as_json()
    assert (values["gpus"], values["nodes"], values["sharding"]) == (64, 8, "launch/ddp")
    assert [each["name"] for each in values["shardings"]] == [
        "launch/ddp", "launch/fsdp2_zero2", "launch/fsdp2_hybrid", "launch/fsdp2",
    ]  # fmt: skip
    half = estimate(recipe, gpu="h100", gpus=4, utilisation=0.2)
    assert half.seconds_per_step is not None and four.seconds_per_step is not None
    assert "at 20% of 989 TFLOP/s; 450 GB/s inside a machine" in half.basis


def test_without_a_gpu_here_several_must_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"--gpus: got 2 and no GPU is here; name one"):
        estimate(tiny_recipe(tmp_path), gpu=replace(H100, is_gpu=False), gpus=2)
