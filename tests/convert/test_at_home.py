"""A saved folder is at home in transformers, peft and trl: Auto classes, pipeline, messages, adapters, a trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    pipeline,
)

from tests.tiny import randomise
from tests.training.tiny import save_parts
from visgraft import Processor, VisionLanguageModel
from visgraft.config import LoraSettings
from visgraft.data.prompt import encode_dialog
from visgraft.data.sample import Turn
from visgraft.model.configuration import VisionLanguageConfig
from visgraft.model.lora import add_lora, find_lora_targets

IMAGE = Image.new("RGB", (40, 30), (200, 30, 30))
MESSAGES = [
    {"role": "user", "content": [{"type": "image", "image": IMAGE}, {"type": "text", "text": "What is it?"}]},
]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return save_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def folder(parts: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    model = VisionLanguageModel.from_parts(*parts)
    randomise(model.projection, seed=2)
    model.save_pretrained(folder)
    Processor.from_parts(*parts).save_pretrained(folder)
    return folder


def test_the_auto_classes_know_the_folder(folder: Path) -> None:
    assert isinstance(AutoConfig.from_pretrained(folder), VisionLanguageConfig)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16)
    assert isinstance(model, VisionLanguageModel)
    assert model.dtype == torch.bfloat16
    assert AutoModelForImageTextToText.from_pretrained(folder, torch_dtype="float32").dtype == torch.float32
    assert isinstance(AutoProcessor.from_pretrained(folder), Processor)


def test_the_pipeline_answers_texts_and_messages(folder: Path) -> None:
    answer = pipeline("image-text-to-text", model=str(folder))
    plain = answer(text="What is it?", images=IMAGE, max_new_tokens=5)[0]["generated_text"]
    assert plain.startswith("What is it?")
    by_message = answer(text=MESSAGES, max_new_tokens=5, return_full_text=False)[0]["generated_text"]
    assert plain == f"What is it?{by_message}"
    several = answer(text=[MESSAGES, MESSAGES], max_new_tokens=5, return_full_text=False)
    assert [one[0]["generated_text"] for one in several] == [by_message] * 2


def test_messages_are_what_texts_and_images_are(folder: Path) -> None:
    processor = AutoProcessor.from_pretrained(folder)
    by_message = processor.apply_chat_template(MESSAGES, tokenize=True, return_dict=True, return_tensors="pt")
    plain = processor(images=IMAGE, text="What is it?")
    assert by_message.keys() == plain.keys()
    assert all(torch.equal(by_message[name], plain[name]) for name in plain)


def test_shards_are_written_and_read(folder: Path, tmp_path: Path) -> None:
    model = VisionLanguageModel.from_pretrained(folder)
    model.save_pretrained(tmp_path, full=True, max_shard_size="20KB")
    assert len(list((tmp_path / "language").glob("model-*.safetensors"))) > 1
    inputs = Processor.from_pretrained(folder)(images=IMAGE, text="What is it?")
    assert torch.equal(VisionLanguageModel.from_pretrained(tmp_path)(**inputs).logits, model(**inputs).logits)


def test_an_adapter_is_loaded_by_peft_itself(parts: tuple[str, str], tmp_path: Path) -> None:
    model = VisionLanguageModel.from_parts(*parts)
    add_lora(model.language, LoraSettings(r=4), targets=find_lora_targets(model.language, part="language"))
    for name, parameter in model.language.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.eval().save_pretrained(tmp_path)
    bare = AutoModelForCausalLM.from_pretrained(parts[1])
    ids = torch.arange(3, 12)[None]
    before = bare(input_ids=ids).logits
    tuned = PeftModel.from_pretrained(bare, str(tmp_path / "language_lora"))
    assert not torch.allclose(tuned(input_ids=ids).logits, before, atol=1e-3)
    torch.testing.assert_close(tuned(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("start", ["parts", "folder"])
def test_a_quantization_config_and_a_device_map_reach_the_language_model_alone(
    start: str, parts: tuple[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, Any, Any]] = []
    from transformers import modeling_utils

    real = modeling_utils.PreTrainedModel.from_pretrained.__func__

    def watched(cls: type, *args: Any, **kwargs: Any) -> Any:
        seen.append((cls.__name__, kwargs.pop("quantization_config", None), kwargs.get("device_map")))
        return real(cls, *args, **kwargs)

    monkeypatch.setattr(modeling_utils.PreTrainedModel, "from_pretrained", classmethod(watched))
    quantization = BitsAndBytesConfig(load_in_8bit=True)
    settings: dict[str, Any] = {"quantization_config": quantization, "device_map": {"": "cpu"}}
    if start == "parts":
        VisionLanguageModel.from_parts(*parts, **settings)
    else:
        VisionLanguageModel.from_pretrained(folder, **settings)
    assert ("LlamaForCausalLM", quantization, {"": "cpu"}) in seen
    assert ("CLIPVisionModel", None, None) in seen


def test_trl_takes_one_step(folder: Path, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="trl is not installed")
    from datasets import Dataset

    model = VisionLanguageModel.from_pretrained(folder)
    model.projection.requires_grad_(True)
    processor = Processor.from_pretrained(folder)
    before = model.projection.linear.weight.detach().clone()

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        inputs = processor(images=[IMAGE] * len(rows), text=[row["prompt"] for row in rows])
        return {**inputs, "labels": inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)}

    settings = trl.SFTConfig(
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    rows = Dataset.from_list([{"prompt": "What is it?"}, {"prompt": "Which colour?"}])
    trainer = trl.SFTTrainer(
        model=model, args=settings, train_dataset=rows, data_collator=collate, processing_class=processor
    )
    trainer.train()
    assert not torch.equal(before, model.projection.linear.weight)


TRL_ROWS = {
    "messages": {
        "messages": [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A cat."}],
    },
    "prompt and completion": {
        "prompt": [{"role": "user", "content": "What is it?"}],
        "completion": [{"role": "assistant", "content": "A cat."}],
    },
}


@pytest.mark.parametrize("kind", TRL_ROWS)
def test_trl_trains_on_its_own_data_path_for_images_with_the_tokens_of_training(
    kind: str, folder: Path, tmp_path: Path
) -> None:
    trl = pytest.importorskip("trl", reason="trl is not installed")
    from datasets import Dataset

    model, processor = VisionLanguageModel.from_pretrained(folder), Processor.from_pretrained(folder)
    model.requires_grad_(False)
    model.projection.requires_grad_(True)
    settings = trl.SFTConfig(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=2, report_to=[], use_cpu=True, bf16=False,
        gradient_checkpointing=False, max_length=None, logging_steps=1,
    )  # fmt: skip
    row = {"images": [IMAGE], **TRL_ROWS[kind]}
    trainer = trl.SFTTrainer(
        model=model, args=settings, train_dataset=Dataset.from_list([row] * 2), processing_class=processor
    )
    batch = trainer.data_collator([dict(row)])
    dialog = encode_dialog(processor.tokenizer, processor.prompt_template, [Turn("What is it?", "A cat.")])
    assert tuple(batch["input_ids"][0].tolist()) == dialog.input_ids
    if kind != "messages":
        assert (batch["labels"][0] != -100).tolist() == list(dialog.supervised)
    before = model.projection.linear.weight.detach().clone()
    trainer.train()
    assert not torch.equal(before, model.projection.linear.weight)
