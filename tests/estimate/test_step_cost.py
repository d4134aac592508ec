import torch

from tests.tiny import batch, fresh, samples
from visgraft.estimate.gpus import Gpu
from visgraft.estimate.step_cost import FRAMEWORK_BYTES, StepCost, estimate_step
from visgraft.model.trainable import set_trainable


def estimated(*of: list, on_gpu: bool = False) -> StepCost:  # type: ignore[type-arg]
    model = fresh("llama")
    set_trainable(model, modes={"projection": "full", "language": "lora"}, frozen_dtype=torch.bfloat16)
    return estimate_step(model, [batch(part) for part in of], dtype=torch.bfloat16, on_gpu=on_gpu)


def test_the_total_is_the_sum_of_the_parts() -> None:
    estimate = estimated(samples())
    assert set(estimate.sizes) == {
        *("weights", "gradients", "optimizer", "activations", "logits", "batch", "framework"),
    }
    assert estimate.total_bytes == sum(estimate.sizes.values())
    assert sum(estimate.weights.values()) == estimate.sizes["weights"]


def test_the_largest_micro_batch_counts_and_the_others_wait_beside_it() -> None:
    one, three = estimated(samples()), estimated(samples()[:1], samples(), samples()[:1])
    assert three.num_positions == one.num_positions
    assert three.sizes["batch"] > one.sizes["batch"]
    assert three.sizes["activations"] == one.sizes["activations"]
    assert three.sizes["gradients"] >= one.sizes["gradients"]


def test_a_gpu_holds_a_context() -> None:
    assert estimated(samples(), on_gpu=True).sizes["framework"] == FRAMEWORK_BYTES["gpu"]


def test_time_is_arithmetic_over_the_rate_at_a_stated_share() -> None:
    estimate = estimated(samples())
    seconds = estimate.seconds(1000, tflops=100, utilisation=0.4)
    assert seconds == 1000 * estimate.flops_per_position / (100e12 * 0.4)
    assert estimate.seconds(1000, tflops=200, utilisation=0.4) == seconds / 2


def test_weights_are_read_in_fp32() -> None:
    model = fresh("llama")
    number = sum(p.numel() for p in model.parameters())
    set_trainable(model, modes={"projection": "full"}, frozen_dtype=torch.bfloat16)
    assert estimate_step(model, [batch(samples())], dtype=None, on_gpu=True).loading_bytes == 4 * number


def test_a_computer_must_also_hold_the_weights_while_they_are_read() -> None:
    estimate = StepCost({"weights": 10}, {}, loading_bytes=20, num_positions=1, flops_per_position=1.0)
    assert estimate.fits(Gpu("gpu", 15))
    assert not estimate.fits(Gpu("computer", 15, is_gpu=False))
    assert estimate.fits(Gpu("computer", 20, is_gpu=False))
