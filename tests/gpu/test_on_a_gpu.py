"""What only a GPU can show; with VISGRAFT_REHEARSE=1 every line runs on a CPU, in the ways that it knows.

make gpu                                                       # on a machine with a GPU: these, and bench/gpu.py
VISGRAFT_REHEARSE=1 python -m pytest tests/gpu -m gpu          # without one
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

from tests.model.test_trees import SAMPLES
from tests.tiny import LLAMA_LIKE, TOKENS, assert_close, bare_vision, batch, gradients, randomise
from tests.training.small_memory import limit_memory
from tests.training.tiny import tiny_recipe
from visgraft import Processor, Sample, Turn, VisionLanguageModel
from visgraft.config import load_recipe
from visgraft.estimate.estimate import estimate
from visgraft.inference import answer, load
from visgraft.model.attention_kernel import FLEX, choose_attention, set_attention
from visgraft.model.memory import free_memory
from visgraft.runs import Run
from visgraft.training.gradients import add_gradients
from visgraft.training.loop import train
from visgraft.training.progress import make_progress
from visgraft.training.session import Session
from visgraft.training.setup import open_session
from visgraft.training.steps import load_steps

HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HAS_GPU else "cpu")
ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(
        not HAS_GPU and os.environ.get("VISGRAFT_REHEARSE") != "1",
        reason="no GPU here; VISGRAFT_REHEARSE=1 runs these on the CPU",
    ),
]


def losses_of(folder: Path) -> list[float]:
    return [record["loss"] for record in Run.open(folder).read_metrics() if "loss" in record]


def test_fp16_with_its_loss_scaler_learns_as_fp32_does(tmp_path: Path) -> None:
    found = {}
    for precision in ("fp32", "fp16" if HAS_GPU else "bf16"):
        recipe = tiny_recipe(tmp_path / precision, precision=precision, max_steps=6, epochs=9)
        session = open_session(load_recipe(recipe), progress=make_progress(show=False))
        assert (session.accelerator.scaler is not None) == (precision == "fp16")
        found[precision] = losses_of(train(recipe, progress=make_progress(show=False)))
    first, second = found.values()
    assert len(first) == 6 and first[-1] < first[0]
    assert second == pytest.approx(first, rel=0.05)


def test_flex_attention_gives_the_loss_and_gradients_of_dense_masks() -> None:
    sizes = {**LLAMA_LIKE, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    language = randomise(hf.AutoModelForCausalLM.from_config(hf.LlamaConfig(**sizes, **TOKENS)), seed=5)
    model = VisionLanguageModel.from_parts(bare_vision("clip"), language).to(DEVICE)
    assert not HAS_GPU or choose_attention(model.language, device=DEVICE) == FLEX
    laid_out = batch(SAMPLES, rows=[[0, 1], [2, 3]]).to(DEVICE)
    found: list[tuple[Tensor, dict[str, Tensor]]] = []
    for kernel in ("sdpa", FLEX):
        set_attention(model, kernel)
        with torch.set_grad_enabled(HAS_GPU or kernel != FLEX):  # a CPU has no way back through FlexAttention
            out = model.loss(laid_out)
        assert out.loss is not None and out.target_losses is not None
        found.append((out.target_losses, gradients(model, out.loss) if out.loss.requires_grad else {}))
    (dense, slopes), (blocks, other) = found
    assert_close(blocks, dense, tolerance=1e-3 if HAS_GPU else 1e-5)  # a GPU multiplies float32 in fewer digits there
    for name in other:
        assert_close(other[name], slopes[name], tolerance=5e-3)


def first_gradients(session: Session) -> tuple[dict[str, Tensor], int]:
    steps = load_steps(session.planner, session.state.position, epochs=1.0, settings=session.loader)
    if HAS_GPU:
        torch.cuda.reset_peak_memory_stats()
    add_gradients(session, next(steps), steps)
    peak = torch.cuda.max_memory_reserved() if HAS_GPU else 0
    return {name: p.grad.cpu() for name, p in session.trained.items() if p.grad is not None}, peak


def test_where_memory_really_runs_out_micro_batches_are_halved_and_gradients_stay(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"text_tokens_per_step": 20_000 if HAS_GPU else 250, "epochs": 9}
    recipe = load_recipe(tiny_recipe(tmp_path, num_images=600 if HAS_GPU else 12, **settings))
    whole, peak = first_gradients(open_session(recipe, progress=make_progress(show=False)))
    free_memory(DEVICE)
    session = open_session(recipe, progress=make_progress(show=False))
    if HAS_GPU:
        before, most = torch.cuda.memory_reserved(), torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction((before + 0.5 * (peak - before)) / most)
    else:
        limit_memory(session.model, largest=90)
    try:
        found, _ = first_gradients(session)
    finally:
        if HAS_GPU:
            torch.cuda.set_per_process_memory_fraction(1.0)
    assert session.state.micro_batch_positions is not None
    assert found.keys() == whole.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-4, rtol=1e-2 if HAS_GPU else 1e-4)


def test_the_estimate_is_near_the_measured_peak(tmp_path: Path) -> None:
    # wide and long enough that what libraries keep for themselves is little beside it
    settings: dict[str, Any] = {"text_tokens_per_step": 40_000 if HAS_GPU else 250, "precision": "auto", "epochs": 9}
    recipe = tiny_recipe(tmp_path, num_images=1200 if HAS_GPU else 12, **settings)
    found = estimate(recipe, measure=True)
    assert found.trial is not None and found.trial.peak_bytes is not None
    assert str(DEVICE) in found.trial.device
    if HAS_GPU:
        assert found.cost.total_bytes == pytest.approx(found.trial.peak_bytes, rel=0.15)


def test_one_process_of_nccl_trains_what_no_process_group_does(tmp_path: Path) -> None:
    folders = []
    for name, launcher in (
        ("alone", []),
        ("together", ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"]),
    ):
        recipe = tiny_recipe(tmp_path / name, max_steps=3, epochs=9)
        path = tmp_path / name / "recipe.json"
        path.write_text(json.dumps({**recipe, "name": "run"}))
        subprocess.run(
            [sys.executable, *launcher, "-m", "visgraft", "train", str(path)], check=True, cwd=ROOT, timeout=200,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        folders.append(next((tmp_path / name / "runs").iterdir()))
    first, second = map(losses_of, folders)
    assert len(first) == 3
    assert second == pytest.approx(first, rel=1e-3)


def test_the_decoding_loop_says_on_the_gpu_what_it_says_on_the_cpu(tmp_path: Path) -> None:
    run = train(tiny_recipe(tmp_path, max_steps=4, epochs=9), progress=make_progress(show=False))
    images = sorted((tmp_path / "train").glob("*.png"))[:4]
    samples = [
        Sample([str(image)], [[Turn(question, "")]])
        for image in images
        for question in ("Which colour?", "What is it?")
    ]
    said = []
    for device in ("cpu", str(DEVICE)):
        loaded: tuple[VisionLanguageModel, Processor] = load(str(run), device=device, precision="fp32")
        assert loaded[0].device.type == torch.device(device).type
        said.append(list(answer(*loaded, samples, max_new_tokens=12)))
    assert len(said[0]) == 8
    assert sum(first == second for first, second in zip(*said, strict=True)) >= 7  # a near tie may fall either way
