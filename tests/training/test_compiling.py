"""A compiled model computes what it computed, also where rows are of any length, and runs as before elsewhere."""

from pathlib import Path

import pytest
import torch

from tests.tiny import assert_close, assert_same_gradients, batch, fresh, gradients, random_ids, random_pixels, samples
from tests.training.tiny import tiny_recipe
from visgraft.errors import ConfigError
from visgraft.runs import Run
from visgraft.training import compiling
from visgraft.training.compiling import compile_blocks, uncompiled
from visgraft.training.loop import train
from visgraft.training.progress import TrainProgress


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> None:
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("language", "vision", "backend"),
    [
        ("llama", "clip", "aot_eager"),
        ("opt", "siglip", "eager"),
        ("bloom", "dinov2", "eager"),
    ],  # all but inductor's code
)
def test_loss_and_gradients_stay_the_same(language: str, vision: str, backend: str) -> None:
    plain, compiled = fresh(language, vision), fresh(language, vision)
    assert compile_blocks(compiled, backend=backend) == 4
    for images in ((1, 1, 0), (2, 1, 1), (1, 0, 0)):  # other numbers of rows, images and positions
        made = batch(samples(vision, images=images))
        losses = [model.loss(made).loss for model in (plain, compiled)]
        assert losses[0] is not None and losses[1] is not None
        assert_close(losses[1], losses[0])
        assert_same_gradients(gradients(plain, losses[0]), gradients(compiled, losses[1]))


def test_names_weights_and_generation_are_untouched() -> None:
    plain, compiled = fresh("llama"), fresh("llama")
    compile_blocks(compiled, backend="eager")
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    inputs = {"input_ids": random_ids(2, 4), "pixel_values": random_pixels(2), "max_new_tokens": 5}
    with uncompiled():
        assert torch.equal(compiled.generate(**inputs), plain.generate(**inputs))


@pytest.mark.slow
def test_a_run_may_be_compiled(tmp_path: Path, quiet: TrainProgress, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = train(tiny_recipe(tmp_path, max_steps=3), progress=quiet)
    real, seen = compiling.compile_blocks, []
    monkeypatch.setattr(
        "visgraft.training.setup.compile_blocks", lambda model: seen.append(real(model, backend="eager"))
    )
    compiled = train(tiny_recipe(tmp_path, max_steps=3, compile=True), progress=quiet)
    assert seen == [4]
    for record, other in zip(Run.open(plain).read_metrics(), Run.open(compiled).read_metrics(), strict=True):
        for key in {"loss", "validation_loss"} & record.keys():
            assert other[key] == pytest.approx(record[key], abs=1e-4)


@pytest.mark.long
def test_inductor_computes_the_same() -> None:
    if not any(map(compiling.shutil.which, compiling.COMPILERS)):
        pytest.skip("there is no C++ compiler, which inductor needs")
    plain, compiled = fresh("llama"), fresh("llama")
    compile_blocks(compiled)
    made = batch(samples())
    losses = [model.loss(made).loss for model in (plain, compiled)]
    assert losses[0] is not None and losses[1] is not None
    assert_close(losses[1], losses[0])
    assert_same_gradients(gradients(plain, losses[0]), gradients(compiled, losses[1]))


def test_without_a_compiler_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=r"train\.compile: got true, which needs a C\+\+ compiler .*or say false"):
        compile_blocks(fresh("llama"))
