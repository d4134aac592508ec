"""A run with a hybrid language model is, stopped and resumed, the run that never stopped, in both layouts."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.data.made_tokenizers import TOKENIZERS
from tests.tiny import HYBRID_CONFIGS
from tests.training.tiny import tiny_recipe
from visgraft.runs import Run
from visgraft.training.interrupt import Interrupted
from visgraft.training.loop import train
from visgraft.training.progress import TrainProgress

pytestmark = pytest.mark.slow


def save_hybrid(folder: Path, *, family: str) -> str:
    """Save a language model under the name by which `tiny_recipe` looks for it."""
    tokenizer = TOKENIZERS["opt, llama 3"]()
    config = HYBRID_CONFIGS[family]()
    config.vocab_size = len(tokenizer)
    target = folder / f"tiny-{family}"
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config).save_pretrained(target)
    tokenizer.save_pretrained(target)
    return str(target)


@pytest.mark.parametrize(("family", "layout"), [("qwen3_5", "shared"), ("lfm2", "shared"), ("lfm2", "rows")])
def test_a_resumed_hybrid_run_is_bit_equal_to_one_that_never_stopped(
    tmp_path: Path, quiet: TrainProgress, family: str, layout: str
) -> None:
    save_hybrid(tmp_path, family=family)
    recipe = tiny_recipe(tmp_path, family=family, layout=layout, max_steps=4, lora={"r": 2, "lora_dropout": 0.1})
    whole = train(recipe, progress=quiet)
    with pytest.raises(Interrupted) as stopped:
        train(recipe, progress=quiet, stop=lambda step: step == 2)
    folder = stopped.value.folder
    assert Run.open(folder).latest_checkpoint()[0] == 2
    assert train(resume=folder, progress=quiet) == folder
    kept, resumed = (
        load_file(Run.open(each).latest_checkpoint()[1] / "trained.safetensors") for each in (whole, folder)
    )
    assert kept.keys() == resumed.keys() and any("language" in name for name in kept)
    assert all(torch.equal(kept[name], resumed[name]) for name in kept)
    losses = [
        [record["loss"] for record in Run.open(each).read_metrics() if "loss" in record] for each in (whole, folder)
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 4


def test_both_layouts_of_a_hybrid_run_learn_the_same(tmp_path: Path, quiet: TrainProgress) -> None:
    save_hybrid(tmp_path, family="qwen3_5")
    losses = []
    for layout in ("shared", "rows"):
        folder = train(tiny_recipe(tmp_path, family="qwen3_5", layout=layout, max_steps=3), progress=quiet)
        losses.append([record["loss"] for record in Run.open(folder).read_metrics() if "loss" in record])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
