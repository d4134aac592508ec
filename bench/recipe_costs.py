"""What the shipped recipes take: memory and time, from the configurations of their parts alone.

    python bench/recipe_costs.py                          # writes bench/results/recipe_costs.json; minutes, no network
    python bench/recipe_costs.py --only cpu mac -o /tmp/costs.json

In: the recipes, and the published sizes of the parts that they name (PARTS; no weights, no data). Out: for each recipe
what `visgraft estimate` says of it, with texts of the length of its own data, and hours for the texts of that data.
docs/make_reference.py puts the figures beside the recipes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

from harness import console, machine, write

from visgraft.config import load_recipe
from visgraft.estimate import outline
from visgraft.estimate.estimate import estimate


def _vit(kind: str, *, width: int, layers: int, heads: int, patch: int, side: int, inner: int = 0) -> dict[str, Any]:
    return {
        "model_type": kind, "hidden_size": width, "intermediate_size": inner or 4 * width, "num_hidden_layers": layers,
        "num_attention_heads": heads, "patch_size": patch, "image_size": side,
    }  # fmt: skip


def _llama(*, vocabulary: int, width: int, inner: int, layers: int, heads: int, kv: int, tied: bool) -> dict[str, Any]:
    return {
        "model_type": "llama", "vocab_size": vocabulary, "hidden_size": width, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv,
        "max_position_embeddings": 4096, "tie_word_embeddings": tied,
    }  # fmt: skip


LLAMA_7B = _llama(vocabulary=32000, width=4096, inner=11008, layers=32, heads=32, kv=32, tied=False)
SIGLIP_B = _vit("siglip_vision_model", width=768, layers=12, heads=12, patch=16, side=224)
SO400M: dict[str, Any] = {"width": 1152, "layers": 27, "heads": 16, "patch": 14, "inner": 4304}
# the sizes that these names have on the Hub
PARTS: dict[str, dict[str, Any]] = {
    "openai/clip-vit-base-patch16": _vit("clip_vision_model", width=768, layers=12, heads=12, patch=16, side=224),
    "openai/clip-vit-large-patch14": _vit("clip_vision_model", width=1024, layers=24, heads=16, patch=14, side=224),
    "openai/clip-vit-large-patch14-336": _vit("clip_vision_model", width=1024, layers=24, heads=16, patch=14, side=336),
    "google/siglip-base-patch16-224": SIGLIP_B,
    "google/siglip-so400m-patch14-224": _vit("siglip_vision_model", side=224, **SO400M),
    "google/siglip-so400m-patch14-384": _vit("siglip_vision_model", side=384, **SO400M),
    "facebook/dinov3-vitb16-pretrain-lvd1689m": {
        **_vit("dinov3_vit", width=768, layers=12, heads=12, patch=16, side=224), "num_register_tokens": 4,
    },
    "facebook/opt-350m": {
        "model_type": "opt", "vocab_size": 50272, "hidden_size": 1024, "ffn_dim": 4096, "num_hidden_layers": 24,
        "num_attention_heads": 16, "word_embed_proj_dim": 512, "do_layer_norm_before": False,
    },
    "meta-llama/Llama-2-7b-hf": LLAMA_7B,
    "meta-llama/Llama-2-7b-chat-hf": LLAMA_7B,
    "lmsys/vicuna-7b-v1.5": LLAMA_7B,
    "HuggingFaceTB/SmolLM2-135M": _llama(
        vocabulary=49152, width=576, inner=1536, layers=30, heads=9, kv=3, tied=True
    ),
    "HuggingFaceTB/SmolLM2-360M": _llama(
        vocabulary=49152, width=960, inner=2560, layers=32, heads=15, kv=5, tied=True
    ),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": _llama(
        vocabulary=49152, width=2048, inner=8192, layers=24, heads=32, kv=32, tied=True
    ),
    "google/gemma-2b": {
        "model_type": "gemma", "vocab_size": 256000, "hidden_size": 2048, "intermediate_size": 16384,
        "num_hidden_layers": 18, "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256,
    },
    "Qwen/Qwen3.5-0.8B": {
        "model_type": "qwen3_5_text", "vocab_size": 248320, "hidden_size": 1024, "intermediate_size": 3584,
        "num_hidden_layers": 24, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 256,
        "linear_num_key_heads": 16, "linear_num_value_heads": 16, "linear_key_head_dim": 128,
        "linear_value_head_dim": 128, "tie_word_embeddings": True,
    },
}  # fmt: skip
# recipe -> (tokens of a text with its prompt, texts of its data by its authors' count, None where it is one's own)
DATA: dict[str, tuple[int, int | None]] = {
    "coco_opt": (14, 118_287 * 5), "git_llm": (60, 1_361_650), "nanovlm": (32, 1_700_000), "smolvlm": (128, None),
    "llava_1_5_align": (32, 558_128), "llava_1_5_instruct": (256, 665_298), "llama2_7b_24gb": (128, None),
    "dinov3_qwen35": (32, None), "paligemma": (32, None), "mac": (32, None), "cpu": (32, None),
}  # fmt: skip
SECOND_STAGE = "llava_1_5_align"  # whose parts llava_1_5_instruct goes on with


def cost(name: str, parts: Path) -> dict[str, Any]:
    """Estimate a recipe whose parts are folders with a configuration each."""
    recipe = load_recipe(name)
    model = load_recipe(SECOND_STAGE).model if recipe.model.start_from else recipe.model
    assert model.language is not None
    changes = [f"model.vision={parts / str(model.vision)}", f"model.language.name={parts / model.language.name}"]
    if recipe.model.start_from:
        changes += ["model.start_from=null", "model.feature_layer=-2", "model.keep_class_token=false"]
        changes.append("model.projection={type: mlp}")
    tokens, num_texts = DATA[name]
    on_cpu = name in ("cpu", "mac")
    with mock.patch.object(outline, "ASSUMED_TOKENS", tokens):
        found = estimate(load_recipe(name, overrides=changes), gpu=None if on_cpu else "a100-80gb", measure=False)
    seconds = found.seconds_per_step
    steps = None if num_texts is None else round(num_texts * tokens * recipe.train.epochs / text_tokens(name))
    return {
        "memory_gib": round(found.cost.total_bytes / 2**30, 1),
        "seconds_per_step_a100": None if on_cpu or seconds is None else round(seconds, 2),
        "texts_per_step": round(text_tokens(name) / tokens),
        "steps": steps,
        "hours_a100": None if steps is None or on_cpu or seconds is None else round(steps * seconds / 3600, 1),
    }


def text_tokens(name: str) -> int:
    """Tell the budget of a step."""
    return load_recipe(name).train.text_tokens_per_step


def main() -> None:
    """Estimate them all and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(DATA), default=list(DATA))
    parser.add_argument("--output", "-o", type=Path, default=Path(__file__).parent / "results" / "recipe_costs.json")
    given = parser.parse_args()
    costs = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, config in PARTS.items():
            place = Path(folder) / name
            place.mkdir(parents=True)
            (place / "config.json").write_text(json.dumps(config))
        for name in given.only:
            costs[name] = cost(name, Path(folder))
            console.print(name, costs[name])
    write({"machine": machine(), "recipes": costs}, path=given.output)


if __name__ == "__main__":
    main()
