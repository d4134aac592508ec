import pytest
import torch
from torch import nn

from tests.tiny import batch, fresh, samples
from visgraft.estimate.quantized import HollowQuantizedLinear, quantize_hollow
from visgraft.estimate.step_cost import estimate_step
from visgraft.model.trainable import set_trainable


@pytest.mark.parametrize(("width", "size"), [("4bit", 2048 + 64 + 4), ("8bit", 4096 + 4 * 64)])
def test_a_quantized_weight_is_as_large_as_bitsandbytes_keeps_it(width: str, size: int) -> None:
    assert HollowQuantizedLinear(nn.Linear(64, 64), width).weight.numel() == size


def test_the_size_is_that_of_bitsandbytes_itself() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    linear = nn.Linear(256, 512)
    packed, state = functional.quantize_4bit(linear.weight.data, quant_type="nf4", compress_statistics=True)
    kept = [packed, state.absmax, state.state2.absmax]
    size = sum(tensor.numel() * tensor.element_size() for tensor in kept)
    assert HollowQuantizedLinear(linear, "4bit").weight.numel() == size


def test_all_linears_but_the_head_are_quantized_and_lora_stays() -> None:
    model = fresh("llama")
    set_trainable(model, modes={"projection": "full", "language": "lora"}, frozen_dtype=torch.bfloat16)
    linears = sum(type(m) is nn.Linear for m in model.language.modules())
    adapters = sum("lora_" in name for name, m in model.language.named_modules() if type(m) is nn.Linear)
    quantize_hollow(model.language, "4bit")
    hollow = sum(isinstance(module, HollowQuantizedLinear) for module in model.language.modules())
    assert hollow == linears - adapters - 1
    assert type(model.language.get_output_embeddings()) is nn.Linear
    assert all(p.requires_grad for name, p in model.language.named_parameters() if "lora_" in name)


def test_a_quantized_language_model_takes_less_and_trains_the_same() -> None:
    estimates = []
    for width in (None, "8bit", "4bit"):
        model = fresh("llama")
        set_trainable(model, modes={"projection": "full", "language": "lora"}, frozen_dtype=torch.bfloat16)
        estimates.append(
            estimate_step(model, [batch(samples())], dtype=torch.bfloat16, on_gpu=True, quantization=width)
        )
    plain, eight, four = estimates
    assert plain.weights["language"] > eight.weights["language"] > four.weights["language"]
    assert plain.sizes["optimizer"] == eight.sizes["optimizer"] == four.sizes["optimizer"] > 0
