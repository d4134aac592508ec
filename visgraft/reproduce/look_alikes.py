"""What a rehearsal runs on: tiny random models of the families that the article names, and rows in the form of M3IT.

In: an empty folder. Out: a checkpoint for each model, with a tokenizer that does to texts what theirs does; a folder
per task. Everything is made here, in a second; nothing is fetched, and nothing can be learned from it.

    folders = make_models(folder)           # {"facebook/opt-6.7b": ".../opt-6.7b", ...}
    make_rows(folder / "m3it")
"""

from __future__ import annotations

import base64
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    MptConfig,
    MptForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from visgraft.atomic import whole_file, whole_folder
from visgraft.reproduce.article import LARGE_LANGUAGES, MODELS, NEEDED, SMALL_LANGUAGE, VISION

SIDE, PATCH, POSITIONS = 32, 16, 2048
SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
END = "<|endoftext|>"  # the one special token of GPT-NeoX, whose tokenizer MPT has
ROWS = {"train": 6, "validation": 8, "test": 4}
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 220), "grey": (128, 128, 128)}


def make_models(folder: Path) -> dict[str, str]:
    """Make what stands in the place of each model that the article names: its name -> a folder; once."""
    made = {}
    for name in MODELS:
        target = folder / name.rpartition("/")[2]
        if not target.is_dir():
            torch.manual_seed(0)
            model, prepares = _vision() if name == VISION else _language(name)
            with whole_folder(target) as building:
                model.save_pretrained(building)
                prepares.save_pretrained(building)
        made[name] = str(target)
    return made


def _vision() -> tuple[PreTrainedModel, CLIPImageProcessor]:
    config = CLIPVisionConfig(**SIZES, intermediate_size=48, image_size=SIDE, patch_size=PATCH)
    crop = {"height": SIDE, "width": SIDE}
    return CLIPVisionModel(config), CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=crop)


def _language(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    opt, llama, mpt = LARGE_LANGUAGES
    if name in (SMALL_LANGUAGE, opt):  # OPT-350m alone has narrow embeddings, and its norms behind
        tokenizer = _byte_level(["<pad>", "</s>", "<unk>"], before="</s>", bos="</s>", eos="</s>", pad="<pad>")
        narrow = {"word_embed_proj_dim": 16, "do_layer_norm_before": False} if name == SMALL_LANGUAGE else {}
        sizes: dict[str, Any] = {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32, **narrow}
        sizes |= {"max_position_embeddings": POSITIONS, **_ids(tokenizer)}
        return OPTForCausalLM(OPTConfig(**sizes)), tokenizer
    if name == mpt:
        tokenizer = _byte_level([END], bos=END, eos=END)
        config = MptConfig(d_model=32, n_heads=4, n_layers=2, max_seq_len=POSITIONS, **_ids(tokenizer))
        return MptForCausalLM(config), tokenizer
    assert name == llama
    tokenizer = _sentence_piece()
    shape: dict[str, Any] = {**SIZES, "intermediate_size": 48, "max_position_embeddings": POSITIONS}
    return LlamaForCausalLM(LlamaConfig(**shape, **_ids(tokenizer))), tokenizer


def _ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {"vocab_size": len(tokenizer), **{name: getattr(tokenizer, name) for name in names}}


def _byte_level(
    special: list[str], *, before: str | None = None, bos: str, eos: str, pad: str | None = None
) -> PreTrainedTokenizerFast:
    """A token for each byte, as the byte-level tokenizers have before they merge any; perhaps one before every text."""
    words = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _wrapped(tokenizer, before=before, bos_token=bos, eos_token=eos, pad_token=pad)


def _sentence_piece() -> PreTrainedTokenizerFast:
    """Llama 2's form: a space in front of every text, a mark for each space, bytes for what has no token."""
    letters = ["▁", *(chr(code) for code in range(33, 127))]
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return _wrapped(tokenizer, before="<s>", bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _wrapped(tokenizer: Tokenizer, *, before: str | None, **special: str | None) -> PreTrainedTokenizerFast:
    given = {name: token for name, token in special.items() if token is not None}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **given)
    if before is not None:
        pair = [(before, fast.convert_tokens_to_ids(before))]
        fast.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{before} $A", special_tokens=pair
        )
    return fast


# --- M3IT


def make_rows(folder: Path) -> Path:
    """Write a few rows of every task and split that something reads, as docs/export_m3it.py does; once."""
    for task, splits in NEEDED.items():
        for split in splits:
            path = folder / task / f"{split}.jsonl"
            if not path.is_file():
                rows = [_row(task, split, number) for number in range(ROWS[split])]
                with whole_file(path) as building:
                    building.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def _row(task: str, split: str, number: int) -> dict[str, Any]:
    """A plain colour, a little different in every row of the whole, as no image may be in two splits."""
    word, (red, green, _) = list(COLOURS.items())[number % len(COLOURS)]
    own = (list(NEEDED).index(task) * 31 + list(ROWS).index(split) * 85 + number * 7) % 256
    image = Image.new("RGB", (24, 24), (red, green, own))
    image.putpixel((0, 0), (list(NEEDED).index(task), list(ROWS).index(split), number))
    image.save(buffer := BytesIO(), "PNG")
    instruction, question = ("Describe the image.", "") if task == "coco" else ("Answer.", "Which colour?")
    answer = f"a {word} wall" if task == "coco" else word
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return {"instruction": instruction, "inputs": question, "image_base64_str": [encoded], "outputs": answer}
