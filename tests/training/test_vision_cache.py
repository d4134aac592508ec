"""A cached encoder runs once per image and run, and nothing that is computed from it changes by a bit."""

import inspect
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.tiny import tiny_recipe
from visgraft.config import load_recipe
from visgraft.data.images import opening as images
from visgraft.data.images.feature_cache import image_version
from visgraft.errors import ConfigError
from visgraft.runs import Run
from visgraft.training import steps, vision_cache
from visgraft.training.interrupt import Interrupted
from visgraft.training.loop import train, train_step
from visgraft.training.progress import TrainProgress, make_progress
from visgraft.training.setup import open_session
from visgraft.training.steps import load_steps

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VISGRAFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vision"


@pytest.fixture
def said(quiet: TrainProgress, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(quiet, "say", lines.append)
    return lines


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, torch.dtype, bool]]]:
    """Watch the encoder: images, their format, and whether a gradient was asked for."""
    from transformers import CLIPVisionModel

    seen: list[tuple[int, torch.dtype, bool]] = []
    real = CLIPVisionModel.forward

    def watched(self: Any, pixel_values: Tensor, **settings: Any) -> Any:
        if pixel_values.device.type != "meta":
            seen.append((len(pixel_values), pixel_values.dtype, torch.is_grad_enabled()))
        return real(self, pixel_values=pixel_values, **settings)

    watched.__signature__ = inspect.signature(real)  # type: ignore[attr-defined]
    monkeypatch.setattr(CLIPVisionModel, "forward", watched)
    yield seen


def cached(recipe: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return {**recipe, "train": {**recipe["train"], "cache_vision": "disk", **settings}}


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Give what was measured, without times and without what a resume wrote down."""
    records = [record for record in Run.open(folder).read_metrics() if "changed" not in record]
    return [{k: v for k, v in record.items() if "second" not in k} for record in records]


def assert_same_up_to_rounding(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Compare metrics; how a matrix product rounds an image may depend on how many images are beside it."""
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for key, value in other.items():
            assert one[key] == (pytest.approx(value, rel=1e-4) if isinstance(value, float) else value)


def one_step(recipe: dict[str, Any], quiet: TrainProgress) -> dict[str, Tensor]:
    session = open_session(load_recipe(recipe), progress=quiet)
    found: dict[str, Tensor] = {}
    session.optimizer.step = lambda: found.update({n: p.grad.clone() for n, p in session.trained.items()})
    train_step(session, load_steps(session.planner, session.state.position, epochs=1.0, settings=session.loader))
    return found


def test_a_frozen_encoder_runs_once_per_image_and_step_in_bfloat16_without_gradients(
    tmp_path: Path, quiet: TrainProgress, encoded: list[tuple[int, torch.dtype, bool]]
) -> None:
    session = open_session(load_recipe(tiny_recipe(tmp_path, precision="bf16")), progress=quiet)
    encoded.clear()
    steps_of_run = load_steps(session.planner, session.state.position, epochs=1.0, settings=session.loader)
    for _ in range(2):
        train_step(session, steps_of_run)
    samples = [record["samples"] for record in metrics(session.run.folder)]
    assert encoded == [(number, torch.bfloat16, False) for number in samples]
    assert session.model.vision.embeddings.class_embedding.dtype == torch.bfloat16


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_cached_run_is_the_same_run_up_to_rounding(tmp_path: Path, quiet: TrainProgress, precision: str) -> None:
    recipe = tiny_recipe(tmp_path, precision=precision, epochs=2, exact_match_samples=2)
    plain, kept = one_step(recipe, quiet), one_step(cached(recipe), quiet)
    assert plain.keys() == kept.keys()
    tolerance = {"fp32": {"atol": 1e-6, "rtol": 1e-5}, "bf16": {"atol": 2e-3, "rtol": 2e-2}}[precision]
    for name, gradient in plain.items():
        torch.testing.assert_close(kept[name], gradient, **tolerance)
    if precision == "fp32":
        plain_run, cached_run = train(recipe, progress=quiet), train(cached(recipe), progress=quiet)
        assert_same_up_to_rounding(metrics(cached_run), metrics(plain_run))


def test_a_cached_run_with_a_row_per_dialog_is_the_same_up_to_rounding(tmp_path: Path, quiet: TrainProgress) -> None:
    recipe = tiny_recipe(tmp_path, layout="rows")  # which encodes an image once more for each dialog beside it
    plain, kept = one_step(recipe, quiet), one_step(cached(recipe), quiet)
    for name, gradient in plain.items():
        torch.testing.assert_close(kept[name], gradient, atol=1e-6, rtol=1e-5)


def test_the_encoder_runs_once_per_run_and_not_at_all_in_the_next(
    tmp_path: Path, quiet: TrainProgress, encoded: list[tuple[int, torch.dtype, bool]], said: list[str], cache: Path
) -> None:
    recipe = load_recipe(cached(tiny_recipe(tmp_path, num_workers=0)))
    for expected, words in ((16, "16 images x 5 x 32 numbers in float32 = 0.00 GB beside 0.00 GB"), (0, "0 images x")):
        encoded.clear()
        open_session(recipe, progress=quiet)
        filled = sum(
            number for number, *_ in encoded if number not in (1, 2)
        )  # without the preflight's and the example
        assert filled == expected
        assert any(words in line and str(cache) in line for line in said)
        said.clear()
    session = open_session(recipe, progress=quiet)
    encoded.clear()
    steps_of_run = load_steps(session.planner, session.state.position, epochs=1.0, settings=session.loader)
    for _ in range(3):
        train_step(session, steps_of_run)
    assert encoded == []


@pytest.mark.parametrize("num_workers", [0, 1])
def test_cached_images_are_not_opened(
    tmp_path: Path, quiet: TrainProgress, monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    session = open_session(load_recipe(cached(tiny_recipe(tmp_path, num_workers=num_workers))), progress=quiet)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an image was opened")

    monkeypatch.setattr(images, "open_image", refuse)
    monkeypatch.setattr("visgraft.processor.open_image", refuse)
    for step in load_steps(session.planner, session.state.position, epochs=1.0, settings=session.loader):
        assert all(set(batch.vision_inputs) == {"features"} for batch in step.batches)


def test_a_stopped_cached_run_goes_on_bit_for_bit(tmp_path: Path, quiet: TrainProgress) -> None:
    recipe = cached(tiny_recipe(tmp_path, max_steps=5))
    whole = metrics(train(recipe, progress=quiet))
    with pytest.raises(Interrupted) as stopped:
        train(recipe, progress=quiet, stop=lambda step: step == 2)
    assert metrics(train(resume=stopped.value.folder, progress=quiet)) == whole
    with pytest.raises(Interrupted) as stopped:
        train(recipe, progress=quiet, stop=lambda step: step == 2)
    without = replace(load_recipe(recipe), train=replace(load_recipe(recipe).train, cache_vision=None))
    assert_same_up_to_rounding(metrics(train(without, resume=stopped.value.folder, progress=quiet)), whole)


def test_damaged_features_are_computed_again(
    tmp_path: Path, quiet: TrainProgress, said: list[str], cache: Path
) -> None:
    recipe = tiny_recipe(tmp_path, max_steps=2)
    plain = metrics(train(recipe, progress=quiet))
    open_session(load_recipe(cached(recipe)), progress=quiet)
    [path] = cache.rglob("*.features")
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    said.clear()
    assert_same_up_to_rounding(metrics(train(cached(recipe), progress=quiet)), plain)
    assert any("1 features in" in line and "are damaged and are computed again" in line for line in said)
    said.clear()
    open_session(load_recipe(cached(recipe)), progress=quiet)
    assert not any("are damaged" in line for line in said)


def test_a_changed_image_and_another_reading_are_computed_again(
    tmp_path: Path, quiet: TrainProgress, cache: Path
) -> None:
    recipe = cached(tiny_recipe(tmp_path))
    open_session(load_recipe(recipe), progress=quiet)
    other = {**recipe, "model": {**recipe["model"], "feature_layer": -2}}
    open_session(load_recipe(other), progress=quiet)
    open_session(load_recipe(cached(recipe, precision="bf16")), progress=quiet)
    assert len(list(cache.iterdir())) == 3
    before = {path.name for path in cache.rglob("*.features")}
    picture = next((tmp_path / "train").glob("*.png"))
    picture.touch()
    open_session(load_recipe(recipe), progress=quiet)
    [new] = [path for path in cache.rglob("*.features") if path.name not in before]
    assert new.stat().st_size == 5 * 32 * 4


def test_bad_images_are_put_aside_as_without_the_cache(tmp_path: Path, quiet: TrainProgress) -> None:
    recipe = tiny_recipe(tmp_path, bad=2)
    recipe["data"]["max_bad_fraction"] = 0.5
    folders = [train(recipe, progress=quiet), train(cached(recipe), progress=quiet)]
    assert len(Run.open(folders[0]).read("quarantine")) == 2
    assert Run.open(folders[0]).read("quarantine") == Run.open(folders[1]).read("quarantine")


def test_images_that_the_cache_lacks_train_beside_those_that_it_has(tmp_path: Path, quiet: TrainProgress) -> None:
    recipe = tiny_recipe(tmp_path)
    session = open_session(load_recipe(cached(recipe)), progress=quiet)
    plan = next(session.planner.steps(session.state.position, epochs=1.0))
    whole = steps.StepDataset(session.planner, session.loader)[plan]
    store = session.loader.vision_cache
    assert store is not None
    [image] = session.planner.sample(plan.groups[0]).images
    del store._records[image_version(image) or b""]
    mixed = steps.StepDataset(session.planner, session.loader)[plan]
    assert [set(batch.vision_inputs) for batch in mixed.batches] == [{"pixel_bytes"}, {"features"}]
    totals = [
        sum(float(session.model.loss(session.processor.finish(batch)).loss_sum) for batch in step.batches)  # type: ignore[arg-type]
        for step in (whole, mixed)
    ]
    assert totals[1] == pytest.approx(totals[0], rel=1e-6)


# --- Switched off or refused


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"train": {"vision": "full"}}, r"the encoder trains \(train\.vision: full\)"),
        ({"data": {"augment": {"flip": 0.5}}}, r"data\.augment changes the images"),
    ],
)
def test_the_cache_is_off_and_says_so(
    tmp_path: Path, quiet: TrainProgress, said: list[str], cache: Path, change: dict[str, Any], reason: str
) -> None:
    recipe = cached(tiny_recipe(tmp_path))
    for key, values in change.items():
        recipe[key] = {**recipe[key], **values}
    session = open_session(load_recipe(recipe), progress=quiet)
    assert session.loader.vision_cache is None
    assert not cache.exists()
    assert any(re.search(rf"train\.cache_vision is OFF: {reason}", line) for line in said)


def test_a_cache_above_its_limit_is_refused_before_anything_is_encoded(
    tmp_path: Path, quiet: TrainProgress, cache: Path
) -> None:
    recipe = cached(tiny_recipe(tmp_path), cache_vision_max_gb=1e-6)
    with pytest.raises(ConfigError, match=r"train\.cache_vision: 16 images .* above train\.cache_vision_max_gb"):
        open_session(load_recipe(recipe), progress=quiet)
    assert not list(cache.rglob("*.features"))


def test_a_disk_that_is_too_small_is_refused(
    tmp_path: Path, quiet: TrainProgress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vision_cache.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(ConfigError, match=r"GB free; set VISGRAFT_CACHE to a larger disk"):
        open_session(load_recipe(cached(tiny_recipe(tmp_path))), progress=make_progress(show=False))
