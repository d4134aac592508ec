"""Two processes on two nodes compute what one does, also where one has nothing to do; what fails is said once."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch
import yaml

from tests.training import one_of_several
from tests.training.nodes import run_on_two_nodes
from tests.training.tiny import add_texts, tiny_recipe
from tests.warm_python import warm_python
from visgraft.runs import Run

ROOT = Path(__file__).resolve().parents[2]
BUDGETS = [300, 1]  # text tokens a step; with 1, a step is one group and the second process has none


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    folders: dict[int, list[Path]] = {1: [], 2: []}
    for num_processes, budget in [(n, budget) for n in (1, 2) for budget in BUDGETS]:
        recipe = tiny_recipe(
            tmp_path, vision="full", language="full", head="full", text_tokens_per_step=budget, max_steps=4, epochs=3,
            micro_batch_rows=2, learning_rate=1e-3, exact_match_samples=2,
        )  # fmt: skip
        folder = tmp_path / f"{num_processes}-{budget}"
        folder.mkdir()
        (folder / "recipe.json").write_text(json.dumps(recipe))
        folders[num_processes].append(folder)
    for num_processes in (1, 2):  # a batch is of images or of texts, and the vision part learns from the former alone
        recipe = tiny_recipe(
            tmp_path / "texts", num_images=4, vision="full", language="full", head="full", text_tokens_per_step=100,
            max_steps=4, layout="rows", micro_batch_rows=1, learning_rate=1e-3,
        )  # fmt: skip
        for part in ("train", "validation"):
            add_texts(recipe["data"][part][0]["path"], number=9)
        folders[num_processes].append(tmp_path / f"{num_processes}-texts")
        folders[num_processes][-1].mkdir()
        (folders[num_processes][-1] / "recipe.json").write_text(json.dumps(recipe))
    poor = tmp_path / "poor"
    poor.mkdir()
    recipe = json.loads((folders[2][0] / "recipe.json").read_text())
    del recipe["train"]["micro_batch_rows"]
    (poor / "recipe.json").write_text(json.dumps(recipe))
    (poor / "memory.json").write_text(json.dumps(1))  # the second process; the first one has enough
    for folder in folders[1]:
        one_of_several.run(folder)
    run_on_two_nodes("tests.training.one_of_several", *folders[2], poor)
    for one, two in zip(folders[1], folders[2], strict=True):
        compare(one, two)
    compare(folders[1][0], poor)
    limits = [json.loads((poor / f"limit-{index}.json").read_text()) for index in range(2)]
    assert limits[0] == limits[1] is not None


@pytest.mark.slow
def test_two_processes_with_dropout_that_were_stopped_equal_those_that_were_not(tmp_path: Path) -> None:
    recipe = tiny_recipe(
        tmp_path, family="opt", dropout=0.2, text_tokens_per_step=300, max_steps=5, epochs=9, checkpoint_every_steps=5,
    )  # fmt: skip
    folders = [tmp_path / "rich", tmp_path / "poor"]
    for folder in folders:
        folder.mkdir()
        (folder / "recipe.json").write_text(json.dumps(recipe))
    (folders[1] / "memory.json").write_text(json.dumps(1))
    run_on_two_nodes("tests.training.resumed_of_several", *folders)
    for folder in folders:
        whole, resumed = (Run.open(folder / name).latest_checkpoint()[1] for name in ("whole", "resumed"))
        state, other = (json.loads((folder / "state.json").read_text()) for folder in (whole, resumed))
        assert state["step"] == 5 and state["proven_positions"] > 0
        assert (state["micro_batch_positions"] is None) == (folder.name == "rich")
        for name in ("proven_positions", "random_states"):
            assert state[name] == other[name]
        for name in ("trained.safetensors", "optimizer.pt"):
            assert (whole / name).read_bytes() == (resumed / name).read_bytes(), (folder.name, name)


def compare(one: Path, two: Path) -> None:
    alone, together = (torch.load(folder / "gradients.pt") for folder in (one, two))
    assert alone.keys() == together.keys()
    assert len(alone) > 40
    for name, gradient in alone.items():
        torch.testing.assert_close(together[name], gradient, atol=1e-6, rtol=1e-4)
    first, second = (Run.open(folder / "whole").read_metrics() for folder in (one, two))
    assert [record["step"] for record in second if "loss" in record] == [1, 2, 3, 4]
    for record, other in zip(first, second, strict=True):
        assert record.keys() == other.keys()
        for key in {"loss", "validation_loss", "grad_norm"} & record.keys():
            assert record[key] == pytest.approx(other[key], rel=1e-3)
        for key in {"supervised_tokens", "text_tokens", "image_tokens", "samples", "dialogs", "epoch"} & record.keys():
            assert record[key] == other[key]


WORDS = {
    "data": "error: process 1 of 2: the shelf is empty",
    "loss": "error: process 1 of 2: the shelf is empty",
    "number": "the loss or its gradient is not finite; samples: ",
    "save": "error: checkpoints: No space left on device",
    "killed": "error: process 0 of 2: another process of this run is gone without a word of its own: it was killed, or",
}


@pytest.mark.slow
def test_what_fails_in_one_process_ends_both_within_seconds_and_is_said_once(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, max_steps=8, epochs=9, checkpoint_every_steps=2, validate_every_steps=100)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    subprocess.run(
        [*warm_python(), "-m", "tests.training.failing_of_two", str(tmp_path / "recipe.yaml"), str(tmp_path), *WORDS],
        check=True, cwd=ROOT, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    for how, words in WORDS.items():
        ended = json.loads((tmp_path / f"{how}.json").read_text())
        assert ended["statuses"] == [2, -signal.SIGKILL if how == "killed" else 2]
        assert ended["seconds"] < 10
        assert ended["said"].count(words) == ended["said"].count("error:") == 1, ended["said"]
        assert "Traceback" not in ended["said"]
        assert len(Run.open(tmp_path / how).checkpoints()) <= 1
