"""A model with image placeholders in its text says what the prefix form says; what cannot have them is refused."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from base64 import b64encode
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, CLIPVisionModel

from tests.data.made_tokenizers import TOKENIZERS
from tests.tiny import bare_language, fresh, randomise
from tests.training.tiny import save_parts
from tests.warm_python import warm_python
from visgraft import Processor, VisionLanguageModel
from visgraft.convert.llava import ExportRefusedError, chat_template
from visgraft.convert.placeholders import export_placeholders, to_placeholders, why_no_placeholders
from visgraft.data.prompt import NAMED_TEMPLATES

IMAGE = Image.new("RGB", (40, 30), (200, 30, 30))
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FAMILIES = ("llama", "qwen3", "gemma3", "mistral", "phi3", "gpt_neox")


def put(ids: torch.Tensor, token_id: int, number: int) -> torch.Tensor:
    return torch.cat([torch.full((ids.shape[0], number), token_id), ids], 1)


@pytest.mark.parametrize("image_attention", ["bidirectional", "causal"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_prefix_form(family: str, image_attention: str) -> None:
    model = fresh(family, "clip", image_attention=image_attention).eval()
    ids = torch.randint(3, 90, (2, 9), generator=torch.Generator().manual_seed(0))
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 9, dtype=torch.long)
    with torch.no_grad():
        expected = model(input_ids=ids, pixel_values=pixels, attention_mask=mask).logits
        number = model.projection.num_tokens
        told = model.generate(
            input_ids=ids, pixel_values=pixels, attention_mask=mask, max_new_tokens=5, do_sample=False
        )
        exported = to_placeholders(model, token_id=95)
        whole = put(ids, 95, number)
        found = exported(input_ids=whole, pixel_values=pixels).logits
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), whole], 1)  # pads on the left change nothing
        is_real = torch.cat([torch.zeros(2, 3), torch.ones_like(whole)], 1).long()
        found = exported(input_ids=padded, attention_mask=is_real, pixel_values=pixels).logits[:, 3:]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        settings = {"max_new_tokens": 5, "do_sample": False, "suppress_tokens": None}
        said = exported.generate(input_ids=padded, attention_mask=is_real, pixel_values=pixels, **settings)
    assert said[:, padded.shape[1] :].tolist() == told[:, ids.shape[1] :].tolist()


def save_model(folder: Path, *, template: str = "question", chat: str | None = None, **settings: Any) -> Path:
    vision, language = save_parts(folder)
    model = VisionLanguageModel.from_parts(vision, language, **settings)
    randomise(model, seed=2)
    tokenizer = TOKENIZERS["opt, llama 3"]()
    tokenizer.chat_template = chat
    tokenizer.save_pretrained(language)
    processor = Processor.from_parts(vision, language, template=template)
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    return folder / "model"


CODE = """
import sys, torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
parts = [{"type": "text", "text": "What is it?"}, {"type": "image", "image": Image.new("RGB", (40, 30), (200, 30, 30))}]
inputs = processor.apply_chat_template(
    [{"role": "user", "content": parts}], add_generation_prompt=True, tokenize=True, return_dict=True,
    return_tensors="pt",
)
print(model.generate(**inputs, max_new_tokens=6, do_sample=False)[0].tolist())
assert "visgraft" not in sys.modules
"""


@pytest.mark.slow
@pytest.mark.parametrize(("template", "chat"), [("question", None), ("chat", CHATML)])
def test_the_folder_says_what_the_model_said_without_visgraft(template: str, chat: str | None, tmp_path: Path) -> None:
    folder = save_model(tmp_path, template=template, chat=chat)
    assert export_placeholders(folder, tmp_path / "out") == []
    model, processor = VisionLanguageModel.from_pretrained(folder), Processor.from_pretrained(folder)
    inputs = processor(images=IMAGE, text="What is it?")
    expected = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0].tolist()
    found = subprocess.run(
        [*warm_python(), "-c", CODE, str(tmp_path / "out")], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    ids = json.loads(found.stdout.strip().splitlines()[-1])
    assert len(set(ids[: model.projection.num_tokens])) == 1
    assert ids[model.projection.num_tokens :] == expected


def test_the_folder_has_what_servers_ask_of_a_vision_model(tmp_path: Path) -> None:
    folder = save_model(tmp_path)
    export_placeholders(folder, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["is_mm_prefix_lm"] is True
    assert (
        config["vision_config"]["model_type"] == "clip_vision_model" and config["text_config"]["model_type"] == "llama"
    )
    assert {"AutoConfig", "AutoModel", "AutoModelForImageTextToText"} <= config["auto_map"].keys()
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert model.config.image_token_id == processor.image_token_id == model.config.image_token_index
    assert model.config.get_text_config().vocab_size > processor.image_token_id
    counted = processor._get_num_multimodal_tokens(image_sizes=[(30, 40), (600, 20)])
    assert counted["num_image_tokens"] == [5, 5] and counted["num_image_patches"] == [1, 1]
    inputs = processor(
        images=[IMAGE], text=[f"{processor.image_token} a cat"], return_tensors="pt", return_mm_token_type_ids=True
    )
    assert inputs["mm_token_type_ids"].sum() == 5
    features = model.get_image_features(inputs["pixel_values"]).pooler_output
    assert len(features) == 1 and features[0].shape == (5, 32)
    assert type(model.get_encoder(modality="image")).__name__ == CLIPVisionModel.__name__
    assert type(model.model.language_model).__name__ == "LlamaModel"
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    positions = torch.arange(embeds.shape[1])[None]  # as a server that has attention of its own calls it
    states = model.model(input_ids=None, inputs_embeds=embeds, position_ids=positions, use_cache=False)
    assert states.last_hidden_state.shape == embeds.shape


def test_numbers_of_images_and_placeholders_must_agree(tmp_path: Path) -> None:
    export_placeholders(save_model(tmp_path), tmp_path / "out")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(tmp_path / "out", trust_remote_code=True)
    with pytest.raises(Exception, match="got 1 images and 2 times '<image>' in the text"):
        processor(images=IMAGE, text="<image><image> a cat")
    pixels = processor(images=IMAGE, text="<image>", return_tensors="pt")["pixel_values"]
    with pytest.raises(Exception, match="the text has 1 placeholders, the images 5 tokens"):
        model(input_ids=torch.tensor([[model.config.image_token_id, 3]]), pixel_values=pixels)
    with pytest.raises(Exception, match="needs input_ids or inputs_embeds"):
        model()


@pytest.mark.parametrize(
    ("family", "settings", "said"),
    [
        ("bloom", {}, "bloom has ALiBi"),
        ("mpt", {}, "mpt has ALiBi"),
        ("qwen3_5", {}, "carries states from token to token"),
        ("llama", {"num_frames": 2}, "temporal embeddings, which depend on the number of images"),
        ("llama", {"tiles": {"max": 4}}, "cuts images into tiles"),
        ("opt", {"prefix_at": "first_layer"}, "image tokens take no positions"),
        ("opt_post_norm", {}, "embeddings are narrower than its layers"),
        ("gptj", {}, "its head has a bias"),
    ],
)
def test_what_cannot_have_placeholders_is_refused(family: str, settings: dict[str, Any], said: str) -> None:
    settings = dict(settings)
    place = {key: settings.pop(key) for key in list(settings) if key == "prefix_at"}
    model = fresh(family, "clip", **settings)
    model.config.update(place)
    assert any(said in reason for reason in why_no_placeholders(model))


def test_a_refusal_leaves_nothing_behind(tmp_path: Path) -> None:
    vision, _ = save_parts(tmp_path)
    model = VisionLanguageModel.from_parts(CLIPVisionModel.from_pretrained(vision), bare_language("bloom"))
    model.save_pretrained(tmp_path / "model", full=True)
    with pytest.raises(ExportRefusedError, match="cannot have image placeholders: bloom has ALiBi"):
        export_placeholders(tmp_path / "model", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_a_model_does_behind_its_head_is_refused_by_its_logits(tmp_path: Path) -> None:
    vision, _ = save_parts(tmp_path)
    model = VisionLanguageModel.from_parts(CLIPVisionModel.from_pretrained(vision), bare_language("gemma2"))
    model.save_pretrained(tmp_path / "model", full=True)
    with pytest.raises(ExportRefusedError, match="leave out something that Gemma2ForCausalLM does"):
        export_placeholders(tmp_path / "model", tmp_path / "out")


@pytest.mark.parametrize("template", [name for name in NAMED_TEMPLATES if name != "chat"])
def test_every_named_template_becomes_a_chat_template(template: str) -> None:
    assert "<image>" in (chat_template(template, start="<s>", end="</s>") or "")


@pytest.mark.slow
def test_transformers_serves_it(tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    folder = save_model(tmp_path)
    export_placeholders(folder, tmp_path / "out")
    model, processor = VisionLanguageModel.from_pretrained(folder), Processor.from_pretrained(folder)
    inputs = processor(images=IMAGE, text="What is it?")
    ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    expected = processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    code = "from transformers.cli.transformers import main; main()"
    place = str(tmp_path / "out")
    command = [*warm_python(), "-c", code, "serve", place, "--host", "127.0.0.1", "--port", str(port)]
    with (tmp_path / "log").open("w") as log:
        served = subprocess.Popen([*command, "--trust-remote-code"], stdout=log, stderr=log)
    try:
        answer = _ask(port, place, served, log=tmp_path / "log")
    finally:
        served.terminate()
        served.wait(30)
    assert answer.strip() == expected


def _ask(port: int, name: str, served: subprocess.Popen[bytes], *, log: Path) -> str:
    encoded = BytesIO()
    IMAGE.save(encoded, format="PNG")
    url = "data:image/png;base64," + b64encode(encoded.getvalue()).decode()
    content = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": url}}]
    body = {"model": name, "messages": [{"role": "user", "content": content}], "max_tokens": 6, "temperature": 0}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    end = time.monotonic() + 90
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(request, timeout=90) as response:
                return str(json.load(response)["choices"][0]["message"]["content"])
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode() + log.read_text()[-3000:]) from error
        except (urllib.error.URLError, ConnectionError):
            assert served.poll() is None, log.read_text()[-3000:]
            time.sleep(0.3)
    raise AssertionError(log.read_text()[-3000:])
