"""Every rung of the ladder trains the same weights on the same texts, and from `supervised` on with the same loss."""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.tiny import gradients

pytestmark = pytest.mark.slow

BENCH = Path(__file__).resolve().parents[2] / "bench"
SAME_LOSS = ("supervised", "unpadded", "shared", "filled", "compile", "cached")


@pytest.fixture
def ladder(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    torch.compiler.reset()
    return importlib.import_module("ladder")


def data_of(ladder: ModuleType, mix: str, *, num_images: int = 3) -> Any:
    vision, language = ladder.configs(True)
    return ladder.make_mix(mix, num_images, side=vision.image_size, vocabulary=language.vocab_size - 1)


@pytest.mark.parametrize("mix", ["captions", "vqa"])
def test_rungs_have_one_loss_and_one_gradient(ladder: ModuleType, mix: str) -> None:
    data, found = data_of(ladder, mix), {}
    for rung in SAME_LOSS:
        training, batch = ladder.make_rung(rung, data, tiny=True)
        assert len(batch.target) == len(found.setdefault("targets", batch).target)
        loss = training.loss()
        grads = gradients(training.model, loss)
        found[rung] = (float(loss.detach()), torch.cat([grad.flatten() for _, grad in sorted(grads.items())]))
    loss, gradient = found["unpadded"]
    for rung in SAME_LOSS:
        assert found[rung][0] == pytest.approx(loss, rel=1e-3)  # bfloat16 has 3 digits
        assert torch.cosine_similarity(found[rung][1], gradient, dim=0) > 0.995
        assert float(found[rung][1].norm() / gradient.norm()) == pytest.approx(1, abs=0.02)


def test_the_encoder_sees_each_image_as_often_as_the_rung_says(ladder: ModuleType) -> None:
    data, seen = data_of(ladder, "captions"), {}
    for rung in ladder.RUNGS:
        training, _ = ladder.make_rung(rung, data, tiny=True)
        seen[rung] = 0

        def count(_: Any, __: Any, output: Any, rung: str = rung) -> None:
            seen[rung] += len(output.last_hidden_state)

        training.model.vision.register_forward_hook(count)
        training()
    once, each = 3, 3 * ladder.CAPTIONS
    assert seen == {
        "ancestor": each, "bf16": each, "supervised": each, "unpadded": each,
        "shared": once, "filled": once, "compile": once, "cached": 0,
    }  # fmt: skip


def test_rungs_train_the_same_weights_and_unlike_ones_are_refused(ladder: ModuleType) -> None:
    data = data_of(ladder, "captions", num_images=1)
    steps = {rung: ladder.make_rung(rung, data, tiny=True)[0] for rung in ladder.RUNGS}
    ladder.check_same_training(steps)
    steps["filled"].model.projection.requires_grad_(False)
    with pytest.raises(AssertionError, match="the rungs train unlike weights"):
        ladder.check_same_training(steps)
