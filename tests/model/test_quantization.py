"""A frozen language model of 8 or 4 bits trains with LoRA, is saved slim, comes back with the same bits and answers.

Most of this needs bitsandbytes, which works on a CPU too: `pip install 'visgraft[quantization]'`.
"""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.tiny import assert_same_gradients, bare_language, bare_vision, gradients, random_ids, random_pixels
from tests.tiny import batch as tiny_batch
from tests.tiny import samples as tiny_samples
from tests.training.tiny import language_config, tiny_recipe
from visgraft import VisionLanguageModel
from visgraft.builder.describe import describe_model, describe_recipe
from visgraft.config import load_recipe
from visgraft.convert.merge import MergeRefusedError, merge_model
from visgraft.data.sample import Sample, Turn
from visgraft.errors import CheckpointError, ConfigError
from visgraft.inference import answer, load
from visgraft.model.quantization import dequantize, format_of, is_quantized, num_weights, quantization_config
from visgraft.model.trainable import set_trainable
from visgraft.runs import Run
from visgraft.training.interrupt import Interrupted
from visgraft.training.loop import train
from visgraft.training.progress import make_progress

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None,
    reason="bitsandbytes is not installed: pip install 'visgraft[quantization]' to test 8-bit and 4-bit models",
)
WORDS = ["4bit", "8bit"]
# bitsandbytes quantizes in blocks of 64
WIDE = {"hidden_size": 64, "head_dim": 16, "intermediate_size": 64, "ffn_dim": 64, "word_embed_proj_dim": 64}


def quantized_recipe(folder: Path, word: str, *, family: str = "llama", **train: Any) -> dict[str, Any]:
    recipe = tiny_recipe(folder, family=family, **{"max_steps": 4, **train})
    wide = folder / f"wide-{family}"
    if not wide.exists():
        tokenizer = AutoTokenizer.from_pretrained(recipe["model"]["language"])
        config = language_config(family, len(tokenizer))
        for name, size in WIDE.items():
            setattr(config, name, size)
        torch.manual_seed(1)
        AutoModelForCausalLM.from_config(config).save_pretrained(wide)
        tokenizer.save_pretrained(wide)
    recipe["model"]["language"] = {"name": str(wide), "quantization": word}
    return recipe


def run(recipe: dict[str, Any], **settings: Any) -> Path:
    return train(recipe, progress=make_progress(show=False), **settings)


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in Run.open(folder).read_metrics() if "loss" in record]


@pytest.fixture
def language(tmp_path: Path) -> str:
    bare_language("llama", **WIDE).save_pretrained(tmp_path / "llama")
    return str(tmp_path / "llama")


def quantized(language: str, word: str) -> VisionLanguageModel:
    return VisionLanguageModel.from_parts(bare_vision("clip"), language, quantization_config=quantization_config(word))


# --- The whole way


@pytest.mark.slow
@needs_bitsandbytes
@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize("word", WORDS)
def test_a_quantized_model_learns_and_comes_back_from_a_slim_folder(tmp_path: Path, word: str, family: str) -> None:
    folder = run(quantized_recipe(tmp_path, word, family=family, head="full" if family == "llama" else "frozen"))
    assert losses(folder)[-1] < losses(folder)[0]
    stored: list[str] = []
    for path in (folder / "model").rglob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            stored += [name for name in file.keys() if "lora" not in name and "projection" not in name]  # noqa: SIM118
    assert stored == (["lm_head.weight"] if family == "llama" else [])
    first, again = (VisionLanguageModel.from_pretrained(folder / "model") for _ in range(2))
    assert {format_of(p) for p in first.language.parameters()} == {"float32", word}
    inputs = {"input_ids": random_ids(2, 6), "pixel_values": random_pixels(2)}
    assert torch.equal(first(**inputs).logits, again(**inputs).logits)
    model, processor = load(str(folder), device="cpu", precision="bf16")
    image = next((tmp_path / "train").glob("*.png"))
    texts = answer(model, processor, [Sample(images=[image], dialogs=[[Turn("What is it?", "")]])], max_new_tokens=4)
    assert len(texts) == 1 and texts[0]
    first.save_pretrained(tmp_path / "again")
    third = VisionLanguageModel.from_pretrained(tmp_path / "again")
    assert torch.equal(first(**inputs).logits, third(**inputs).logits)


@pytest.mark.slow
@needs_bitsandbytes
@pytest.mark.parametrize("word", WORDS)
def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path: Path, word: str) -> None:
    whole = run(quantized_recipe(tmp_path, word))
    with pytest.raises(Interrupted) as stopped:
        run(quantized_recipe(tmp_path, word), stop=lambda step: step == 2)
    assert losses(train(resume=stopped.value.folder, progress=make_progress(show=False))) == losses(whole)


@needs_bitsandbytes
@pytest.mark.parametrize("word", WORDS)
def test_show_says_what_is_quantized(tmp_path: Path, word: str) -> None:
    recipe = quantized_recipe(tmp_path, word)
    planned = describe_recipe(load_recipe(recipe), name="recipe")
    assert f"its linears are kept in {word}" in planned.rows[2].notes
    made = describe_model(str(run(recipe)))
    assert made.rows[2].mode == f"named, in {word} + LoRA"
    assert [row.num_parameters for row in made.rows] == [row.num_parameters for row in planned.rows]


# --- What it computes


@needs_bitsandbytes
def test_shared_rows_equal_single_rows_on_4_bits(language: str) -> None:
    model = quantized(language, "4bit")
    set_trainable(model, modes={"projection": "full", "language": "lora"})
    found = []
    for layout in ("shared", "rows"):
        loss = model.loss(tiny_batch(tiny_samples(), layout=layout)).loss_sum  # type: ignore[arg-type]
        found.append(gradients(model, loss))
    assert_same_gradients(*found)


@needs_bitsandbytes
@pytest.mark.parametrize(("word", "error"), [("4bit", 0.12), ("8bit", 0.02)])
def test_quantized_weights_stand_for_what_the_checkpoint_holds(language: str, word: str, error: float) -> None:
    model, whole = quantized(language, word).language, bare_language("llama", **WIDE)
    kept = {name: weight for name, weight in whole.state_dict().items() if "proj" not in name}
    assert sum(map(num_weights, model.parameters())) == whole.num_parameters()
    dequantize(model)
    assert not is_quantized(model)
    for name, weight in whole.state_dict().items():
        change = float((model.state_dict()[name] - weight).norm() / weight.norm())
        assert change == 0 if name in kept else 1e-3 < change < error, name


@needs_bitsandbytes
def test_4_bits_compute_what_the_weights_they_stand_for_compute(language: str) -> None:
    inputs = {"input_ids": random_ids(2, 6), "pixel_values": random_pixels(2)}
    model = quantized(language, "4bit")
    packed = model(**inputs).logits
    dequantize(model.language)
    torch.testing.assert_close(model(**inputs).logits, packed, atol=1e-5, rtol=0)


@needs_bitsandbytes
def test_weights_are_unpacked_to_the_format_that_a_run_computes_in(language: str) -> None:
    model = quantized(language, "4bit")
    set_trainable(model, modes={"language": "lora"}, frozen_dtype=torch.bfloat16)
    layer: Any = model.language.model.layers[0].mlp.up_proj
    assert layer.compute_dtype == layer.weight.quant_state.dtype == torch.bfloat16
    assert layer.weight.dtype == torch.uint8


# --- Merging


@pytest.mark.slow
@needs_bitsandbytes
def test_lora_is_merged_into_unpacked_weights_only(tmp_path: Path) -> None:
    folder = run(quantized_recipe(tmp_path, "4bit"))
    with pytest.raises(MergeRefusedError, match="kept in 4bit, into which LoRA cannot be merged without loss"):
        merge_model(folder, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    report = merge_model(folder, tmp_path / "merged", dtype="float32", dequantize_first=True)
    inputs = {"input_ids": random_ids(2, 6), "pixel_values": random_pixels(2)}
    before, after = (VisionLanguageModel.from_pretrained(path) for path in (folder, report))
    assert not is_quantized(after)
    torch.testing.assert_close(after(**inputs).logits, before(**inputs).logits, atol=1e-4, rtol=0)


# --- Refused


@needs_bitsandbytes
def test_a_width_that_is_unpacked_wrongly_on_a_cpu_is_refused(tmp_path: Path) -> None:
    bare_language("llama").save_pretrained(tmp_path / "narrow")  # 32 wide
    with pytest.raises(ConfigError, match=r"q_proj is 32 wide, and on a CPU .* no multiple of 64 to wrong values"):
        quantized(str(tmp_path / "narrow"), "4bit")
    quantized(str(tmp_path / "narrow"), "8bit")


@needs_bitsandbytes
def test_a_whole_folder_of_a_quantized_model_is_refused(language: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the language part is quantized, so a folder can only name it"):
        quantized(language, "4bit").save_pretrained(tmp_path / "whole", full=True)


@needs_bitsandbytes
@pytest.mark.parametrize("mode", ["full", {"last_layers": 1}, {"patterns": ["*.q_proj.weight"]}])
def test_quantized_weights_cannot_train(language: str, mode: Any) -> None:
    with pytest.raises(ConfigError, match=r"train\.language: got .* are kept in 4bit and cannot train .*; say lora"):
        set_trainable(quantized(language, "4bit"), modes={"language": mode})


@needs_bitsandbytes
def test_norms_of_a_quantized_model_can_train(language: str) -> None:
    model = quantized(language, "4bit")
    set_trainable(model, modes={"language": {"patterns": ["*norm*"]}})
    assert all("norm" in name for name, p in model.named_parameters() if p.requires_grad)


@needs_bitsandbytes
def test_another_checkpoint_of_the_same_name_is_refused(tmp_path: Path) -> None:
    recipe = quantized_recipe(tmp_path, "4bit")
    folder = run(recipe)
    path = Path(recipe["model"]["language"]["name"]) / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"] += 1
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"is not the one that .* was trained with"):
        VisionLanguageModel.from_pretrained(folder)


def test_without_bitsandbytes_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs bitsandbytes.*pip install 'visgraft\[quantization\]'"):
        quantization_config("4bit")


def test_an_unknown_width_is_refused() -> None:
    with pytest.raises(ConfigError, match="quantization: got '3bit', allowed are 4bit, 8bit"):
        quantization_config("3bit")
