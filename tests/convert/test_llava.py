"""A model that LLaVA can hold becomes a plain folder of transformers; others are refused with the reasons."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.convert.test_merge import with_lora
from tests.tiny import fresh, randomise
from tests.training.tiny import save_parts
from tests.warm_python import warm_python
from visgraft import Processor, VisionLanguageModel
from visgraft.convert import llava
from visgraft.convert.llava import ExportRefusedError, chat_template, export_llava, why_not

SETTINGS = {"image_attention": "causal", "projection": {"type": "mlp"}}
IMAGE = Image.new("RGB", (40, 30), (200, 30, 30))
CODE = """
import sys, torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1]).eval()
processor = AutoProcessor.from_pretrained(sys.argv[1])
parts = [{"type": "text", "text": "What is it?"}, {"type": "image", "image": Image.new("RGB", (40, 30), (200, 30, 30))}]
inputs = processor.apply_chat_template(
    [{"role": "user", "content": parts}], tokenize=True, return_dict=True, return_tensors="pt"
)
tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False)
print(tokens[0].tolist())
assert "visgraft" not in sys.modules
"""


@pytest.mark.slow
@pytest.mark.parametrize("keep_class_token", [True, False])
def test_the_folder_says_what_the_model_said_without_visgraft(keep_class_token: bool, tmp_path: Path) -> None:
    vision, language = save_parts(tmp_path)
    model = VisionLanguageModel.from_parts(vision, language, keep_class_token=keep_class_token, **SETTINGS)
    randomise(model, seed=2)
    processor = Processor.from_parts(vision, language, keep_class_token=keep_class_token)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    assert export_llava(tmp_path / "model", tmp_path / "llava") == []
    inputs = processor(images=IMAGE, text="What is it?")
    expected = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0].tolist()
    found = subprocess.run(
        [*warm_python(), "-c", CODE, str(tmp_path / "llava")], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    ids = [int(word) for word in found.stdout.strip().strip("[]").split(",")]
    num_image = model.projection.num_tokens
    assert len(set(ids[:num_image])) == 1
    assert ids[num_image:] == expected


def test_lora_is_merged_on_the_way(tmp_path: Path) -> None:
    model = with_lora("language")
    mlp = fresh("llama", "clip", **SETTINGS)
    mlp.language = model.language
    mlp.save_pretrained(tmp_path / "model")
    notes = export_llava(tmp_path / "model", tmp_path / "llava")
    assert notes == ["the source has no processor: exported as a model alone"]
    assert not list((tmp_path / "llava").glob("*lora*"))


def test_what_llava_has_no_place_for_is_said_at_once(tmp_path: Path) -> None:
    fresh("llama", "clip", num_frames=2).save_pretrained(tmp_path / "model")
    message = (
        r"cannot be a LLaVA folder: its projection is a linear layer and a LayerNorm, LLaVA's is an MLP .*; its image "
        r"tokens see each other both ways, LLaVA's are causal .*; it has temporal embeddings for frames"
    )
    with pytest.raises(ExportRefusedError, match=message):
        export_llava(tmp_path / "model", tmp_path / "llava")
    assert not (tmp_path / "llava").exists()
    narrow = fresh("opt_post_norm", "clip", **SETTINGS)
    assert why_not(narrow) == ["its embeddings are narrower than its layers"]
    pooled = fresh("llama", "clip", image_attention="causal", projection={"type": "mlp", "pool": 2})
    assert why_not(pooled) == ["it pools or shuffles image tokens, LLaVA does not"]


def test_a_language_model_that_does_more_than_llava_is_refused(tmp_path: Path) -> None:
    fresh("cohere", "clip", **SETTINGS).save_pretrained(tmp_path / "model")  # scales its logits
    with pytest.raises(ExportRefusedError, match=r"logits would move by .*, as LLaVA leaves out something"):
        export_llava(tmp_path / "model", tmp_path / "llava")


def test_the_chat_template_frames_as_ours_does() -> None:
    assert chat_template("chat", start="", end="") is None  # the tokenizer has none
    assert "'##human: '" in (chat_template("heron", start="<s>", end="</s>") or "")
    assert llava.repr_literal("") == ""
    torch.manual_seed(0)
