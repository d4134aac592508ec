"""A tiny pair of parts, a folder of images and a recipe that trains in a second, all made on the spot.

In: an empty folder. Out: checkpoints, data and recipe values in it. Usage: `recipe = tiny_recipe(tmp_path, epochs=2)`
"""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoModelForCausalLM,
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    OPTConfig,
    PreTrainedConfig,
)

from tests.data.made_tokenizers import TOKENIZERS

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 220), "grey": (128, 128, 128)}
SIDE, PATCH = 32, 16
CLIP = CLIPVisionConfig(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    image_size=SIDE,
    patch_size=PATCH,
)


def language_config(family: str, vocab_size: int) -> PreTrainedConfig:
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": vocab_size,
        "max_position_embeddings": 128,
    }
    if family == "opt":
        return OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32, dropout=0.0)
    return LlamaConfig(**sizes, intermediate_size=48, num_key_value_heads=2)


def save_parts(folder: Path, *, family: str = "llama", dropout: float = 0.0) -> tuple[str, str]:
    """Save an encoder and a language model with their image processor and tokenizer."""
    vision, language = folder / "tiny-clip", folder / f"tiny-{family}"
    if not vision.exists():
        torch.manual_seed(0)
        CLIPVisionModel(CLIP).save_pretrained(vision)
        size = {"height": SIDE, "width": SIDE}
        CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=size).save_pretrained(vision)
    if not language.exists():
        tokenizer = TOKENIZERS["opt, llama 3"]()
        config = language_config(family, len(tokenizer))
        if family == "opt":
            config.dropout = dropout
        torch.manual_seed(1)
        AutoModelForCausalLM.from_config(config).save_pretrained(language)
        tokenizer.save_pretrained(language)
    return str(vision), str(language)


def save_data(folder: Path, *, num_images: int, first: int = 0, bad: int = 0) -> str:
    """Save a folder of plain coloured squares, each with one to four texts of unequal length."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(first, first + num_images):
        name, colour = list(COLOURS.items())[number % len(COLOURS)]
        pixels = np.random.default_rng(number).integers(-20, 20, (SIDE, SIDE, 3)) + np.array(colour)
        encoded = BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(encoded, format="PNG")
        _put(folder / f"{number}.png", encoded.getvalue())
        texts = [
            {"text": f"a {name} cat on a sofa"},
            {"question": "Which colour?", "answer": name},
            {"question": f"Is it {name}?", "answer": "Yes, I think it is, two dogs and a bird agree."},
            {"question": "What is it?", "answer": "A cat."},
        ]
        lines += [{"file_name": f"{number}.png", **text} for text in texts[: 1 + number % 4]]
    for number in range(bad):
        _put(folder / f"bad-{number}.png", b"not an image")
        lines.append({"file_name": f"bad-{number}.png", "text": "never seen"})
    _put(folder / "metadata.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    return str(folder)


def _put(path: Path, content: bytes) -> None:
    """Write a file, unless it is what it is to be: a resumed run knows its data by their times of change."""
    if not path.is_file() or path.read_bytes() != content:
        path.write_bytes(content)


def add_texts(folder: str, *, number: int) -> None:
    """Add samples without an image."""
    lines = [{"file_names": [], "question": f"What follows {n}?", "answer": f"{n + 1} does."} for n in range(number)]
    with (Path(folder) / "metadata.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def tiny_recipe(
    folder: Path, *, family: str = "llama", num_images: int = 12, bad: int = 0, dropout: float = 0.0, **train: Any
) -> dict[str, Any]:
    """Make the values of a recipe whose parts and data lie in the folder."""
    vision, language = save_parts(folder, family=family, dropout=dropout)
    data = save_data(folder / "train", num_images=num_images, bad=bad)
    validation = save_data(folder / "validation", num_images=4, first=100)
    settings = {
        "projection": "full",
        "language": "lora",
        "lora": {"r": 2},
        "learning_rate": 1e-2,
        "text_tokens_per_step": 80,
        "precision": "fp32",
        **train,
    }
    return {
        "model": {"vision": vision, "language": language},
        "train": settings,
        "data": {
            "train": [{"source": "folder", "path": data}],
            "validation": [{"source": "folder", "path": validation}],
            "max_dialogs_per_prefix": 2,
        },
        "output": str(folder / "runs"),
    }
