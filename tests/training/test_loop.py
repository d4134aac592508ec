"""A run learns, is the same however it is cut up or stopped, and says what went wrong."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.training.tiny import save_data, tiny_recipe
from visgraft.config import load_recipe
from visgraft.data.batch import Batch
from visgraft.data.sources import open_sources
from visgraft.errors import ConfigError, DataError, ModelError
from visgraft.inference import answer, load
from visgraft.metrics.text_match import exact_match
from visgraft.model.vlm import VisionLanguageModel
from visgraft.runs import Run
from visgraft.training.interrupt import Interrupted
from visgraft.training.loop import train, train_step
from visgraft.training.progress import TrainProgress
from visgraft.training.setup import open_session
from visgraft.training.steps import Step, load_steps

pytestmark = pytest.mark.slow

EVERYTHING = {"vision": "full", "projection": "full", "language": "full", "head": "full"}


def weights_of(folder: Path) -> dict[str, Tensor]:
    return load_file(Run.open(folder).latest_checkpoint()[1] / "trained.safetensors")


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k != "seconds"} for record in Run.open(folder).read_metrics()]


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


# --- Learning


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_a_run_learns_its_data_and_its_model_answers_by_heart(
    tmp_path: Path, quiet: TrainProgress, family: str
) -> None:
    recipe = tiny_recipe(
        tmp_path, family=family, num_images=4, language="full", head="full" if family == "llama" else "frozen",
        learning_rate=1e-2, epochs=60, text_tokens_per_step=100, sample_every_steps=1000,
    )  # fmt: skip
    recipe["data"]["validation"] = []
    recipe["data"]["max_dialogs_per_prefix"] = 4
    folder = train(recipe, progress=quiet)
    steps = [record for record in metrics_of(folder) if "loss" in record]
    assert steps[-1]["loss"] < 0.1 < 4 < steps[0]["loss"]
    model, processor = load(str(folder), device="cpu", precision="fp32")
    sources = open_sources(load_recipe(recipe).data.train)
    samples = [sources[index] for index in range(4)]
    expected = [[dialog[0].answer] for sample in samples for dialog in sample.dialogs]
    assert exact_match(answer(model, processor, samples), references=expected).value == 1.0


@pytest.mark.parametrize("layout", ["shared", "rows"])
def test_the_steps_of_both_layouts_are_the_same_up_to_rounding(
    tmp_path: Path, quiet: TrainProgress, layout: str
) -> None:
    recipe = tiny_recipe(tmp_path, layout=layout, max_steps=3)
    records = [record for record in metrics_of(train(recipe, progress=quiet)) if "loss" in record]
    reference = [
        record for record in metrics_of(train(tiny_recipe(tmp_path, max_steps=3), progress=quiet)) if "loss" in record
    ]
    for record, other in zip(records, reference, strict=True):
        assert record["loss"] == pytest.approx(other["loss"], abs=1e-4)
        assert record["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)


@pytest.mark.parametrize("modes", [EVERYTHING, {"language": "lora"}, {"vision": {"last_layers": 1}, "head": "full"}])
def test_after_three_steps_frozen_weights_are_the_same_and_all_others_have_moved(
    tmp_path: Path, quiet: TrainProgress, modes: dict[str, Any]
) -> None:
    session = open_session(load_recipe(tiny_recipe(tmp_path, **{"language": "frozen", **modes})), progress=quiet)
    before = {name: p.detach().clone() for name, p in session.model.named_parameters()}
    steps = load_steps(session.planner, session.state.position, epochs=9.0, settings=session.loader)
    for _ in range(3):
        train_step(session, steps)
    moved = {name for name, p in session.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name, p in session.model.named_parameters() if p.requires_grad} == set(session.trained)
    held = {id(p) for group in session.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in session.trained.values()}
    if modes.get("vision") == "full":
        assert not session.model.vision.post_layernorm.weight.requires_grad  # the layer taken lies before it


def test_bfloat16_learns_about_as_float32_does(tmp_path: Path, quiet: TrainProgress) -> None:
    curves = []
    for precision in ("fp32", "bf16"):  # in one process, one after the other
        folder = train(tiny_recipe(tmp_path, precision=precision, max_steps=6, learning_rate=1e-3), progress=quiet)
        curves.append([record["loss"] for record in metrics_of(folder) if "loss" in record])
    assert curves[1] == pytest.approx(curves[0], abs=0.02)
    assert curves[1] != curves[0]


# --- The same run, however it is cut up


def gradients(recipe: dict[str, Any], quiet: TrainProgress) -> dict[str, Tensor]:
    """Return the gradients of the first step, before they are clipped."""
    recipe["train"]["clip_norm"] = None
    session = open_session(load_recipe(recipe), progress=quiet)
    found: dict[str, Tensor] = {}
    session.optimizer.step = lambda: found.update({n: p.grad.clone() for n, p in session.trained.items()})
    train_step(session, load_steps(session.planner, session.state.position, epochs=1.0, settings=session.loader))
    return found


@pytest.mark.parametrize("layout", ["shared", "rows"])
def test_eight_rows_at_once_equal_eight_rows_one_by_one(tmp_path: Path, quiet: TrainProgress, layout: str) -> None:
    settings = {"layout": layout, "text_tokens_per_step": 250, **EVERYTHING}
    whole = gradients(tiny_recipe(tmp_path, **settings), quiet)
    parts = gradients(tiny_recipe(tmp_path, **settings, micro_batch_rows=1), quiet)
    assert whole.keys() == parts.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, atol=1e-6, rtol=1e-4)


def test_workers_and_validation_do_not_change_a_run(tmp_path: Path, quiet: TrainProgress) -> None:
    plain = train(tiny_recipe(tmp_path, epochs=1), progress=quiet)
    other = train(
        tiny_recipe(tmp_path, epochs=1, num_workers=2, validate_every_steps=1, sample_every_steps=2), progress=quiet
    )
    assert_equal(weights_of(plain), weights_of(other))


def test_computing_twice_to_save_memory_does_not_change_the_gradients(tmp_path: Path, quiet: TrainProgress) -> None:
    plain = gradients(tiny_recipe(tmp_path, **EVERYTHING), quiet)
    frugal = gradients(tiny_recipe(tmp_path, **EVERYTHING, gradient_checkpointing=True, logits_chunk=7), quiet)
    for name, gradient in plain.items():
        torch.testing.assert_close(frugal[name], gradient, atol=1e-6, rtol=1e-5)


# --- Stop and resume


@pytest.mark.parametrize("stop_at", [2, 5])
def test_a_resumed_run_is_bit_equal_to_one_that_never_stopped(
    tmp_path: Path, quiet: TrainProgress, stop_at: int
) -> None:
    recipe = tiny_recipe(
        tmp_path, family="opt", dropout=0.1, epochs=1.5, lora={"r": 2, "lora_dropout": 0.1},
        schedule="cosine", warmup_steps=2, validate_every_steps=5, exact_match_samples=2, num_workers=1,
    )  # fmt: skip
    whole = train(recipe, progress=quiet)
    with pytest.raises(Interrupted, match=r"stopped and saved; go on with `visgraft train --resume .*`") as stopped:
        train(recipe, progress=quiet, stop=lambda step: step == stop_at)
    folder = stopped.value.folder
    assert 0 < Run.open(folder).latest_checkpoint()[0] == stop_at
    assert not (folder / "model").exists()
    assert train(resume=folder, progress=quiet) == folder
    assert_equal(weights_of(whole), weights_of(folder))
    first, second = (torch.load(Run.open(f).latest_checkpoint()[1] / "optimizer.pt") for f in (whole, folder))
    for index, moments in first["optimizer"]["state"].items():
        assert all(torch.equal(tensor, second["optimizer"]["state"][index][key]) for key, tensor in moments.items())
    assert metrics_of(whole) == metrics_of(folder)
    assert Run.open(whole).read("samples") == Run.open(folder).read("samples")
    assert_equal(*[load_file(f / "model" / "model.safetensors") for f in (whole, folder)])


def test_a_finished_run_goes_on_with_more_epochs(tmp_path: Path, quiet: TrainProgress) -> None:
    recipe = tiny_recipe(tmp_path, epochs=1, schedule="constant")
    folder = train(recipe, progress=quiet)
    longer = tiny_recipe(tmp_path, epochs=2, schedule="constant")
    assert train(longer, resume=folder, progress=quiet) == folder
    assert load_recipe(folder).train.epochs == 2
    steps = [record for record in metrics_of(folder) if "loss" in record]
    assert steps[-1]["epoch"] == 2.0
    assert [record["step"] for record in steps] == list(range(1, len(steps) + 1))


def test_another_recipe_is_no_resume(tmp_path: Path, quiet: TrainProgress) -> None:
    with pytest.raises(Interrupted) as stopped:
        train(tiny_recipe(tmp_path), progress=quiet, stop=lambda _: True)
    with pytest.raises(ConfigError, match=r"train\.learning_rate: got 0\.5, but the run began with 0\.01; resume it"):
        train(tiny_recipe(tmp_path, learning_rate=0.5), resume=stopped.value.folder, progress=quiet)


def test_nothing_to_train_is_said(quiet: TrainProgress) -> None:
    with pytest.raises(ConfigError, match="got neither a recipe nor a run to resume"):
        train(progress=quiet)


def test_ctrl_c_finishes_the_step_and_saves(tmp_path: Path, quiet: TrainProgress) -> None:
    def press(step: int) -> bool:
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return False

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as stopped:
        train(tiny_recipe(tmp_path, epochs=9), progress=quiet, stop=press)
    assert isinstance(stopped.value, Interrupted)
    assert Run.open(stopped.value.folder).latest_checkpoint()[0] in (3, 4)
    assert signal.getsignal(signal.SIGINT) is before


# --- What is kept


def test_the_best_and_the_newest_checkpoints_are_kept_and_the_best_becomes_the_model(
    tmp_path: Path, quiet: TrainProgress, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 1.0, 2.0, 4.0, 5.0])
    monkeypatch.setattr(
        "visgraft.training.loop.validate",
        lambda session: {"step": session.state.step, "validation_loss": next(losses)},
    )
    folder = train(
        tiny_recipe(tmp_path, max_steps=5, validate_every_steps=1, checkpoint_every_steps=1, keep_checkpoints=2),
        progress=quiet,
    )
    kept = Run.open(folder).checkpoints()
    assert list(kept) == [2, 4, 5]
    best = load_file(kept[2] / "trained.safetensors")
    model = VisionLanguageModel.from_pretrained(folder / "model")
    assert torch.equal(model.projection.linear.weight, best["projection.linear.weight"])


def test_a_step_writes_down_what_it_was(tmp_path: Path, quiet: TrainProgress) -> None:
    folder = train(tiny_recipe(tmp_path, max_steps=2, exact_match_samples=4), progress=quiet)
    first, second, validation = Run.open(folder).read_metrics()
    assert list(first) == [
        "step", "epoch", "loss", "loss_per_character", "supervised_tokens", "text_tokens", "image_tokens", "samples",
        "dialogs", "truncated", "padding", "learning_rate", "grad_norm", "sources", "seconds",
    ]  # fmt: skip
    assert first["image_tokens"] == 5 * first["samples"]
    assert first["text_tokens"] >= 80 > first["supervised_tokens"]
    assert (first["step"], second["step"]) == (1, 2)
    assert first["sources"] == {"folder": {"texts": first["dialogs"], "epochs": pytest.approx(first["epoch"], abs=0.2)}}
    assert second["sources"]["folder"]["texts"] == first["dialogs"] + second["dialogs"]
    assert second["learning_rate"] == {"projection": 0.005, "language": 0.005}
    assert list(validation) == ["step", "validation_loss", "validation_loss_per_character", "exact_match"]
    sample_prompts = Run.open(folder).read("samples")
    assert len(sample_prompts) == 4
    assert list(sample_prompts[0]) == ["step", "id", "prompt", "answer", "stopped", "expected", "image"]


def test_epochs_are_counted_per_source_and_a_resumed_run_counts_on(tmp_path: Path, quiet: TrainProgress) -> None:
    recipe = tiny_recipe(tmp_path, epochs=2.0)
    other = save_data(tmp_path / "other", num_images=8, first=50)
    recipe["data"]["train"].append({"source": "folder", "path": other, "weight": 0.5})
    with pytest.raises(Interrupted) as stopped:
        train(recipe, progress=quiet, stop=lambda step: step == 3)
    seen = [
        record["sources"]
        for record in metrics_of(train(resume=stopped.value.folder, progress=quiet))
        if "sources" in record
    ]
    assert seen[-1]["folder"] == {"texts": 2 * 30, "epochs": 2.0}
    assert seen[-1]["folder-2"]["epochs"] == pytest.approx(1.0, abs=0.2)
    assert [step["folder"]["texts"] for step in seen] == sorted(step["folder"]["texts"] for step in seen)


def test_validation_loss_is_that_of_one_batch_of_all_data(tmp_path: Path, quiet: TrainProgress) -> None:
    recipe = tiny_recipe(tmp_path, max_steps=1)
    folder = train(recipe, progress=quiet)
    record = metrics_of(folder)[-1]
    model, processor = load(str(folder), device="cpu", precision="fp32")
    sources = open_sources(load_recipe(recipe).data.validation)
    with torch.no_grad():
        out = model.loss(processor.collate([sources[index] for index in range(4)]))
    assert record["validation_loss"] == pytest.approx(float(out.loss), abs=1e-5)


def test_a_second_stage_starts_from_a_run(tmp_path: Path, quiet: TrainProgress) -> None:
    first = train(tiny_recipe(tmp_path, max_steps=2), progress=quiet)
    recipe = tiny_recipe(tmp_path, max_steps=2, projection="frozen", lora={"r": 4})
    recipe["model"] = {"start_from": str(first)}
    second = train(recipe, progress=quiet)
    before, after = (VisionLanguageModel.from_pretrained(f / "model") for f in (first, second))
    assert torch.equal(before.projection.linear.weight, after.projection.linear.weight)
    assert all(".stage_2." in name for name in weights_of(second))
    lora = "model.layers.0.self_attn.q_proj.lora_B.default.weight"
    assert torch.equal(before.language.state_dict()[lora], after.language.state_dict()[lora])


def test_a_language_model_may_begin_at_random(tmp_path: Path, quiet: TrainProgress) -> None:
    recipe = tiny_recipe(tmp_path, max_steps=1, language="full", head="full")
    recipe["model"]["language"] = {"name": recipe["model"]["language"], "init": "random"}
    folder = train(recipe, progress=quiet)
    model = VisionLanguageModel.from_pretrained(folder / "model")
    assert torch.equal(model.language.lm_head.weight, weights_of(folder)["language.lm_head.weight"])


def test_a_full_model_needs_nothing_else(tmp_path: Path, quiet: TrainProgress) -> None:
    folder = train(tiny_recipe(tmp_path, max_steps=1, save="full"), progress=quiet)
    parts = VisionLanguageModel.from_pretrained(folder / "model").config.parts
    assert {described["stored"] for described in parts.values()} == {"all"}


# --- What goes wrong


def poisoned(step: Step, *, image: int) -> Step:
    """Give a step whose first batch holds an image that is not a number."""
    [batch] = step.batches
    bytes_ = batch.vision_inputs["pixel_bytes"]
    pixels = bytes_.permute(0, 3, 1, 2).float() / 255
    pixels[image] = torch.nan
    return replace(step, batches=(Batch({**batch, "vision_inputs": {"pixel_values": pixels}}),))


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_samples(tmp_path: Path, quiet: TrainProgress) -> None:
    recipe = tiny_recipe(tmp_path)
    session = open_session(load_recipe(recipe), progress=quiet)
    steps = load_steps(session.planner, session.state.position, epochs=1.0, settings=session.loader)
    before = {name: p.detach().clone() for name, p in session.trained.items()}
    step = poisoned(next(steps), image=1)
    name = step.batches[0].sample_ids[1]
    message = rf"step 1: the loss or its gradient is not finite; samples: {name}\. Look at them, lower"
    with pytest.raises(ModelError, match=message):
        train_step(session, iter([step]))
    assert_equal(before, {name: p.detach() for name, p in session.trained.items()})
    assert Run.open(session.run.folder).latest_checkpoint()[0] == 0


def test_a_loss_that_is_not_finite_is_skipped_if_the_recipe_says_so(tmp_path: Path, quiet: TrainProgress) -> None:
    session = open_session(load_recipe(tiny_recipe(tmp_path, on_nonfinite="skip")), progress=quiet)
    before = {name: p.detach().clone() for name, p in session.trained.items()}
    steps = load_steps(session.planner, session.state.position, epochs=1.0, settings=session.loader)
    step = poisoned(next(steps), image=0)
    train_step(session, iter([step]))
    assert_equal(before, {name: p.detach() for name, p in session.trained.items()})
    [record] = session.run.read_metrics()
    assert record["skipped"] == [step.batches[0].sample_ids[0]]
    assert record["loss"] is None
    train_step(session, steps)
    assert not torch.equal(session.trained["projection.linear.weight"], before["projection.linear.weight"])


def test_bad_images_are_set_aside_once_and_the_run_goes_on(tmp_path: Path, quiet: TrainProgress) -> None:
    folder = train(tiny_recipe(tmp_path, bad=3, epochs=2), progress=quiet)
    records = Run.open(folder).read("quarantine")
    assert sorted(record["where"] for record in records) == [f"metadata.jsonl line {n}" for n in (31, 32, 33)]
    assert {record["reason"] for record in records} == {"not an image"}
    assert metrics_of(folder)[-1]["step"] > 5


def test_too_many_bad_images_stop_the_run(tmp_path: Path, quiet: TrainProgress) -> None:
    with pytest.raises(DataError, match=r"6 of 18 samples are bad and at most 5 are allowed; .*not an image"):
        train(tiny_recipe(tmp_path, bad=6, epochs=2), progress=quiet)


def test_steps_of_nothing_but_bad_images_are_no_steps(tmp_path: Path, quiet: TrainProgress) -> None:
    recipe = tiny_recipe(tmp_path, num_images=4, bad=3, text_tokens_per_step=1)
    records = [record for record in metrics_of(train(recipe, progress=quiet)) if "loss" in record]
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert all(record["samples"] == 1 for record in records)


@pytest.mark.slow
def test_a_run_on_balanced_answers_goes_on_bit_for_bit(tmp_path: Path, quiet: TrainProgress) -> None:
    recipe = tiny_recipe(tmp_path, epochs=2.5, checkpoint_every_steps=100)
    recipe["data"]["train"][0]["balance"] = "answers"
    whole = train(recipe, progress=quiet)
    with pytest.raises(Interrupted) as stopped:
        train(recipe, progress=quiet, stop=lambda step: step == 7)
    went_on = train(resume=stopped.value.folder, progress=quiet)
    assert metrics_of(whole) == metrics_of(went_on)
    assert_equal(weights_of(whole), weights_of(went_on))
