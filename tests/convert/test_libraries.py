"""transformers' trainer, peft, torch.export and generation settings, on ours as on any model of theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, TaskType, get_peft_model
from torch import Tensor
from transformers import GenerationConfig, Trainer, TrainingArguments

from tests.tiny import fresh, joined, random_ids, random_pixels
from visgraft.errors import ModelError

LORA = {"r": 4, "target_modules": ["language.model.layers.0.self_attn.q_proj"]}


def rows(number: int) -> list[dict[str, Tensor]]:
    """Make rows whose labels differ in number, so that a mean of means is another loss than the mean."""
    made = []
    for index in range(number):
        ids = random_ids(7, seed=index)
        labels = ids.clone()
        labels[: 1 + index] = -100 if index else labels[0]  # one labels its first token, which is never a target
        made.append({"input_ids": ids, "pixel_values": random_pixels(seed=index), "labels": labels})
    return made


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_trainer_takes_the_mean_over_the_targets_of_a_whole_step(accumulation: int, tmp_path: Path) -> None:
    model, data = fresh().train(), rows(4)
    model.requires_grad_(False)
    model.projection.requires_grad_(True)
    stacked = {name: torch.stack([row[name] for row in data]) for name in data[0]}
    expected = float(model(**stacked).loss)
    settings = TrainingArguments(
        str(tmp_path), max_steps=1, per_device_train_batch_size=4 // accumulation, report_to=[], use_cpu=True,
        gradient_accumulation_steps=accumulation, logging_steps=1, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model, settings, train_dataset=data)  # type: ignore[arg-type]
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, abs=1e-4)
    made = trainer.predict(data[:2])  # type: ignore[arg-type]
    assert made.predictions.shape == (2, 5 + 7, 96), "logits alone"


@pytest.mark.parametrize("task", [None, *TaskType])
def test_peft_takes_every_kind_of_task(task: TaskType | None) -> None:
    ids, pixels = random_ids(2, 7, seed=1), random_pixels(2)
    inputs = {"input_ids": ids, "pixel_values": pixels, "attention_mask": torch.ones_like(ids), "labels": ids}
    expected = joined()(**inputs)
    tuned = get_peft_model(fresh(), LoraConfig(task_type=task, **LORA))
    output = tuned(**inputs)
    assert torch.equal(output.logits, expected.logits)
    output.loss.backward()
    assert any(p.grad is not None and p.grad.any() for p in tuned.parameters())
    assert tuned.generate(input_ids=ids, pixel_values=pixels, max_new_tokens=2, eos_token_id=None).shape == (2, 9)


def test_prefix_tuning_is_refused_as_its_cache_stands_where_the_image_must() -> None:
    tuned = get_peft_model(fresh(), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(ModelError, match="peft's prefix tuning fills the cache first"):
        tuned(input_ids=random_ids(2, 7), pixel_values=random_pixels(2))


@pytest.mark.slow
def test_forward_is_exported_on_fixed_shapes() -> None:
    model, ids = joined(), random_ids(2, 7, seed=1)
    inputs: dict[str, Any] = {
        "input_ids": ids, "pixel_values": random_pixels(2), "attention_mask": torch.ones_like(ids),
    }  # fmt: skip
    with torch.no_grad():
        exported = torch.export.export(model, (), inputs, strict=False).module()
        for seed in (1, 2):
            inputs["pixel_values"] = random_pixels(2, seed=seed)
            torch.testing.assert_close(exported(**inputs).logits, model(**inputs).logits, atol=1e-5, rtol=0)


def test_the_stop_token_of_the_template_is_in_every_saved_generation_config(tmp_path: Path) -> None:
    model = fresh()
    model.stop_also_at(42)
    for full in (False, True):
        model.save_pretrained(tmp_path / str(full), full=full)
        saved = sorted((tmp_path / str(full)).rglob("generation_config.json"))
        assert saved
        for path in saved:
            stops = GenerationConfig.from_pretrained(path.parent).eos_token_id
            assert 42 in ([stops] if isinstance(stops, int) else stops), path
