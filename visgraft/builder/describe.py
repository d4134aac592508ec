"""What a recipe would train, or what a run or a model is, read off configurations alone: no weights are loaded.

In: a recipe, a run, or the name of a model. Out: the rows of the table of parts, and facts for users and programs.

    described = describe_recipe(load_recipe("recipe.yaml"), name="recipe.yaml")
    described.rows, described.facts
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors import safe_open
from transformers import AutoModelForCausalLM, PreTrainedModel

from visgraft.builder.build import apply_modes, build_processor, join_settings, num_rows_of
from visgraft.builder.shapes import Stage, shapes_of, stages_of
from visgraft.config import PARTS, Recipe, SourceSettings, recipe_to_dict
from visgraft.data.prompt import NAMED_TEMPLATES
from visgraft.model.configuration import VisionLanguageConfig
from visgraft.model.hf_logging import quiet_transformers
from visgraft.model.lora import inject_adapter
from visgraft.model.precision import computing_dtype, pick_device
from visgraft.model.quantization import quantization_name
from visgraft.model.storage.adapters import adapter_folder
from visgraft.model.storage.pretrained import load_config
from visgraft.model.storage.restoring import find_folder, read_config
from visgraft.model.tower import build_tower, vision_tower_config
from visgraft.model.trainable import PartRow, parts_table, set_trainable
from visgraft.model.vlm import VisionLanguageModel
from visgraft.processor import Processor
from visgraft.runs import Run, find_model
from visgraft.starter import resolve
from visgraft.wording import counted

SOURCED_PARTS = ("vision", "language")  # those that come from somewhere


@dataclass(frozen=True)
class Description:
    """The parts, as rows of a table and as stages of a drawing; facts: what programs read, and in words by label."""

    rows: Sequence[PartRow]
    stages: Sequence[Stage]
    values: dict[str, Any]
    heading: Sequence[tuple[str, str]]
    facts: Sequence[tuple[str, str]]

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        totals = {
            "num_parameters": sum(row.num_parameters for row in self.rows),
            "num_trainable": sum(row.num_trainable for row in self.rows),
        }
        return {**self.values, **totals, "parts": [asdict(row) for row in self.rows]}


def describe_recipe(
    recipe: Recipe, *, name: str, run: Run | None = None, say: Callable[[str], None] | None = None
) -> Description:
    """Describe what a recipe trains; `run` is the run that has it as its recipe, `say` gets a line for each
    download.

    Raises:
        CheckpointError: the configuration of a part cannot be read.
        ConfigError: a setting that the parts cannot take, a pattern or LoRA target that matches nothing.
        UnsupportedModelError: the language model does not follow the mask.
    """
    local = resolve(recipe, say=say)
    processor = build_processor(local)
    model = empty_model(local, image_size=processor.image_size, processor=processor)
    dtype = computing_dtype(recipe.train.precision, device=pick_device(None))
    report = apply_modes(model, recipe.train, frozen_dtype=dtype)
    trained = [part for part in PARTS if recipe.train.mode_of(part) != "frozen"]
    rows = parts_table(model, report, learning_rate={part: recipe.train.learning_rate_of(part) for part in trained})
    rows = _with_quantization(rows, model, recipe)
    names = _names_of_recipe(recipe)
    values, facts = _facts(model, processor)
    values["data"] = recipe_to_dict(recipe).get("data", {})
    sources = {"train": recipe.data.train, "validation": recipe.data.validation, "test": recipe.data.test}
    facts += [(key, "; ".join(_in_words(source) for source in entries)) for key, entries in sources.items() if entries]
    kind = "recipe" if run is None else "run"
    if run is not None:
        values["run"] = _progress_of_run(run)
        facts.append(("so far", _progress_in_words(values["run"])))
    stages = stages_of(model, processor)
    return Description(
        rows, stages, {"kind": kind, "name": name, **names, **values}, _heading(kind, name, names), facts
    )


def describe_model(name: str) -> Description:
    """Describe a model folder or a model on the Hub; `num_trainable` counts what the folder itself holds.

    Raises:
        CheckpointError: there is no model of ours, or its config is damaged.
    """
    folder = find_folder(find_model(name))
    config = read_config(folder)
    model = _model_of_folder(folder, config)
    stored = {
        "vision": _num_stored(folder / "vision", *folder.glob("vision_lora*")),
        "projection": _num_stored(folder),
        "language": _num_stored(folder / "language", *folder.glob("language_lora*")),
    }
    rows = [
        replace(row, mode=_kept(row.part, config), num_trainable=stored.get(row.part, 0))
        for row in parts_table(model, set_trainable(model, modes={}))
    ]
    names = {}
    for part in SOURCED_PARTS:
        origin = config.parts[part]
        revision = f" at {origin['revision'][:12]}" if origin.get("revision") else ""
        names[part] = f"{origin['name']}{revision}" if origin.get("name") else "made or stored here"
    processor = Processor.from_pretrained(folder)
    values, facts = _facts(model, processor)
    heading = _heading("model", name, {part: f"{names[part]} ({_model_type(model, part)})" for part in SOURCED_PARTS})
    stages = stages_of(model, processor)
    return Description(rows, stages, {"kind": "model", "name": name, **names, **values}, heading, facts)


# --- Models on the meta device: shapes without weights


def empty_model(recipe: Recipe, *, image_size: int | None, processor: Processor | None = None) -> VisionLanguageModel:
    """Make the model of a recipe (no `starter:` names) on the meta device: shapes without weights.

    Args:
        recipe: names the parts; only their configurations are read.
        image_size: side of the pixels, as the image processor makes them.
        processor: whose tokens have rows, where the recipe names new ones.

    Raises:
        CheckpointError: a configuration cannot be read.
        UnsupportedModelError: the language model does not follow the mask.
        ConfigError: a setting that the parts cannot take.
    """
    settings = recipe.model
    if settings.start_from is not None:
        folder = find_folder(find_model(settings.start_from))
        return _model_of_folder(folder, read_config(folder))
    assert settings.vision is not None and settings.language is not None, "load_recipe requires both"
    vision = vision_tower_config(load_config(settings.vision, revision=settings.vision_revision))
    language = load_config(settings.language.name, revision=settings.language_revision)
    text_config, new_tokens = language.get_text_config(decoder=True), settings.language.new_tokens
    if new_tokens and processor is not None:
        text_config.vocab_size = num_rows_of(processor, at_least=text_config.vocab_size)
    joined = join_settings(recipe, image_size=image_size)
    model = VisionLanguageModel.from_parts(*_empty_parts(vision, language), **joined)
    if new_tokens and processor is not None:
        model.new_token_ids = tuple(processor.tokenizer.convert_tokens_to_ids(list(new_tokens)))
    return model


def _model_of_folder(folder: Path, config: VisionLanguageConfig) -> VisionLanguageModel:
    vision, language = _empty_parts(config.vision_config, config.text_config)
    model = VisionLanguageModel(config, vision=vision, language=language)
    for part in SOURCED_PARTS:
        for index in range(config.parts[part]["adapters"]):
            lora = LoraConfig.from_pretrained(str(folder / adapter_folder(part, index)))
            inject_adapter(lora, getattr(model, part), adapter=f"stage_{index + 1}")
    return model


def _empty_parts(vision: Any, language: Any) -> tuple[PreTrainedModel, PreTrainedModel]:
    with quiet_transformers(), torch.device("meta"):
        return build_tower(vision), AutoModelForCausalLM.from_config(language)


def _num_stored(*folders: Path) -> int:
    """Count the parameters in the safetensors files of some folders, from the files' headers alone."""
    total = 0
    for path in (path for folder in folders for path in folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return total


def _kept(part: str, config: VisionLanguageConfig) -> str:
    """Say in words how a model folder keeps a part."""
    if part == "projection":
        return "stored"
    if part == "head":
        return "with the language"
    described = config.parts[part]
    words = {"none": "named", "some": "named, some weights stored", "all": "stored"}
    quantized = f", in {quantization_name(described['quantization'])}" if "quantization" in described else ""
    return words[described["stored"]] + quantized + (" + LoRA" if described["adapters"] else "")


def quantization_of(model: VisionLanguageModel, recipe: Recipe) -> str | None:
    """Say in how many bits the language model of a recipe, or the model it starts from, is kept: 4bit, 8bit, None."""
    stored = model.config.parts.get("language", {}).get("quantization")
    asked = recipe.model.language.quantization if recipe.model.language else None
    return quantization_name(stored) if stored else asked


def _with_quantization(rows: list[PartRow], model: VisionLanguageModel, recipe: Recipe) -> list[PartRow]:
    """Say which weights will be quantized once they are loaded."""
    word = quantization_of(model, recipe)
    if word is None:
        return rows
    note = f"its linears are kept in {word}"
    return [replace(row, notes=(note, *row.notes)) if row.part == "language" else row for row in rows]


# --- Facts: for programs, and in words


def _facts(model: VisionLanguageModel, processor: Processor) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Say what becomes of an image and of a text."""
    values = {
        "image_size": processor.image_size,
        "image_tokens": processor.num_image_tokens,
        "shapes": shapes_of(model, processor),
        "image_attention": model.config.image_attention,
        "template": processor.template,
        "max_text_tokens": processor.max_text_tokens,
        "max_positions": model.attention_spec.max_positions,
    }
    size, limit, positions = processor.image_size, processor.max_text_tokens, model.attention_spec.max_positions
    pixels = "images in their own size become at most" if size is None else f"{size} x {size} pixels become"
    image = f"{pixels} {counted(processor.num_image_tokens, 'image token')}, {model.config.image_attention} attention"
    before = (model.config.text_before_images or {}).get("first")
    image += f", behind {len(before)} tokens of text of their own" if before else ""
    text = "of any length" if limit is None else f"at most {limit} tokens"
    text += f"; the language model has {positions or 'no limit of'} positions"
    template = processor.template
    template = f"{template}: {NAMED_TEMPLATES[template]}" if template in NAMED_TEMPLATES else template
    return values, [("image", image), ("text", text), ("template", template)]


def _heading(kind: str, name: str, parts: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(kind, name), *parts.items()]


def _names_of_recipe(recipe: Recipe) -> dict[str, str]:
    settings = recipe.model
    if settings.start_from is not None:
        return {"start_from": settings.start_from}
    assert settings.vision is not None and settings.language is not None, "load_recipe requires both"
    fresh = ", its weights fresh and random" if settings.language.init == "random" else ""
    return {"vision": settings.vision, "language": settings.language.name + fresh}


def _model_type(model: VisionLanguageModel, part: str) -> str:
    return str(getattr(model, part).config.model_type)


def _in_words(source: SourceSettings) -> str:
    where = f" at {source.path}" if source.path else ""
    limit = f", the first {source.limit:,}" if source.limit else ""
    return f"{source.source} {source.split}{limit}{where}"


def _progress_of_run(run: Run) -> dict[str, Any]:
    """Read off a run folder how far it is and how good."""
    steps = run.steps()
    validated = [record for record in run.validations() if record["validation_loss"] is not None]
    best = min(validated, key=lambda record: float(record["validation_loss"]), default={})
    return {
        "steps": steps[-1]["step"] if steps else 0,
        "loss": steps[-1]["loss"] if steps else None,
        "seconds": round(sum(record.get("seconds") or 0.0 for record in steps), 1),
        "best_validation_loss": best.get("validation_loss"),
        "exact_match": best.get("exact_match"),
        "bad_samples": len(run.read("quarantine")),
        "checkpoints": list(run.checkpoints()),
        "has_model": run.model_path.is_dir(),
    }


def _progress_in_words(values: Mapping[str, Any]) -> str:
    words = [f"{counted(values['steps'], 'step')} in {values['seconds'] / 60:.1f} minutes"]
    for key, label in (("loss", "loss"), ("best_validation_loss", "best validation loss")):
        words += [f"{label} {values[key]:.4f}"] if values[key] is not None else []
    words += [f"{values['exact_match']:.1%} of answers right"] if values["exact_match"] is not None else []
    words += [counted(values["bad_samples"], "bad sample")] if values["bad_samples"] else []
    words.append("its model is written" if values["has_model"] else "no model yet")
    return ", ".join(words)
