"""Activations are computed twice only where a gradient flows, and nothing changes by it, not even a bit."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from tests.tiny import batch, fresh, gradients, samples
from visgraft.config import LoraSettings
from visgraft.model import activation_checkpointing as recompute
from visgraft.model.activation_checkpointing import checkpoint_activations
from visgraft.model.trainable import set_trainable
from visgraft.model.vlm import VisionLanguageModel

LORA: Any = {"language": LoraSettings(r=2)}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Name the layer of every call that is computed twice."""
    seen: list[str] = []
    plain = recompute.checkpoint

    def spy(function: Any, *arguments: Any, **named: Any) -> Any:
        seen.append(type(function.func.__self__).__name__)
        return plain(function, *arguments, **named)

    monkeypatch.setattr(recompute, "checkpoint", spy)
    return seen


def prepared(language: str, modes: dict[str, Any]) -> VisionLanguageModel:
    model = fresh(language)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    torch.manual_seed(0)
    set_trainable(model, modes=modes, lora=LORA)
    return model.train()


@pytest.mark.parametrize("language", ["llama", "opt", "bloom", "mpt", "gpt2", "gemma3", "falcon"])
@pytest.mark.parametrize(
    "modes", [{"projection": "full"}, {"projection": "full", "language": "lora"}, {"vision": "full", "head": "full"}]
)
def test_losses_and_gradients_are_bit_equal(language: str, modes: dict[str, Any], calls: list[str]) -> None:
    plain, frugal = prepared(language, modes), prepared(language, modes)
    checkpoint_activations(frugal.language)
    of = batch(samples())
    first, second = plain.loss(of), frugal.loss(of)
    assert torch.equal(first.target_losses, second.target_losses)
    grads, others = gradients(plain, first.loss), gradients(frugal, second.loss)
    assert grads.keys() == others.keys() != set()
    assert all(torch.equal(others[name], grad) for name, grad in grads.items())
    assert len(calls) == 2  # both layers


def test_a_frozen_language_model_behind_a_trained_projection_keeps_nothing(calls: list[str]) -> None:
    model = prepared("llama", {"projection": "full"})
    assert not model.language.training
    checkpoint_activations(model.language)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        model.loss(batch(samples()))
    frugal = sum(kept)
    kept.clear()
    other = prepared("llama", {"projection": "full"})
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        other.loss(batch(samples()))
    assert calls == ["LlamaDecoderLayer"] * 2
    assert frugal < 0.7 * sum(kept)


def test_a_frozen_encoder_is_never_computed_twice(calls: list[str]) -> None:
    model = prepared("llama", {"projection": "full", "language": "lora"})
    checkpoint_activations(model.vision)
    assert any(isinstance(module, GradientCheckpointingLayer) for module in model.vision.modules())
    model.loss(batch(samples())).loss.backward()
    assert calls == []


def test_only_the_trained_last_layers_of_an_encoder_are_computed_twice(calls: list[str]) -> None:
    model = prepared("llama", {"vision": {"last_layers": 1}, "projection": "full"})
    checkpoint_activations(model.vision)
    model.loss(batch(samples())).loss.backward()
    assert calls == ["CLIPEncoderLayer"]


def test_generation_and_validation_compute_once(calls: list[str]) -> None:
    model = prepared("llama", {"projection": "full", "language": "lora"})
    checkpoint_activations(model.language)
    with torch.no_grad():
        model.loss(batch(samples()))
    assert calls == []
