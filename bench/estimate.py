"""How near `visgraft estimate`'s estimate of memory is to what training takes: four pairs, three training modes.

    python bench/estimate.py                              # writes bench/results/estimate.json
    python bench/estimate.py --tiny --pairs opt           # only shows that the script runs

Each case is estimated from its recipe and a folder that holds configurations, tokenizer and image processor and no
weights. Then random weights are written, and in a fresh process the recipe trains: first three steps of a tiny pair of
the same classes, which load what libraries load late and are the baseline that is subtracted; then three steps of the
pair, whose largest resident set is the measurement. So that the resident set follows what is allocated, the process
gives freed memory back at once and has one arena (MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_, MALLOC_ARENA_MAX).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from harness import console, machine, write
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from visgraft.config import Recipe, load_recipe
from visgraft.estimate.estimate import estimate
from visgraft.estimate.gpus import this_computer
from visgraft.estimate.trial import try_out

NUM_IMAGES, TEXTS_PER_IMAGE = 64, 5
GIVE_BACK_AT_ONCE = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
MODES: dict[str, dict[str, Any]] = {
    "projection": {},
    "projection + LoRA": {"language": "lora"},
    "language full": {"language": "full", "head": "full"},
}
WORDS = [f"word{number}" for number in range(200)]


def _llama_like(is_tiny: bool, *, vocabulary: int, layers: int, width: int, heads: int, **more: Any) -> dict[str, Any]:
    if is_tiny:
        vocabulary, layers, width, heads = 300, 2, 32, 4
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 512,
        **more,
    }


def _opt(is_tiny: bool) -> Any:
    sizes = _llama_like(is_tiny, vocabulary=50272, layers=8, width=512, heads=8)
    width = sizes["hidden_size"]
    return hf.OPTConfig(**sizes, ffn_dim=4 * width, word_embed_proj_dim=width, dropout=0.0)


def _smollm(is_tiny: bool) -> Any:
    sizes = _llama_like(is_tiny, vocabulary=49152, layers=12, width=576, heads=8)
    return hf.LlamaConfig(**sizes, intermediate_size=1536, num_key_value_heads=4, tie_word_embeddings=True)


def _gpt_neox(is_tiny: bool) -> Any:
    sizes = _llama_like(is_tiny, vocabulary=50304, layers=6, width=512, heads=8)
    return hf.GPTNeoXConfig(**sizes, intermediate_size=2048, tie_word_embeddings=False)


def _qwen(is_tiny: bool) -> Any:
    sizes = _llama_like(is_tiny, vocabulary=151936, layers=6, width=384, heads=8)
    return hf.Qwen3Config(**sizes, head_dim=48, intermediate_size=1152, num_key_value_heads=4, tie_word_embeddings=True)


def _square(is_tiny: bool, *, patch: int, width: int = 768, layers: int = 12) -> dict[str, Any]:
    if is_tiny:
        width, layers = 32, 2
    return {
        "image_size": 224,
        "patch_size": patch,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64 or 2,
    }


# pair -> (configuration of the encoder, of the language model), each of real or of tiny size
PAIRS: dict[str, tuple[Callable[[bool], Any], Callable[[bool], Any]]] = {
    "opt": (lambda is_tiny: hf.ViTConfig(**_square(is_tiny, patch=16)), _opt),
    "smollm": (lambda is_tiny: hf.SiglipVisionConfig(**_square(is_tiny, patch=16, width=512, layers=8)), _smollm),
    "gpt_neox": (
        lambda is_tiny: hf.ConvNextConfig(image_size=224, **({"depths": [1, 1, 1, 1]} if is_tiny else {})),
        _gpt_neox,
    ),
    "qwen": (lambda is_tiny: hf.CLIPVisionConfig(**_square(is_tiny, patch=32)), _qwen),
}


def write_configurations(folder: Path, pair: str, *, is_tiny: bool) -> None:
    """Write what a pair is without its weights: configurations, image processor, tokenizer."""
    make_vision, make_language = PAIRS[pair]
    make_vision(is_tiny).save_pretrained(folder / "vision")
    size = {"height": 224, "width": 224}
    hf.CLIPImageProcessor(size={"shortest_edge": 224}, crop_size=size).save_pretrained(folder / "vision")
    make_language(is_tiny).save_pretrained(folder / "language")
    words = {word: number for number, word in enumerate(["<s>", "</s>", "<unk>", *WORDS])}
    plain = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    hf.PreTrainedTokenizerFast(tokenizer_object=plain, **special).save_pretrained(folder / "language")


def write_weights(folder: Path, sender: Any) -> None:
    """Write random weights beside the configurations, and send that it is done."""
    torch.manual_seed(0)
    for part, auto in (("vision", hf.AutoModel), ("language", hf.AutoModelForCausalLM)):
        config = hf.AutoConfig.from_pretrained(folder / part)
        auto.from_config(config).save_pretrained(folder / part)
    sender.send(True)


def write_data(folder: Path) -> None:
    """Write random images with five captions each, of 8 to 20 words."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    with (folder / "metadata.jsonl").open("w") as file:
        for number in range(NUM_IMAGES):
            Image.fromarray(rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)).save(folder / f"{number}.png")
            for _ in range(TEXTS_PER_IMAGE):
                text = " ".join(rng.choice(WORDS, size=int(rng.integers(8, 21))))
                file.write(json.dumps({"file_name": f"{number}.png", "text": text}) + "\n")


def make_recipe(folder: Path, data: Path, *, mode: str) -> Recipe:
    """Make the recipe of a case."""
    return load_recipe(
        {
            "model": {"vision": str(folder / "vision"), "language": str(folder / "language")},
            "train": {"text_tokens_per_step": 512, **MODES[mode]},
            "data": {"train": [{"source": "folder", "path": str(data)}]},
        }
    )


def estimate_case(recipe: Recipe, sender: Any) -> None:
    """Estimate a case from its recipe and send the bytes by part."""
    sizes = estimate(recipe, gpu=this_computer(), measure=False).cost.sizes
    sender.send({part: size for part, size in sizes.items() if part != "framework"})


def measure(recipes: list[Recipe], sender: Any) -> None:
    """Train the tiny pair, then the pair; send how much memory the second took (in a process of its own)."""
    for recipe in recipes:
        trial = try_out(recipe, num_steps=2)
    sender.send({"bytes": trial.peak_bytes, "seconds": trial.seconds})


def in_fresh_process(function: Callable[..., None], *given: Any) -> Any:
    """Run something in a process of its own, which begins with the libraries loaded, and return what it sends."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=function, args=(*given, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    finally:
        process.join()


def run_case(pair: str, mode: str, scratch: Path) -> dict[str, Any]:
    """Estimate and measure one pair in one training mode."""
    recipes = {name: make_recipe(scratch / pair / name, scratch / "data", mode=mode) for name in ("tiny", "pair")}
    assert not list(scratch.rglob("*.safetensors")), "the estimate is made without weights"
    sizes = in_fresh_process(estimate_case, recipes["pair"])
    for name in recipes:
        in_fresh_process(write_weights, scratch / pair / name)
    found = in_fresh_process(measure, list(recipes.values()))
    for path in scratch.rglob("*.safetensors"):
        path.unlink()
    total = sum(sizes.values())
    error = total / found["bytes"] - 1
    console.print(f"{pair}, {mode}: {total / 2**20:.0f} MiB, measured {found['bytes'] / 2**20:.0f}, {error:+.1%}")
    return {
        "pair": pair,
        "mode": mode,
        "estimated_bytes": total,
        "measured_bytes": found["bytes"],
        "error": round(error, 4),
        "estimated_by_part": sizes,
        "step_seconds": found["seconds"],
    }


def main() -> None:
    """Run the cases and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", default=list(PAIRS), choices=list(PAIRS))
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=list(MODES))
    parser.add_argument("--tiny", action="store_true", help="tiny shapes: only shows that the script runs")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "estimate.json")
    arguments = parser.parse_args()
    if not GIVE_BACK_AT_ONCE.items() <= os.environ.items():  # the allocator reads them as a program begins
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **GIVE_BACK_AT_ONCE})
    cases = []
    with tempfile.TemporaryDirectory() as scratch:
        write_data(Path(scratch) / "data")
        for pair in arguments.pairs:
            for name, is_tiny in (("pair", arguments.tiny), ("tiny", True)):
                write_configurations(Path(scratch) / pair / name, pair, is_tiny=is_tiny)
            cases += [run_case(pair, mode, Path(scratch)) for mode in arguments.modes]
    result = {
        "what": "memory of training, estimated from the recipe and measured",
        "largest_error": max(abs(case["error"]) for case in cases),
        "cases": cases,
        "machine": machine(),
    }
    write(result, path=arguments.output)


if __name__ == "__main__":
    main()
