"""YAML files of GIT-LLM and heron become recipes that load, with notes on what is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from visgraft.config import load_recipe
from visgraft.convert.git_llm_recipes import convert_recipe
from visgraft.data.readers.m3it_tasks import NAMED_SETS
from visgraft.errors import ConfigError

LORA = {
    "r": 16,
    "lora_alpha": 64,
    "target_modules": ["q_proj", "v_proj"],
    "lora_dropout": 0.01,
    "bias": "none",
    "task_type": "CAUSAL_LM",
}
TRAINING = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "num_train_epochs": 3,
    "dataloader_num_workers": 16,
    "fp16": True,
    "optim": "adamw_torch",
    "learning_rate": 5.0e-5,
    "eval_steps": 4000,
    "save_steps": 2000,
    "save_total_limit": 1,
    "deepspeed": "configs/ds_config_zero1.json",
    "output_dir": "./output/",
    "report_to": "wandb",
}
PARTS = {"vision_model_name": "openai/clip-vit-base-patch16", "num_image_with_embedding": None, "max_length": 512}


def git_llm() -> dict[str, Any]:
    keys = ["visual_projection", "num_image_with_embedding"]
    settings = {"model_name": "meta-llama/Llama-2-7b-chat-hf", **PARTS, "keys_finetune": keys}
    tasks = list(NAMED_SETS["git-llm"])
    return {"training": dict(TRAINING), "settings": settings, "use_lora": True, "lora": LORA, "dataset_type": tasks}


def heron() -> dict[str, Any]:
    model = {"model_type": "git_llm", "language_model_name": "facebook/opt-350m", **PARTS, "use_lora": True}
    model |= {"lora": LORA, "keys_to_finetune": ["visual_projection"], "num_image_with_embedding": 4}
    paths = ["./configs/datasets/m3it.yaml", "./configs/datasets/llava.yaml"]
    return {"training_config": dict(TRAINING), "model_config": model, "dataset_config_path": paths}


def written(path: Path, values: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values))
    return path


def test_git_llms_file_becomes_a_recipe_that_loads(tmp_path: Path) -> None:
    converted = convert_recipe(written(tmp_path / "exp050.yml", git_llm()))
    target = tmp_path / "recipe.yaml"
    target.write_text(converted.to_yaml())
    recipe = load_recipe(target)
    assert recipe == converted.recipe
    assert recipe.model.vision == "openai/clip-vit-base-patch16"
    assert recipe.model.language is not None
    assert recipe.model.language.name == "meta-llama/Llama-2-7b-chat-hf"
    assert (recipe.model.template, recipe.model.num_frames) == ("git-llm", 0)
    train = recipe.train
    assert (train.vision, train.projection, train.language, train.head) == ("frozen", "full", "lora", "frozen")
    lora = train.lora_of("language")
    assert (lora.r, lora.lora_alpha, lora.lora_dropout) == (16, 64, 0.01)
    assert lora.target_modules == ("q_proj", "v_proj")
    assert (train.epochs, train.learning_rate, train.schedule, train.precision) == (3, 5e-5, "constant", "fp16")
    assert (train.micro_batch_rows, train.text_tokens_per_step) == (2, 2 * 4 * 512)
    assert (train.checkpoint_every_steps, train.validate_every_steps, train.keep_checkpoints) == (2000, 4000, 1)
    assert recipe.data.max_text_tokens == 512
    assert [(one.source, one.split, one.options) for one in (*recipe.data.train, *recipe.data.validation)] == [
        ("m3it", "train", {"tasks": "git-llm"}),
        ("m3it", "validation", {"tasks": "git-llm"}),
    ]
    notes = " ".join(converted.notes)
    assert "WarmupLR, which stays at the top" in notes
    assert "num_image_with_embedding names no parameter of theirs" in notes
    assert "left out, without a counterpart: optim adamw_torch, report_to wandb" in notes


def test_herons_files_become_a_recipe(tmp_path: Path) -> None:
    path = written(tmp_path / "projects" / "opt" / "exp.yml", heron())
    written(tmp_path / "configs/datasets/m3it.yaml", {"dataset_type": "m3it", "dataset_names": ["coco", "gqa"]})
    llava = {"dataset_type": "llava_instruct", "dataset_root": "./", "jsonl_path": "l.json", "n_train": 99, "n_val": 1}
    written(tmp_path / "configs/datasets/llava.yaml", {**llava, "language": "en"})
    converted = convert_recipe(path)
    recipe = converted.recipe
    assert (recipe.model.template, recipe.model.num_frames) == ("heron", 4)
    assert recipe.data.train[0].options == {"tasks": ["coco", "gqa"]}
    assert (recipe.data.train[1].source, recipe.data.train[1].split) == ("llava", {"validation": 0.01})
    notes = " ".join(converted.notes)
    assert "heron's, by suffix, also reached the encoder" in notes
    assert "language 'en' was chosen among their files" in notes


def test_dataset_files_that_are_not_there_or_have_no_reader_are_noted(tmp_path: Path) -> None:
    values = heron()
    values["dataset_config_path"] = ["./ja.yaml", "./lost.yaml"]
    written(tmp_path / "ja.yaml", {"dataset_type": "japanese_csv", "dataset_names": ["coco"]})
    notes = convert_recipe(written(tmp_path / "exp.yml", values)).notes
    assert any(note.startswith("japanese_csv is left out: write its rows as a metadata.jsonl") for note in notes)
    assert any(note.startswith("./lost.yaml was not found: its data are left out") for note in notes)
    assert any(note.startswith("data.train is empty") for note in notes)


def test_what_trains_is_read_from_parameter_names(tmp_path: Path) -> None:
    values = heron()
    values["model_config"] |= {
        "use_lora": False,
        "keys_to_finetune": ["image_encoder", "lm_head", "layers.11.", "lora"],
    }
    train = convert_recipe(written(tmp_path / "a.yml", values)).recipe.train
    assert (train.vision, train.projection, train.head) == ("full", "frozen", "full")
    assert train.language == {"patterns": ["*layers.11.*"]}
    values["model_config"] |= {"keys_to_finetune": [], "keys_to_freeze": ["vision_tower"]}
    train = convert_recipe(written(tmp_path / "b.yml", values)).recipe.train
    assert (train.vision, train.projection, train.language) == ("frozen", "full", "full")


def test_schedules_and_formats_are_converted(tmp_path: Path) -> None:
    values = heron()
    values["training_config"] = {"lr_scheduler_type": "cosine_with_min_lr", "bf16": True, "warmup_steps": 7}
    values["training_config"] |= {"max_steps": 9, "adam_beta2": 0.95}
    converted = convert_recipe(written(tmp_path / "a.yml", values))
    train = converted.recipe.train
    assert (train.schedule, train.precision, train.warmup_steps, train.max_steps) == ("cosine", "bf16", 7, 9)
    assert train.betas == (0.9, 0.95)
    assert "schedule: cosine falls to 0 here, theirs to a smallest rate" in converted.notes
    values["training_config"] = {"lr_scheduler_type": "polynomial", "precision": "fp32"}
    converted = convert_recipe(written(tmp_path / "a.yml", values))
    assert (converted.recipe.train.schedule, converted.recipe.train.precision) == ("linear", "fp32")
    assert "schedule: 'polynomial' is not known here; linear is nearest" in converted.notes
    del values["training_config"]["lr_scheduler_type"]
    assert convert_recipe(written(tmp_path / "a.yml", values)).recipe.train.schedule == "linear"


def test_a_pretrained_path_is_where_the_recipe_starts_from(tmp_path: Path) -> None:
    values = heron()
    values["model_config"]["pretrained_path"] = str(tmp_path)
    values["model_config"]["lora"] = {**LORA, "bias": "all"}
    converted = convert_recipe(written(tmp_path / "a.yml", values))
    assert converted.recipe.model.start_from == str(tmp_path)
    assert any("must be imported first: visgraft import" in note for note in converted.notes)
    assert "left out: lora.bias 'all', biases stay frozen" in converted.notes


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="got the keys a; need a training file of GIT-LLM"):
        convert_recipe(written(tmp_path / "a.yml", {"a": 1}))
    with pytest.raises(ConfigError, match="got list, need a mapping"):
        convert_recipe(written(tmp_path / "a.yml", [1]))
    with pytest.raises(ConfigError, match=r"cannot be read .* need a YAML file"):
        convert_recipe(tmp_path / "lost.yml")
    values = heron()
    values["model_config"]["model_type"] = "llava_llm"
    with pytest.raises(ConfigError, match="got 'llava_llm', only git_llm models convert"):
        convert_recipe(written(tmp_path / "a.yml", values))
    values["model_config"] = {"max_length": 5}
    with pytest.raises(ConfigError, match="need vision_model_name and the language model's name"):
        convert_recipe(written(tmp_path / "a.yml", values))
    values = heron()
    values["dataset_config_path"] = written(tmp_path / "d.yaml", {"rows": 1}).name
    with pytest.raises(ConfigError, match="need a dataset file of heron"):
        convert_recipe(written(tmp_path / "a.yml", values))
