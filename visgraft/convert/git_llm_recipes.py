"""Convert YAML files of GIT-LLM (one file) or heron (with its dataset files) to a recipe.

In: a YAML file of theirs. Out: a recipe that trains the same, and notes on what has no counterpart or is done better.

    converted = convert_recipe("projects/opt/exp001.yml")
    Path("recipe.yaml").write_text(converted.to_yaml())
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any

import yaml

from visgraft.config import Recipe, load_recipe, recipe_to_yaml
from visgraft.convert.git_llm_datasets import convert_datasets
from visgraft.errors import ConfigError
from visgraft.parsing import parse_yaml

SCHEDULES = {
    "constant": "constant",
    "constant_with_warmup": "constant",
    "linear": "linear",
    "cosine": "cosine",
    "cosine_with_min_lr": "cosine",
}
# one to one: theirs -> ours
TRAIN_SETTINGS = {
    "num_train_epochs": "epochs",
    "learning_rate": "learning_rate",
    "weight_decay": "weight_decay",
    "max_grad_norm": "clip_norm",
    "gradient_checkpointing": "gradient_checkpointing",
    "dataloader_num_workers": "num_workers",
    "seed": "seed",
    "save_steps": "checkpoint_every_steps",
    "save_total_limit": "keep_checkpoints",
}
_READ_ELSEWHERE = (
    *("per_device_train_batch_size", "gradient_accumulation_steps", "lr_scheduler_type", "deepspeed", "fp16", "bf16"),
    *("precision", "eval_steps", "output_dir", "max_steps", "warmup_steps", "num_warmup_steps"),
    *("adam_beta1", "adam_beta2"),
)


@dataclass
class ConvertedRecipe:
    """A recipe and what its conversion has to say."""

    recipe: Recipe
    notes: list[str] = field(default_factory=list)

    def to_yaml(self) -> str:
        """Write the recipe, the notes above it as comments."""
        return "".join(f"# {note}\n" for note in self.notes) + recipe_to_yaml(self.recipe)


def convert_recipe(path: str | Path) -> ConvertedRecipe:
    """Convert a training file of GIT-LLM or heron.

    Args:
        path: the YAML file; heron's dataset files are looked for beside it, in the folders above, and where we are.

    Raises:
        ConfigError: not such a file, or one for another kind of model (heron's LLaVA and video models).
    """
    path = Path(path).expanduser()
    values = read_yaml(path)
    training = _section(values, "training_config", "training")
    model = _section(values, "model_config", "settings")
    if training is None or model is None:
        raise ConfigError(
            f"{path}: got the keys {', '.join(values)}; need a training file of GIT-LLM (training_config, settings) or "
            "heron (training_config, model_config)"
        )
    is_heron = "model_config" in values
    if model.get("model_type", "git_llm") != "git_llm":
        raise ConfigError(f"{path}: model_type: got {model['model_type']!r}, only git_llm models convert to a recipe")
    notes = [f"Converted from {path.name} of {'heron' if is_heron else 'GIT-LLM'}."]
    converted: dict[str, Any] = {
        "model": _model(model, template="heron" if is_heron else "git-llm", notes=notes),
        "train": _train(training, model, values, notes=notes),
        "data": convert_datasets(values, folder=path.parent, notes=notes),
    }
    converted["data"]["max_text_tokens"] = model.get("max_length") or 128  # their default
    if "output_dir" in training:
        converted["output"] = str(training["output_dir"])
    if converted["data"]["validation"] and "eval_steps" in training:
        converted["train"]["validate_every_steps"] = training["eval_steps"]
    return ConvertedRecipe(load_recipe(converted), notes)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        ConfigError: there is none.
    """
    try:
        values = parse_yaml(path.read_bytes())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read ({' '.join(str(error).split())[:200]}); need a YAML file") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: got {type(values).__name__}, need a mapping")
    return values


def _section(values: Mapping[str, Any], *names: str) -> dict[str, Any] | None:
    """Give the first of some sections that is there, without what is left empty."""
    for name in names:
        if isinstance(values.get(name), dict):
            return {key: value for key, value in values[name].items() if value is not None}
    return None


def _model(model: Mapping[str, Any], *, template: str, notes: list[str]) -> dict[str, Any]:
    start_from = model.get("pretrained_path") or model.get("load_pretrained")
    if start_from:
        importing = f"visgraft import {quote(str(start_from))} NEW_FOLDER"
        notes.append(f"start_from: {start_from} must be imported first: {importing}")
        return {"start_from": str(start_from), "template": template}
    language = model.get("language_model_name") or model.get("model_name")
    if not language or not model.get("vision_model_name"):
        raise ConfigError(f"got {dict(model)}; need vision_model_name and the language model's name")
    num_frames = model.get("num_image_with_embedding") or 0
    settings = {"vision": model["vision_model_name"], "language": language, "template": template}
    if num_frames > 1:  # 1: no temporal embedding
        settings["num_frames"] = num_frames
    return settings


def _train(
    training: Mapping[str, Any], model: Mapping[str, Any], values: Mapping[str, Any], *, notes: list[str]
) -> dict[str, Any]:
    train = {ours: training[theirs] for theirs, ours in TRAIN_SETTINGS.items() if theirs in training}
    train.update(_modes(model, notes=notes))
    lora = model.get("lora") or values.get("lora")
    if lora and (model.get("use_lora", values.get("use_lora", False))):
        train["language"] = "lora"
        train["lora"] = {key: lora[key] for key in ("r", "lora_alpha", "lora_dropout", "target_modules") if key in lora}
        if "model_config" in values:
            notes.append("LoRA stays in the language model; heron's, by suffix, also reached the encoder's q, k and v")
        if lora.get("bias", "none") != "none":
            notes.append(f"left out: lora.bias {lora['bias']!r}, biases stay frozen")
    rows = int(training.get("per_device_train_batch_size", 8))
    rows_per_step = rows * int(training.get("gradient_accumulation_steps", 1))
    train["micro_batch_rows"] = rows
    train["text_tokens_per_step"] = rows_per_step * int(model.get("max_length") or 128)
    notes.append(
        f"text_tokens_per_step: {rows_per_step} padded rows of theirs a process and step; their pads are counted here "
        "too, so lower it for steps of the same number of texts"
    )
    train["precision"] = _precision({**model, **training})
    train["schedule"] = _schedule(training, notes=notes)
    if "max_steps" in training and int(training["max_steps"]) > 0:
        train["max_steps"] = int(training["max_steps"])
    train["warmup_steps"] = int(training.get("warmup_steps") or training.get("num_warmup_steps") or 0)
    if "adam_beta1" in training or "adam_beta2" in training:
        train["betas"] = [training.get("adam_beta1", 0.9), training.get("adam_beta2", 0.999)]
    unused = sorted(set(training) - set(TRAIN_SETTINGS) - set(_READ_ELSEWHERE))
    if unused:
        notes.append("left out, without a counterpart: " + ", ".join(f"{key} {training[key]}" for key in unused))
    return train


def _modes(model: Mapping[str, Any], *, notes: list[str]) -> dict[str, Any]:
    """Say what trains: their keys are parts of parameter names."""
    keys = list(model.get("keys_finetune") or model.get("keys_to_finetune") or [])
    if not keys and model.get("keys_to_freeze"):
        frozen = list(model["keys_to_freeze"])
        notes.append(f"keys_to_freeze {frozen}: everything else trains")
        is_vision_frozen = any("vision" in key or "image_encoder" in key for key in frozen)
        return {"vision": "frozen" if is_vision_frozen else "full", "projection": "full", "language": "full"}
    modes: dict[str, Any] = {"projection": "frozen"}
    for key in keys:
        if "visual_projection" in key or "img_temporal_embedding" in key:
            modes["projection"] = "full"
        elif "num_image_with_embedding" in key:
            notes.append(
                "num_image_with_embedding names no parameter of theirs, so temporal embeddings stayed zero; here they "
                "belong to the projection and train with it"
            )
        elif "image_encoder" in key:
            modes["vision"] = "full"
        elif key in ("lm_head", "embed_out"):
            modes["head"] = "full"
        elif "lora" not in key:
            modes.setdefault("language", {"patterns": []})["patterns"].append(f"*{key}*")
    return modes


def _precision(values: Mapping[str, Any]) -> str:
    named = values.get("precision")
    if named in ("fp16", "bf16", "fp32"):
        return str(named)
    return "bf16" if values.get("bf16") else "fp16" if values.get("fp16") else "fp32"


def _schedule(training: Mapping[str, Any], *, notes: list[str]) -> str:
    named = training.get("lr_scheduler_type")
    if named is None:
        if "deepspeed" not in training:
            return "linear"
        notes.append(
            "schedule: constant, as their DeepSpeed file sets WarmupLR, which stays at the top after its warm-up"
        )
        return "constant"
    if named not in SCHEDULES:
        notes.append(f"schedule: {named!r} is not known here; linear is nearest")
    elif named == "cosine_with_min_lr":
        notes.append("schedule: cosine falls to 0 here, theirs to a smallest rate")
    return SCHEDULES.get(named, "linear")
