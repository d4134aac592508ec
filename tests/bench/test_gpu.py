"""The GPU ladder: whatever the rung and however it is cut, a step has one loss; lengths are what their script draws."""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow

BENCH = Path(__file__).resolve().parents[2] / "bench"
LENGTH = 24  # to which the ancestor pads
CPU = torch.device("cpu")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    torch.compiler.reset()
    return importlib.import_module("gpu")


def loss_of(gpu: ModuleType, rung: str, model: Any, data: Any, *, positions: int) -> tuple[float, dict[str, Any]]:
    samples = gpu.encode(data, num_tokens=model.projection.num_tokens)
    if rung == "cached":
        samples = gpu.with_features(samples, model)
    step, facts = gpu.make_step(rung, model, data, samples, positions=positions, length=LENGTH)
    return float(step.loss().detach()), facts


@pytest.mark.parametrize("name", ["opt-350m", "opt-6.7b", "llama-2-7b", "mpt-7b"])
def test_all_rungs_have_one_loss_and_less_and_less_padding(gpu: ModuleType, name: str) -> None:
    pair = gpu.pairs(tiny=True)[name]
    model = gpu.build(pair, device=CPU)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert any("lora" in name for name in trained) and any("projection" in name for name in trained)
    own = model.language.config._attn_implementation
    data = gpu.make_mix("coco", 5, side=pair.vision.image_size, vocabulary=299)
    losses, padding = {}, {}
    for rung in gpu.RUNGS[1:]:
        gpu.set_rung(model, rung, own_kernel=own, backend="eager")
        losses[rung], facts = loss_of(gpu, rung, model, data, positions=300)
        padding[rung] = facts["padding"]
        assert facts["micro_batches"] > 1
    assert list(losses.values()) == pytest.approx([losses["unpadded"]] * len(losses), rel=2e-3)  # bfloat16
    assert padding["supervised"] > padding["unpadded"] > padding["filled"] == padding["cached"]


def test_the_ancestors_step_is_the_same_however_it_is_cut(gpu: ModuleType) -> None:
    pair = gpu.pairs(tiny=True)["llama-2-7b"]
    model = gpu.build(pair, device=CPU)
    data = gpu.make_mix("coco", 2, side=pair.vision.image_size, vocabulary=299)
    whole, one = loss_of(gpu, "bf16", model, data, positions=10_000)
    cut, many = loss_of(gpu, "bf16", model, data, positions=130)
    assert (one["micro_batches"], many["micro_batches"]) == (1, 4)
    assert cut == pytest.approx(whole, rel=2e-3) and one["padding"] == many["padding"] > 0.3


def test_a_rung_that_does_not_fit_is_tried_in_halves_and_then_left_out(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = gpu.pairs(tiny=True)["llama-2-7b"]
    model = gpu.build(pair, device=CPU)
    data = gpu.make_mix("coco", 2, side=pair.vision.image_size, vocabulary=299)
    samples = gpu.encode(data, num_tokens=model.projection.num_tokens)
    make_step = gpu.make_step

    def measure(limit: int) -> dict[str, Any]:
        def step_of_little_memory(*arguments: Any, positions: int, **settings: Any) -> Any:
            if positions > limit:
                raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")
            return make_step(*arguments, positions=positions, **settings)

        monkeypatch.setattr(gpu, "make_step", step_of_little_memory)
        return gpu.measure_rung("shared", model, data, samples, positions=400, length=LENGTH, rounds=1)

    assert measure(100)["micro_batch_positions"] == 100
    assert measure(10) == {"left_out": "memory does not suffice: CUDA out of memory."}


def test_the_committed_lengths_are_those_that_are_drawn(gpu: ModuleType, tmp_path: Path) -> None:
    make_lengths = importlib.import_module("make_lengths")
    make_lengths.write(tmp_path)
    for name in ("coco", "m3it"):
        assert (tmp_path / f"{name}.json").read_text() == (BENCH / "lengths" / f"{name}.json").read_text()
    assert '"positions_of_a_text_with_197_image_tokens": 129.0' in (tmp_path / "m3it.json").read_text()
