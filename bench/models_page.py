"""Write docs/models.md: which models can be joined, from what the sweep over all of them found.

In: bench/results/sweep.json (bench/sweep.py) and bench/results/sweep_encoders.json (tests/sweep_encoders.py).
Out: docs/models.md; its words are here, its tables and figures come from those files. `make sweep` makes all three.

    python bench/models_page.py
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness import console

HERE = Path(__file__).parent
LANGUAGES = HERE / "results" / "sweep.json"
ENCODERS = HERE / "results" / "sweep_encoders.json"
PAGE = HERE.parent / "docs" / "models.md"
LONGEST_REASON = 230  # characters

# What people know a model by: (name, its family here, an example on the Hub). Only names; their weights were not run.
KNOWN_LANGUAGES = (
    ("Llama 2 and 3, SmolLM2, TinyLlama, Vicuna", "llama", "HuggingFaceTB/SmolLM2-135M"),
    ("Llama 4", "llama4_text", "meta-llama/Llama-4-Scout-17B-16E"),
    ("Qwen2, Qwen2.5", "qwen2", "Qwen/Qwen2.5-0.5B"),
    ("Qwen3", "qwen3", "Qwen/Qwen3-0.6B"),
    ("Qwen3 MoE", "qwen3_moe", "Qwen/Qwen3-30B-A3B"),
    ("Qwen3-Next", "qwen3_next", "Qwen/Qwen3-Next-80B-A3B-Instruct"),
    ("Qwen3.5", "qwen3_5", ""),
    ("Gemma", "gemma", "google/gemma-2b"),
    ("Gemma 2", "gemma2", "google/gemma-2-2b"),
    ("Gemma 3 (270M, 1B)", "gemma3_text", "google/gemma-3-270m"),
    ("Gemma 3 (4B and more)", "gemma3", "google/gemma-3-4b-it"),
    ("Gemma 3n", "gemma3n", "google/gemma-3n-E2B"),
    ("Gemma 4", "gemma4", ""),
    ("Mistral", "mistral", "mistralai/Mistral-7B-v0.3"),
    ("Ministral 3", "ministral3", ""),
    ("Mixtral", "mixtral", "mistralai/Mixtral-8x7B-v0.1"),
    ("Phi-1, Phi-2", "phi", "microsoft/phi-2"),
    ("Phi-3, Phi-3.5, Phi-4", "phi3", "microsoft/Phi-3.5-mini-instruct"),
    ("SmolLM3", "smollm3", "HuggingFaceTB/SmolLM3-3B"),
    ("OPT", "opt", "facebook/opt-350m"),
    ("GPT-2", "gpt2", "openai-community/gpt2"),
    ("GPT-OSS", "gpt_oss", "openai/gpt-oss-20b"),
    ("Pythia, GPT-NeoX", "gpt_neox", "EleutherAI/pythia-410m"),
    ("GPT-J", "gptj", "EleutherAI/gpt-j-6b"),
    ("GPT-Neo", "gpt_neo", "EleutherAI/gpt-neo-125m"),
    ("MPT", "mpt", "mosaicml/mpt-7b"),
    ("Falcon", "falcon", "tiiuae/falcon-7b"),
    ("BLOOM", "bloom", "bigscience/bloom-560m"),
    ("OLMo 2", "olmo2", "allenai/OLMo-2-0425-1B"),
    ("OLMo 3", "olmo3", "allenai/Olmo-3-1025-7B"),
    ("OLMo hybrid", "olmo_hybrid", ""),
    ("LFM2", "lfm2", "LiquidAI/LFM2-350M"),
    ("Granite 3", "granite", "ibm-granite/granite-3.3-2b-instruct"),
    ("Granite 4 H", "granitemoehybrid", "ibm-granite/granite-4.0-h-micro"),
    ("Nemotron-H", "nemotron_h", "nvidia/Nemotron-H-8B-Base-8K"),
    ("Falcon-H1", "falcon_h1", "tiiuae/Falcon-H1-0.5B-Base"),
    ("Bamba", "bamba", "ibm-ai-platform/Bamba-9B-v2"),
    ("Jamba", "jamba", "ai21labs/Jamba-v0.1"),
    ("Zamba2", "zamba2", "Zyphra/Zamba2-1.2B"),
    ("RecurrentGemma", "recurrent_gemma", "google/recurrentgemma-2b"),
    ("Mamba", "mamba", "state-spaces/mamba-130m-hf"),
    ("Mamba-2, Codestral Mamba", "mamba2", "mistralai/Mamba-Codestral-7B-v0.1"),
    ("RWKV-4", "rwkv", "RWKV/rwkv-4-169m-pile"),
    ("xLSTM", "xlstm", "NX-AI/xLSTM-7b"),
    ("Kimi Linear", "kimi_linear", "moonshotai/Kimi-Linear-48B-A3B-Instruct"),
    ("MiniMax", "minimax", "MiniMaxAI/MiniMax-Text-01-hf"),
    ("DeepSeek V3", "deepseek_v3", "deepseek-ai/DeepSeek-V3"),
    ("GLM-4", "glm4", "zai-org/GLM-4-9B-0414"),
    ("EXAONE 4", "exaone4", "LGAI-EXAONE/EXAONE-4.0-1.2B"),
    ("ERNIE 4.5", "ernie4_5", "baidu/ERNIE-4.5-0.3B-PT"),
    ("Hunyuan", "hunyuan_v1_dense", "tencent/Hunyuan-0.5B-Instruct"),
    ("Command R7B", "cohere2", "CohereLabs/c4ai-command-r7b-12-2024"),
    ("StableLM 2", "stablelm", "stabilityai/stablelm-2-1_6b"),
    ("StarCoder2", "starcoder2", "bigcode/starcoder2-3b"),
)
SHARING = {"mask": "masked", "state": "by state", "rows": "rows"}
IMAGE = {"nothing": "both ways", "some": "causal in recurrent layers", "all": "causal"}
BEHIND = {"several": "kept", "single": "kept; prompts token by token", "nothing": "read anew"}


def reason(text: str) -> str:
    """Give a refusal's reason, short, as one cell of a table."""
    said = re.sub(r"\s+", " ", text).partition(". Choose another")[0]
    said = re.sub(r"^(\w+: )?(The )?\S+ (\(\w+\) )?cannot be joined( exactly)?: ", "", said).replace("|", "\\|")
    return said if len(said) <= LONGEST_REASON else said[:LONGEST_REASON].rsplit(" ", 1)[0] + " ..."


def encoder_reason(found: Mapping[str, Any]) -> str:
    """Give the reason why a vision model is not joined, as one cell of a table."""
    prefix = {"refused": "", "skipped": "not tried: ", "wrong": "joined, but "}[found["what"]]
    said = re.sub(r"^(UnsupportedModelError|ModelError): ", "", re.sub(r"\s+", " ", found["why"]))
    said = said.partition(": choose another")[0].partition(". Choose another")[0].replace("|", "\\|")
    return prefix + (said if len(said) <= LONGEST_REASON else said[:LONGEST_REASON].rsplit(" ", 1)[0] + " ...")


def how(found: Mapping[str, Any]) -> str:
    """Say how a joined family reads images and texts, in three cells."""
    notes = [IMAGE[found["image_is_causal"]]]
    if found.get("image_attention") == "causal":
        notes = ["causal (`image_attention: causal`)"]
    if found.get("mixed_precision") is False:
        notes.append("fp32 alone")
    return f"{SHARING[found['sharing']]} | {', '.join(notes)} | {BEHIND[found['behind_cache']]}"


def page(languages: Mapping[str, Any], encoders: Mapping[str, Any]) -> str:
    """Write the page."""
    classes = encoders["classes"]
    counted = Counter(found["what"] for found in classes.values())
    families = languages["families"]
    counts = Counter(found["result"] for found in families.values())
    joined = {name: found for name, found in families.items() if found["result"] == "right"}
    lines = [
        "# Which models?",
        "",
        "<!-- bench/sweep.py -o bench/results/sweep.json, then bench/models_page.py write this page -->",
        "",
        "```sh",
        "visgraft show recipe.yaml --set model.language=Qwen/Qwen3-0.6B     # joined, or refused; nothing trains",
        "```",
        "",
        "Any causal language model and any vision encoder that `transformers` loads, by name, where this can be exact. "
        "`make sweep` tries all of them, small and random, each in a process of its own. "
        f"Of {len(families)} families of language models **{counts['right']} are joined and right**, "
        f"{counts['refused']} are refused with the reason; of {len(classes)} classes of vision models "
        f"**{counted['joined']} are joined and right**, {counted['refused']} are refused.",
        "",
        f"Language models: transformers {languages['transformers']}, torch {languages['torch']}, {languages['date']}; "
        f"encoders: transformers {encoders['transformers']}, torch {encoders['torch']}, {encoders['date']}. "
        "The examples "
        "on the Hub say what a family is known by; their weights were not downloaded for this page. What you name is "
        "tried in the same way when it is joined, so that a family that is not on this page is joined or refused by "
        "the same checks.",
        "",
        *WORDS,
        "## Language models that people ask for",
        "",
        "| model | family | texts share an image | an image is read | behind a cache | example on the Hub |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for known, name, example in KNOWN_LANGUAGES:
        found = families[name]
        cells = how(found) if found["result"] == "right" else f"**refused**: {reason(found['why'])} | | "
        lines.append(f"| {known} | `{name}` | {cells} | {f'`{example}`' if example else ''} |")
    lines += ["", "## All language models that are joined", "", *LONG_TABLE]
    lines += [f"| `{name}` | `{found['class']}` | {how(found)} |" for name, found in joined.items()]
    lines += ["", "## Language models that are refused", "", "| family | why |", "| --- | --- |"]
    lines += [f"| `{name}` | {reason(found['why'])} |" for name, found in families.items() if name not in joined]
    names = [f"`{name}`" for name, found in classes.items() if found["what"] == "joined"]
    lines += ["", "## Vision encoders that are joined", "", *ENCODER_WORDS, ", ".join(names) + ".", ""]
    lines += ["## Vision models that are not", "", "| class | why |", "| --- | --- |"]
    lines += [f"| `{name}` | {encoder_reason(found)} |" for name, found in classes.items() if found["what"] != "joined"]
    return "\n".join(lines) + "\n"


ENCODER_WORDS = (
    "By the `model_type` of their config; towers inside larger checkpoints stand under the name of the tower. "
    "Encoders of `timm` are tried in `make test-timm`. What encoders are given, and how towers are found: "
    "[encoders.md](encoders.md).",
    "",
)


WORDS = (
    "## How to read the tables",
    "",
    "**Texts share an image**: how several texts are trained behind one image that is read once.",
    "",
    "* masked: all stand in one row, and a mask keeps them apart; rows may be filled with several samples.",
    "* by state: the model has layers that are recurrent, linear or convolutional, whose state no mask governs. "
    "The image is read once, and each text reads on from a copy of what it became, gradients included. Equal to "
    "rows of their own.",
    "* rows: each text reads the image in a row of its own, in the layout `shared` too (slower, equally right).",
    "",
    "**An image is read**: both ways, so that its tokens see each other; or, in layers with a state, from left to"
    " right (causal). Texts see the whole image either way. `visgraft show` says so.",
    "",
    "**Behind a cache**: what was read is kept for the next token, turn or question; or prompts behind it are "
    "read token by token; or everything is read anew for each token (slow: for trying, not for serving).",
    "",
    "**Checked for each language model** (bench/sweep.py): without an image it computes what the bare model "
    "computes; pads and neighbours change nothing; later text moves nothing earlier, and the image moves every "
    "text; shared images have the loss and every gradient of rows of their own; generation with a cache is greedy"
    " choice without one, alone and among neighbours; LoRA on the mixers of every kind of layer, in float32 and "
    "in bf16; what is saved computes the same when it is loaded. **For each encoder** (tests/sweep_encoders.py): "
    "two images together are as each alone, text sees them, a change of a corner is felt most in that corner, and"
    " what is saved comes back equal.",
    "",
)
LONG_TABLE = (
    "| family | class | texts share an image | an image is read | behind a cache |",
    "| --- | --- | --- | --- | --- |",
)


def main() -> None:
    """Write the page from those files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=PAGE)
    arguments = parser.parse_args()
    arguments.output.write_text(page(json.loads(LANGUAGES.read_text()), json.loads(ENCODERS.read_text())), "utf-8")
    console.print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
