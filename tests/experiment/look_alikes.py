"""Tiny stand-ins for the models and data that the shipped experiments name, with the same tokenizer rules and forms.

In: an empty folder. Out: folders in it, by the name that they stand for.
Usage: `path = localised("modules", folder)` is the shipped file with names and paths of tiny things
"""

import base64
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from PIL import Image
from transformers import PreTrainedTokenizerBase

from tests.data.made_tokenizers import byte_level, ids_around, legacy_llama, wrap
from tests.tiny import VISION_CONFIGS, bare_vision
from tests.training.tiny import COLOURS
from visgraft.data.readers.m3it_tasks import tasks_of

RECIPES = Path(__file__).parents[2] / "visgraft" / "recipes" / "experiments"
SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
END = "<|endoftext|>"


def opt_tokenizer() -> PreTrainedTokenizerBase:
    """Put </s> in front of every text, as OPT does."""
    return wrap(ids_around(byte_level(), before="</s>"), bos="</s>", pad_token="<pad>")


def neox_tokenizer() -> PreTrainedTokenizerBase:
    """Put nothing in front; one special token for everything, as GPT-NeoX (and so MPT) has it."""
    return wrap(byte_level(), bos=END, eos=END, unk_token=END)


def language_of(name: str) -> tuple[Any, PreTrainedTokenizerBase]:
    if "opt" in name:
        tokenizer = opt_tokenizer()
        narrow = {"word_embed_proj_dim": 16, "do_layer_norm_before": False} if "350m" in name else {}
        sizes = {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 128, **narrow}
        ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        return hf.OPTConfig(vocab_size=len(tokenizer), **sizes, **ids, pad_token_id=tokenizer.pad_token_id), tokenizer
    if "mpt" in name:
        tokenizer = neox_tokenizer()
        return hf.MptConfig(vocab_size=len(tokenizer), d_model=32, n_heads=4, n_layers=2, max_seq_len=128), tokenizer
    tokenizer = wrap(legacy_llama()) if "Llama" in name else wrap(byte_level(), bos="</s>")
    sizes = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 128}
    return hf.LlamaConfig(vocab_size=len(tokenizer), **sizes, tie_word_embeddings="Llama" not in name), tokenizer


def vision_of(name: str) -> tuple[Any, Any]:
    side, patch = (42, 14) if "336" in name else (28, 14) if "14" in name or "dinov2" in name else (32, 16)
    size = {"height": side, "width": side}
    sizes = {**SIZES, "image_size": side, "patch_size": patch}
    if "starter" in name:
        return VISION_CONFIGS["efficientnet"](), hf.EfficientNetImageProcessorPil(size={"height": 64, "width": 64})
    if "dinov2" in name:
        return hf.Dinov2Config(**sizes, mlp_ratio=2), hf.BitImageProcessor(size={"shortest_edge": side}, crop_size=size)
    if "siglip" in name:
        return hf.SiglipVisionConfig(**sizes, intermediate_size=48), hf.SiglipImageProcessor(size=size)
    clip = hf.CLIPVisionConfig(**sizes, intermediate_size=48)
    return clip, hf.CLIPImageProcessor(size={"shortest_edge": side}, crop_size=size)


def save_model(folder: Path, name: str, *, is_language: bool) -> str:
    """Save a random model of the kind that a name stands for, with what prepares its inputs."""
    place = folder / name.replace(":", "-").replace("/", "-")
    if not place.exists():
        config, prepares = language_of(name) if is_language else vision_of(name)
        torch.manual_seed(0)
        if name == "starter:vision":
            made = bare_vision("efficientnet")  # whose statistics let an image through
        else:
            made = (hf.AutoModelForCausalLM if is_language else hf.AutoModel).from_config(config)
        made.save_pretrained(place)
        prepares.save_pretrained(place)
    return str(place)


def save_m3it(folder: Path) -> str:
    """Save a few rows of every English task of M3IT in the form that docs/export_m3it.py writes."""
    for task in tasks_of("all-english-images"):
        for split, number in (("train", 2), ("validation", 3)):
            (folder / task).mkdir(parents=True, exist_ok=True)
            rows = [m3it_row(f"{task} {split}", index) for index in range(number)]
            (folder / task / f"{split}.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return str(folder)


def m3it_row(name: str, index: int) -> dict[str, Any]:
    word, colour = list(COLOURS.items())[index % len(COLOURS)]
    image = Image.new("RGB", (24, 24), (colour[0], colour[1], (sum(name.encode()) * 7 + index) % 256))
    image.save(buffer := BytesIO(), "PNG")
    encoded = base64.b64encode(buffer.getvalue()).decode()
    question = "" if "coco " in name else "Which colour?"
    return {"instruction": "Look.", "inputs": question, "image_base64_str": [encoded], "outputs": f"a {word} cat"}


def save_easy_vqa(folder: Path) -> str:
    """Save sixteen images with five questions each in easy-VQA's layout."""
    (folder / "train" / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(16):
        word, colour = list(COLOURS.items())[number % len(COLOURS)]
        Image.new("RGB", (64, 64), colour).save(folder / "train" / "images" / f"{number}.png")
        rows += [[f"is the shape {other}?", "yes" if other == word else "no", number] for other in COLOURS]
        rows.append(["what color is the shape?", word, number])
    (folder / "train" / "questions.json").write_text(json.dumps(rows))
    return str(folder)


VISIONS = (
    *("openai/clip-vit-base-patch16", "openai/clip-vit-large-patch14-336", "openai/clip-vit-large-patch14"),
    *("google/siglip-base-patch16-224", "facebook/dinov2-base", "starter:vision"),
)
LANGUAGES = (
    *("facebook/opt-350m", "facebook/opt-6.7b", "meta-llama/Llama-2-7b-chat-hf", "mosaicml/mpt-7b"),
    "starter:language",
)


def localised(name: str, folder: Path) -> Path:
    """Write a shipped experiment, and the recipe it begins with, with names and paths of tiny things in their place."""
    data = {"~/m3it": save_m3it(folder / "m3it"), "starter:easy_vqa": save_easy_vqa(folder / "easy_vqa")}
    written = folder / f"{name}.yaml"
    for source, target in (
        (RECIPES.parent / "easy_vqa.yaml", folder / "easy_vqa.yaml"),
        (RECIPES / f"{name}.yaml", written),
    ):
        text = source.read_text().replace("base: easy_vqa", "base: easy_vqa.yaml")
        for kind, names in ((False, VISIONS), (True, LANGUAGES)):
            for each in (each for each in names if each in text):
                text = text.replace(each, save_model(folder, each, is_language=kind))
        for before, after in data.items():
            text = text.replace(before, after)
        target.write_text(text)
    return written
