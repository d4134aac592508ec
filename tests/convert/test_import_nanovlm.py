"""A nanoVLM folder becomes a model folder that says what a plain implementation says; others are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.convert.plain_nanovlm import PlainNanoVlm, save_nanovlm
from tests.data.made_tokenizers import TOKENIZERS
from visgraft import Processor, Sample, Turn, VisionLanguageModel
from visgraft.convert.importing import import_model
from visgraft.errors import CheckpointError
from visgraft.inference import answer

IMAGE = Image.new("RGB", (32, 32), (200, 30, 30))
CHAT = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
INSIDE = {"vlm_extra_tokens": {"image_token": "<|image|>"}, "mp_image_token_length": 4, "lm_chat_template": CHAT}


def save(folder: Path, **settings: Any) -> tuple[Path, Any]:
    tokenizer = TOKENIZERS["qwen without bos"]()
    tokenizer.save_pretrained(folder / "tokenizer")
    size = len(tokenizer) + len(settings.get("vlm_extra_tokens", {}))
    return save_nanovlm(folder / "nano", vocab_size=size, lm_tokenizer=str(folder / "tokenizer"), **settings), tokenizer


def said(plain: PlainNanoVlm, pixels: torch.Tensor, before: list[int], behind: list[int], *, number: int) -> list[int]:
    """Answer greedily."""
    new: list[int] = []
    for _ in range(number):
        new.append(int(plain.logits(pixels, before=before, behind=[*behind, *new])[-1].argmax()))
    return new


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("settings", [{}, INSIDE], ids=["image in front", "image inside the text"])
def test_logits_and_greedy_tokens_are_those_of_a_plain_implementation(
    settings: dict[str, Any], tied: bool, tmp_path: Path
) -> None:
    folder, tokenizer = save(tmp_path, lm_tie_weights=tied, **settings)
    report = import_model(folder, tmp_path / "model")
    assert (report.model_type, report.num_image_tokens, report.image_attention) == ("nanovlm", 4, "causal")
    model, processor = VisionLanguageModel.from_pretrained(report).eval(), Processor.from_pretrained(report.folder)
    inputs = processor(images=IMAGE, text="What is it?")
    plain = PlainNanoVlm(folder)
    pixels = torch.tensor(np.array(IMAGE)).permute(2, 0, 1) / 255  # values from 0 to 1, as nanoVLM's
    torch.testing.assert_close(inputs["pixel_values"][0], pixels)
    if settings:
        before, behind = tokenizer.encode("<|im_start|>user\n"), "What is it?<|im_end|>\n<|im_start|>assistant\n"
    else:
        before, behind = [], "Question: What is it? Answer:"
    assert inputs["input_ids"][0].tolist() == tokenizer.encode(behind)
    with torch.no_grad():
        found = model(**inputs).logits[0]
    expected = plain.logits(pixels, before=before, behind=tokenizer.encode(behind))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    told = said(plain, pixels, before, tokenizer.encode(behind), number=6)
    ids = model.generate(**inputs, max_new_tokens=6, do_sample=False, eos_token_id=None)
    assert ids[0, inputs["input_ids"].shape[1] :].tolist() == told
    [text] = answer(model, processor, [Sample([IMAGE], [[Turn("What is it?", "")]])], max_new_tokens=6)
    end = told.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in told else len(told)
    assert text == tokenizer.decode(told[:end], skip_special_tokens=True).strip()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"max_img_size": 64}, "cuts images into squares of a grid"),
        ({"vlm_extra_tokens": {"image_token": "<|image|>", "r1c1": "<row_1_col_1>"}}, "cuts images into squares"),
        ({"vit_cls_flag": True}, "class token alone"),
        ({"lm_use_tokens": True}, "takes tokens alone"),
        ({"lm_attn_scaling": 2.0}, "rotary embedding is scaled"),
    ],
)
def test_one_that_computes_something_else_is_refused(settings: dict[str, Any], reason: str, tmp_path: Path) -> None:
    folder, _ = save(tmp_path, **settings)
    with pytest.raises(CheckpointError, match=reason):
        import_model(folder, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_every_tensor_is_accounted_for(tmp_path: Path) -> None:
    folder, _ = save(tmp_path)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "decoder.extra": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="1 tensors of LlamaForCausalLM are too many: extra"):
        import_model(folder, tmp_path / "model")
    save_file({key: value for key, value in tensors.items() if key != "MP.proj.weight"}, path)
    with pytest.raises(CheckpointError, match=r"1 tensors of Projection are missing: linear\.weight"):
        import_model(folder, tmp_path / "model")
    save_file({**tensors, "MP.proj.weight": torch.zeros(32, 5)}, path)
    with pytest.raises(CheckpointError, match=r"linear.weight of the Projection is \[32, 5\]"):
        import_model(folder, tmp_path / "model")
    path.write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="cannot be read"):
        import_model(folder, tmp_path / "model")


def test_a_config_that_lacks_a_size_is_refused(tmp_path: Path) -> None:
    folder, _ = save(tmp_path)
    values = json.loads((folder / "config.json").read_text())
    del values["vit_n_heads"]
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="lacks vit_n_heads"):
        import_model(folder, tmp_path / "model")


def test_a_tokenizer_is_needed_only_where_images_stand_inside_the_text(tmp_path: Path) -> None:
    folder, _ = save(tmp_path)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "lm_tokenizer": str(tmp_path / "gone")}))
    report = import_model(folder, tmp_path / "model")
    assert "imported as a model alone" in report.notes[0]
    (folder / "config.json").write_text(json.dumps({**values, **INSIDE, "lm_tokenizer": str(tmp_path / "gone")}))
    with pytest.raises(CheckpointError, match="gone is needed, as the image stands inside the text"):
        import_model(folder, tmp_path / "other")
