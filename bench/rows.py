"""Does filling rows pay? One training step of the language part, rows of unlike length, two kernels: images a second.

    python bench/rows.py                       # writes bench/results/rows.json
    python bench/rows.py --rounds 1 --tiny

The same images and texts, laid out with a row an image (`single`), in rows filled to at most 5 % padding (`filled`),
and in rows of about two and four of the longest (`x2`, `x4`), with the kernels sdpa and eager. Two shapes: `demo` (16
image tokens, about 4 texts of about 9 tokens, SmolLM2's width) and `captions` (197 image tokens, 5 texts of about 14
tokens, OPT 512 wide). Eight layers; the encoder is tiny, so that the language part is what is timed; bf16 autocast,
projection and LoRA r 8 train. `padding` is the share of pads in each layout.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import interleave, machine, positive, ratio, write
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from visgraft.config import LoraSettings
from visgraft.data.batch import Batch, EncodedSample, collate
from visgraft.data.packing import fill_rows
from visgraft.data.prompt import EncodedDialog
from visgraft.model.trainable import set_trainable
from visgraft.model.vlm import VisionLanguageModel

VOCABULARY = 32_000
KERNELS = ("sdpa", "eager")
LAYOUTS = ("single", "filled", "x2", "x4")
# images a step, texts an image, tokens a text, side of the image in patches of 32 (without class token) or 16 (with it)
SHAPES: dict[str, dict[str, Any]] = {
    "demo": {"images": 9, "texts": (3, 4), "tokens": (7, 11), "side": 4},
    "captions": {"images": 16, "texts": (5, 5), "tokens": (10, 18), "side": 14},
}


def make_samples(shape: str, *, seed: int = 0) -> list[EncodedSample]:
    """Make random images and texts of a shape's lengths."""
    settings, draw = SHAPES[shape], random.Random(seed)
    pixels = settings["side"] * (32 if shape == "demo" else 16)
    num_tokens = settings["side"] ** 2 + (shape != "demo")

    def text() -> EncodedDialog:
        ids = tuple(draw.randrange(4, VOCABULARY) for _ in range(draw.randint(*settings["tokens"])))
        return EncodedDialog(ids, (False, *[True] * (len(ids) - 1)), 4 * len(ids), truncated=False)

    return [
        EncodedSample(
            dialogs=tuple(text() for _ in range(draw.randint(*settings["texts"]))),
            vision_inputs={"pixel_values": torch.randn(1, 3, pixels, pixels)},
            num_image_tokens=(num_tokens,),
        )
        for _ in range(settings["images"])
    ]


def make_model(shape: str, *, kernel: str, tiny: bool) -> VisionLanguageModel:
    """Join a tiny encoder to a random language model of a shape's width."""
    torch.manual_seed(0)
    side, layers = SHAPES[shape]["side"], 1 if tiny else 8
    patch = 32 if shape == "demo" else 16
    width = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = CLIPVisionModel(CLIPVisionConfig(**width, image_size=side * patch, patch_size=patch))
    language: Any
    if shape == "demo":
        sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
        language = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=VOCABULARY, num_hidden_layers=layers))
    else:
        sizes = {"hidden_size": 512, "word_embed_proj_dim": 512, "ffn_dim": 2048, "num_attention_heads": 8}
        config = OPTConfig(**sizes, vocab_size=VOCABULARY, num_hidden_layers=layers, dropout=0.0)
        language = OPTForCausalLM(config)
    language.set_attn_implementation(kernel)
    model = VisionLanguageModel.from_parts(vision, language, keep_class_token=shape != "demo")
    lora: Any = {"language": LoraSettings(r=8, target_modules=("q_proj", "k_proj", "v_proj"))}
    set_trainable(model, modes={"projection": "full", "language": "lora"}, lora=lora, frozen_dtype=torch.bfloat16)
    return model.train()


def lay_out(samples: list[EncodedSample], layout: str) -> Batch:
    """Collate in one of the layouts."""
    lengths = [sample.num_positions for sample in samples]
    budgets = {"filled": None, "x2": 2 * max(lengths), "x4": 4 * max(lengths)}
    rows = None if layout == "single" else fill_rows(lengths, row_positions=budgets[layout])
    return collate(samples, layout="shared", pad_token_id=1, rows=rows)


def make_step(model: VisionLanguageModel, batch: Batch) -> Callable[[], None]:
    """Make one forward and backward pass."""

    def step() -> None:
        with torch.autocast(model.device.type, torch.bfloat16):
            loss = model.loss(batch).loss
        assert loss is not None
        loss.backward()
        model.zero_grad()

    return step


def measure(shape: str, *, rounds: int, tiny: bool) -> dict[str, Any]:
    """Time every layout with every kernel; give seconds, ratios to `single` with the same kernel, and padding."""
    samples = make_samples(shape)
    batches = {layout: lay_out(samples, layout) for layout in LAYOUTS}
    models = {kernel: make_model(shape, kernel=kernel, tiny=tiny) for kernel in KERNELS}
    steps = {
        f"{layout}, {kernel}": make_step(models[kernel], batches[layout]) for kernel in KERNELS for layout in LAYOUTS
    }
    measured = interleave(steps, rounds=rounds, units=len(samples), unit="images")
    ratios = {
        f"{layout} / single, {kernel}": ratio(measured, slow=f"single, {kernel}", fast=f"{layout}, {kernel}")
        for kernel in KERNELS
        for layout in LAYOUTS[1:]
    }
    ratios |= {
        f"eager / sdpa, {layout}": ratio(measured, slow=f"{layout}, sdpa", fast=f"{layout}, eager")
        for layout in LAYOUTS
    }
    shapes = {layout: list(batch.kind.shape) for layout, batch in batches.items()}
    padding = {layout: round(float((batch.kind == 0).float().mean()), 3) for layout, batch in batches.items()}
    return {"rows x positions": shapes, "padding": padding, "ratios": ratios, "variants": measured}


def main() -> None:
    """Measure both shapes and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=positive, default=7)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--tiny", action="store_true", help="one layer: only shows that the script runs")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "rows.json")
    arguments = parser.parse_args()
    result = {
        "what": "images per second of one training step of the language part, by layout of rows and kernel",
        "shapes": {shape: measure(shape, rounds=arguments.rounds, tiny=arguments.tiny) for shape in arguments.shapes},
        "machine": machine(),
    }
    write(result, path=arguments.output)


if __name__ == "__main__":
    main()
