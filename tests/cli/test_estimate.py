"""What `estimate` says of recipes that fit and of those that do not."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.conftest import Visgraft
from visgraft.estimate.gpus import Gpu

RECIPE = "llama2_7b_24gb"
LLAMA_2_7B = {
    "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
CLIP_L_14 = {
    "model_type": "clip",
    "vision_config": {
        "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
        "num_attention_heads": 16, "image_size": 224, "patch_size": 14,
    },
}  # fmt: skip


@pytest.fixture
def recipe(folder: Path, tmp_path: Path) -> Path:
    values = {
        "model": {"vision": str(folder / "tiny-clip"), "language": str(folder / "tiny-llama")},
        "train": {"language": "lora", "text_tokens_per_step": 80},
        "data": {"train": [{"source": "folder", "path": str(folder / "photos")}]},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_recipe_that_fits_is_status_0_with_memory_by_part_and_time(visgraft: Visgraft, recipe: Path) -> None:
    outcome = visgraft("estimate", recipe, "--gpu", "rtx4090")
    assert (outcome.status, outcome.err) == (0, "")
    out = [" ".join(line.split()) for line in outcome.out.splitlines()]
    assert "gpu RTX 4090, 23.50 GiB" in out
    assert [line.split()[0] for line in out[4:12]] == [
        "weights", "gradients", "optimizer", "activations", "logits", "batch", "framework", "all",
    ]  # fmt: skip
    assert "verdict it fits, in 3%" in out
    assert any(line.startswith("time ") and "at 40% of 165 TFLOP/s" in line for line in out)


def test_json_holds_the_same_for_programs(visgraft: Visgraft, recipe: Path) -> None:
    values: dict[str, Any] = json.loads(visgraft("estimate", recipe, "--gpu", "24GB", "--json").out)
    assert values["fits"] is True
    assert values["total_bytes"] == sum(values["parts"].values())
    assert values["parts"]["weights"] == sum(values["weights"].values())
    assert values["time"]["seconds_per_step"] is None
    assert values["time"]["steps"] >= 1
    assert values["assumptions"] == values["changes"] == []


@pytest.mark.slow
def test_a_recipe_that_does_not_fit_is_status_1_with_changes(visgraft: Visgraft, recipe: Path) -> None:
    more = ("--set", "train.language=full", "--set", "train.text_tokens_per_step=4000")
    total = json.loads(visgraft("estimate", recipe, "--gpu", "24GB", "--json", *more).out)["total_bytes"]
    outcome = visgraft("estimate", recipe, "--gpu", f"{(total - 100_000) / 0.98 / 2**30:.9f}GB", *more)
    assert outcome.status == 1
    assert "it does not fit: it takes 100%; with the changes below it does" in outcome.out
    assert "--set train.micro_batch_positions=" in outcome.out


def test_what_is_here_can_be_measured(visgraft: Visgraft, recipe: Path) -> None:
    values = json.loads(visgraft("estimate", recipe, "--measure", "--json", "--set", "train.precision=fp32").out)
    assert values["time"]["basis"].startswith("measured here")
    assert values["time"]["seconds_per_step"] > 0
    assert values["measured"]["device"] == "cpu"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--gpu", "a100"), "did you mean a100-40gb or a100-80gb?"),
        (("--set", "train.epoch=3"), "did you mean train.epochs?"),
        (("--set", "model.language=/no/such"), "/no/such: no such folder; its config.json is enough here"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    visgraft: Visgraft, recipe: Path, args: tuple[str, ...], message: str
) -> None:
    outcome = visgraft("estimate", recipe, *args)
    assert (outcome.status, outcome.out) == (2, "")
    assert message in outcome.err
    assert outcome.err.count("\n") == 1


@pytest.mark.slow
def test_the_shipped_recipe_fits_24_gb_by_its_configurations_alone(visgraft: Visgraft, tmp_path: Path) -> None:
    for name, values in (("vision", CLIP_L_14), ("language", LLAMA_2_7B)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(values))
    parts = ("--set", f"model.vision={tmp_path / 'vision'}", "--set", f"model.language.name={tmp_path / 'language'}")
    outcome = visgraft("estimate", RECIPE, "--gpu", "24GB", "--json", *parts)
    assert outcome.status == 0, outcome.err
    shown = json.loads(outcome.out)
    four_bit = 32 * (4 * 4096**2 + 3 * 4096 * 11008) * (0.5 + 1 / 64 + 4 / (64 * 256))
    lora = 32 * 4 * 16 * (4096 + 4096) * 4  # r 16 on q, k, v, o, in fp32
    norms_and_embedding = (32 * 2 + 1) * 4096 * 2 + 32000 * 4096 * 2
    assert shown["weights"]["language"] == pytest.approx(four_bit + lora + norms_and_embedding, rel=0.001)
    assert shown["weights"]["head"] == 32000 * 4096 * 2
    assert 5 * 2**30 < shown["total_bytes"] < 20 * 2**30


def test_the_shipped_recipe_says_what_is_missing_offline(visgraft: Visgraft, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    outcome = visgraft("estimate", RECIPE, "--gpu", "24GB")
    assert outcome.status == 2
    assert "openai/clip-vit-large-patch14: not found" in outcome.err
    assert "--set model.vision=FOLDER" in outcome.err


@pytest.mark.slow
def test_a_computer_that_cannot_read_the_weights_is_too_small(
    visgraft: Visgraft, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Gpu("this computer", 10, dtype=None, is_gpu=False)
    monkeypatch.setattr("visgraft.estimate.estimate.local_gpu", lambda: small)
    monkeypatch.setattr("visgraft.estimate.step_cost.FRAMEWORK_BYTES", {"cpu": -(2**40)})
    outcome = visgraft("estimate", recipe)
    assert outcome.status == 1
    assert "it does not fit: reading the weights takes 0.00 GiB" in outcome.out


def test_with_several_gpus_it_says_which_launch_config_to_take(visgraft: Visgraft, recipe: Path) -> None:
    outcome = visgraft("estimate", recipe, "--gpu", "h100", "--gpus", "16", "--network", "200", "--utilisation", "0.3")
    assert (outcome.status, outcome.err) == (0, "")
    out = [" ".join(line.split()) for line in outcome.out.splitlines()]
    assert "gpus 16 in 2 machines" in out
    assert "config memory a GPU a step the run" in out
    assert any(line.startswith("launch/ddp ") and line.endswith("fits, the best") for line in out)
    assert sum(line.startswith("launch/") for line in out) == 4
    assert "at 30% of 989 TFLOP/s; 450 GB/s inside a machine, 200 Gbit/s between" in " ".join(out)
    assert "let train.text_tokens_per_step grow" in " ".join(out)
    refused = visgraft("estimate", recipe, "--gpu", "h100", "--gpus", "3", "--nodes", "2")
    assert (refused.status, refused.out) == (2, "") and "--nodes: got 2 machines for 3 GPUs" in refused.err


def test_the_time_on_this_computer_is_known_without_training(visgraft: Visgraft, recipe: Path) -> None:
    values = json.loads(visgraft("estimate", recipe, "--json", "--set", "train.precision=fp32").out)
    assert values["time"]["seconds_per_step"] > 0 and values["time"]["seconds"] is not None
    assert values["time"]["basis"].startswith("from its arithmetic, at 55% of ")
