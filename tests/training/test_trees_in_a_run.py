"""A run whose dialogs begin alike learns what a row a dialog learns, and goes on as if it had never stopped."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.training.tiny import tiny_recipe
from visgraft.config import load_recipe
from visgraft.runs import Run
from visgraft.training.loop import Interrupted, train
from visgraft.training.progress import TrainProgress
from visgraft.training.setup import open_session
from visgraft.training.steps import load_steps

pytestmark = pytest.mark.slow
INSTRUCTION = "Look at the picture with great care, as a painter would, and then say in a word"


def recipe_of(tmp_path: Path, **train_settings: Any) -> dict[str, Any]:
    """A recipe whose questions about an image all begin with a long instruction."""
    recipe = tiny_recipe(tmp_path, text_tokens_per_step=160, max_steps=4, epochs=9, **train_settings)
    path = tmp_path / "train" / "metadata.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if "question" in line:
            line["question"] = f"{INSTRUCTION}: {line['question']}"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe["data"]["max_dialogs_per_prefix"] = 4
    return recipe


def losses_of(folder: Path) -> list[float]:
    return [record["loss"] for record in Run.open(folder).read_metrics() if "loss" in record]


def test_both_layouts_learn_the_same_and_the_shared_one_computes_less(tmp_path: Path, quiet: TrainProgress) -> None:
    first, second = (train(recipe_of(tmp_path / kind, layout=kind), progress=quiet) for kind in ("shared", "rows"))
    assert losses_of(first) == pytest.approx(losses_of(second), rel=1e-3)  # Adam makes steps of rounding
    assert losses_of(first)[0] == pytest.approx(losses_of(second)[0], rel=1e-5)
    session = open_session(load_recipe(recipe_of(tmp_path / "shared", layout="shared")), progress=quiet)
    step = next(load_steps(session.planner, session.state.position, epochs=1.0, settings=session.loader))
    counts = step.counts()
    assert counts["positions"] - counts["pads"] < counts["image_tokens"] + counts["text_tokens"]


def test_a_resumed_run_is_bit_equal_to_one_that_never_stopped(tmp_path: Path, quiet: TrainProgress) -> None:
    recipe = recipe_of(tmp_path, lora={"r": 2, "lora_dropout": 0.1})
    whole = train(recipe, progress=quiet)
    with pytest.raises(Interrupted) as stopped:
        train(recipe, progress=quiet, stop=lambda step: step == 2)
    folder = train(resume=stopped.value.folder, progress=quiet)
    kept, resumed = (
        load_file(Run.open(each).latest_checkpoint()[1] / "trained.safetensors") for each in (whole, folder)
    )
    assert kept.keys() == resumed.keys()
    assert all(torch.equal(kept[name], resumed[name]) for name in kept)
    assert losses_of(whole) == losses_of(folder)
