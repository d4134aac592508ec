"""Model folders: construction from parts, saving, loading.

In: names of parts, or a folder. Out: a model, or a folder. A slim folder holds what was trained and names the rest; a
full folder holds everything. Either may hold LoRA.

    config.json                 the join, both parts' configs, and where each part came from
    model.safetensors           the projection
    vision/  language/          a part of which any weight changed (or every part, in a full folder), as
                                `save_pretrained` writes it; only the changed weights, in a slim folder
    vision_lora/ language_lora/ adapters, as peft writes them

    model.save_pretrained(folder)                 # slim; full=True for a folder that needs nothing else
    model = VisionLanguageModel.from_pretrained(folder)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from visgraft.errors import CheckpointError
from visgraft.model.adapters import adapter_folder, load_adapter, save_adapter
from visgraft.model.compatibility import check_language
from visgraft.model.configuration import VisionLanguageConfig
from visgraft.model.fingerprint import changed_names, combine, read_marks, round_parameters
from visgraft.model.loading import load_language, load_vision
from visgraft.model.lora import adapters_of, is_lora_name
from visgraft.model.vision import vision_tower_config

if TYPE_CHECKING:
    from visgraft.model.vlm import VisionLanguageModel

PARTS = ("vision", "language")


def from_parts(
    cls: type[VisionLanguageModel],
    vision: str | Path | PreTrainedModel,
    language: str | Path | PreTrainedModel,
    *,
    image_attention: str = "bidirectional",
    image_size: int | None = None,
    feature_layer: int = -1,
    keep_class_token: bool = True,
    num_frames: int = 0,
    projection: Mapping[str, Any] | None = None,
    language_init: str = "pretrained",
    dtype: torch.dtype = torch.float32,
    vision_revision: str | None = None,
    language_revision: str | None = None,
    **language_kwargs: Any,
) -> VisionLanguageModel:
    """Join a vision encoder and a causal language model.

    Args:
        cls: the model class.
        vision: Hub name, local folder or loaded module of an encoder, or of a checkpoint with a vision tower.
        language: the same of any `AutoModelForCausalLM`.
        image_attention: `bidirectional` or `causal`.
        image_size: side of the square input image in pixels; None = the encoder's own.
        feature_layer: which hidden state of the encoder is read; -1 = the last.
        keep_class_token: keep the tokens in front of the patches.
        num_frames: frames with a learned temporal embedding.
        projection: {"type": "linear" or "mlp", "pool": 1, "pixel_shuffle": 1}.
        language_init: `pretrained`, or `random` for a language model that starts from nothing.
        dtype: of the weights.
        vision_revision: branch, tag or commit on the Hub.
        language_revision: the same for the language model.
        language_kwargs: for `AutoModelForCausalLM.from_pretrained` (`device_map`, `quantization_config`, ...).

    Raises:
        CheckpointError: a part cannot be loaded.
        UnsupportedModelError: the language model does not follow the mask it is given.
        ConfigError: a setting that the parts cannot take.
    """
    vision_module, vision_origin = load_vision(vision, revision=vision_revision, dtype=dtype)
    language_module, language_origin = load_language(
        language, revision=language_revision, dtype=dtype, init=language_init, **language_kwargs
    )
    check_language(language_module)
    config = VisionLanguageConfig(
        vision_config=vision_module.config,
        text_config=language_module.config,
        image_attention=image_attention,
        image_size=image_size,
        feature_layer=feature_layer,
        keep_class_token=keep_class_token,
        num_frames=num_frames,
        projection=dict(projection or {}),
        parts={"vision": vision_origin, "language": language_origin},
    )
    model = cls(config, vision=vision_module, language=language_module)
    model.loaded_marks = {part: read_marks(getattr(model, part)) for part in PARTS}
    return model.eval()


def save_pretrained(
    self: VisionLanguageModel,
    save_directory: str | Path,
    is_main_process: bool = True,
    push_to_hub: bool = False,
    full: bool = False,
    **kwargs: Any,
) -> None:
    """Save a model folder: what was trained and the names of the rest, or (`full=True`) everything.

    Args:
        self: the model.
        save_directory: made if it is not there.
        is_main_process: other processes write nothing.
        push_to_hub: upload the folder afterwards.
        full: write the frozen parts too.
        kwargs: `max_shard_size` for the parts; Hub arguments for `push_to_hub`.
    """
    if not is_main_process:
        return
    folder = Path(save_directory)
    folder.mkdir(parents=True, exist_ok=True)
    shards = {"max_shard_size": kwargs.pop("max_shard_size")} if "max_shard_size" in kwargs else {}
    plan = plan_save(self, full=full)
    for part, names in plan.items():
        module: PreTrainedModel = getattr(self, part)
        state = base_state(module)
        if names:
            module.save_pretrained(folder / part, state_dict={name: state[name] for name in names}, **shards)
        for index, adapter in enumerate(adapters_of(module)):
            save_adapter(module, adapter, folder / adapter_folder(part, index), self.config.parts[part].get("name"))
    projection = {f"projection.{name}": tensor.contiguous() for name, tensor in self.projection.state_dict().items()}
    save_file(projection, folder / "model.safetensors", metadata={"format": "pt"})
    _describe_parts(self, plan)
    self.config.architectures = [type(self).__name__]
    self.config.save_pretrained(folder)
    self.generation_config.save_pretrained(folder)
    if push_to_hub:
        _check_portable(self.config)
        self.push_to_hub(kwargs.pop("repo_id", folder.name), **kwargs)


def plan_save(model: VisionLanguageModel, *, full: bool) -> dict[str, list[str]]:
    """List which weights of each part a folder will hold; [] = the part is only named."""
    plan = {}
    for part in PARTS:
        state = base_state(getattr(model, part))
        is_named = model.config.parts.get(part, {}).get("name") is not None
        if full or not is_named or part not in model.loaded_marks:
            plan[part] = list(state)
        else:
            plan[part] = changed_names(state, model.loaded_marks[part])
    return plan


def from_pretrained(
    cls: type[VisionLanguageModel],
    pretrained_model_name_or_path: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    torch_dtype: torch.dtype | str | None = None,
    revision: str | None = None,
    **kwargs: Any,
) -> VisionLanguageModel:
    """Load a model folder, slim or full, and account for every weight.

    Args:
        cls: the model class.
        pretrained_model_name_or_path: a folder that `save_pretrained` wrote, or its name on the Hub.
        dtype: of the weights; default float32.
        torch_dtype: the older name of `dtype`.
        revision: branch, tag or commit on the Hub.
        kwargs: for the language model (`device_map`, `quantization_config`, `attn_implementation`).

    Raises:
        CheckpointError: no such folder, a frozen part that is not the one trained with, or a weight unaccounted for.
    """
    folder = find_folder(pretrained_model_name_or_path, revision=revision)
    config = kwargs.pop("config", None) or VisionLanguageConfig.from_pretrained(folder)
    wanted = _dtype(dtype if dtype is not None else torch_dtype)
    for name in [name for name in kwargs if name in HUB_ARGUMENTS]:
        kwargs.pop(name)
    modules = {part: _load_part(folder, part, config, wanted, kwargs if part == "language" else {}) for part in PARTS}
    check_language(modules["language"])
    model = cls(config, vision=modules["vision"], language=modules["language"])
    _load_projection(model, folder, wanted)
    # What the folder stores is what a later slim save must store again: it carries no mark.
    model.loaded_marks = {}
    for part in PARTS:
        state = base_state(getattr(model, part))
        if config.parts[part]["stored"] != "all":
            stored = set(_stored_names(modules[part], folder / part))
            model.loaded_marks[part] = {
                name: mark for name, mark in read_marks(getattr(model, part)).items() if name not in stored
            }
        assert state
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model.eval()


HUB_ARGUMENTS = (
    "trust_remote_code",
    "_from_auto",
    "_commit_hash",
    "adapter_kwargs",
    "token",
    "cache_dir",
    "code_revision",
)


def find_folder(name: str | Path, *, revision: str | None = None) -> Path:
    """Give the local folder of a model folder, a run folder, or a name on the Hub.

    Raises:
        CheckpointError: nothing there.
    """
    path = Path(name).expanduser()
    if (path / "model" / "config.json").is_file() and (path / "recipe.yaml").is_file():
        return path / "model"
    if (path / "config.json").is_file():
        return path
    if path.exists() or path.is_absolute() or str(name).startswith((".", "~")) or str(name).count("/") > 1:
        what = "holds no config.json" if path.exists() else "does not exist"
        raise CheckpointError(f"{name} {what}: give a run folder, a model folder or a Hub name")
    try:
        return Path(snapshot_download(str(name), revision=revision))
    except (OSError, HfHubHTTPError, HFValidationError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise CheckpointError(
            f"{name}: neither a folder nor a model that the Hugging Face Hub gives ({reason}); check the spelling and "
            "the network"
        ) from error


def base_state(module: nn.Module) -> dict[str, Tensor]:
    """Give a part's own weights by their names without LoRA: `q_proj.base_layer.weight` is `q_proj.weight`."""
    return {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in module.state_dict().items()
        if not is_lora_name(name)
    }


def _describe_parts(model: VisionLanguageModel, plan: Mapping[str, list[str]]) -> None:
    for part, names in plan.items():
        module: PreTrainedModel = getattr(model, part)
        state = base_state(module)
        described = dict(model.config.parts.get(part) or {"name": None, "revision": None})
        described["stored"] = "none" if not names else "all" if set(names) == set(state) else "some"
        described["dtype"] = str(next(p.dtype for p in module.parameters() if p.is_floating_point())).removeprefix(
            "torch."
        )
        described["adapters"] = len(adapters_of(module))
        marks = read_marks(module)
        described["fingerprint"] = combine({name: mark for name, mark in marks.items() if name not in set(names)})
        model.config.parts[part] = described


def _load_part(
    folder: Path, part: str, config: VisionLanguageConfig, dtype: torch.dtype, kwargs: dict[str, Any]
) -> PreTrainedModel:
    described = config.parts[part]
    own_config = config.vision_config if part == "vision" else config.text_config
    load: Any = load_vision if part == "vision" else load_language
    if described["stored"] == "all":
        module, _ = load(folder / part, dtype=dtype, config=own_config, **kwargs)
    else:
        module = _load_frozen(folder, part, described, load, own_config, dtype, kwargs)
    for index in range(described.get("adapters", 0)):
        load_adapter(module, folder / adapter_folder(part, index), "default" if index == 0 else f"stage_{index + 1}")
    return module


def _load_frozen(
    folder: Path,
    part: str,
    described: Mapping[str, Any],
    load: Any,
    own_config: Any,
    dtype: torch.dtype,
    kwargs: dict[str, Any],
) -> PreTrainedModel:
    """Load a part from its name, put the stored weights over it and check that the rest is what was trained with."""
    stored = load_file_set(folder / part) if described["stored"] == "some" else {}
    module, _ = load(
        described["name"],
        revision=described["revision"],
        dtype=dtype,
        config=own_config if part == "language" else vision_tower_config(own_config),
        ignore_missing=_guess_memory_names(stored),
        **kwargs,
    )
    if not kwargs.get("quantization_config"):
        round_parameters(module, described["dtype"])
    names = _disk_names(module)
    unknown = sorted(set(stored) - set(names))
    if unknown:
        raise CheckpointError(f"{folder / part}: weights that {described['name']} does not have: {unknown[:5]}")
    state = module.state_dict()
    with torch.no_grad():
        for disk_name, tensor in stored.items():
            state[names[disk_name]].copy_(tensor)
    written = {names[disk_name] for disk_name in stored}
    if not kwargs.get("quantization_config"):
        marks = {name: mark for name, mark in read_marks(module).items() if name not in written}
        if combine(marks) != described["fingerprint"]:
            raise CheckpointError(
                f"the {part} part at {described['name']} is not the one that {folder} was trained with (its weights "
                "differ); give the original, or save the model with full=True where the original is"
            )
    return module


def load_file_set(folder: Path) -> dict[str, Tensor]:
    """Read every safetensors file of a folder."""
    state: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        state.update(load_file(path))
    if not state:
        raise CheckpointError(f"{folder}: no safetensors file there, though config.json says that weights are stored")
    return state


def _disk_names(module: PreTrainedModel) -> dict[str, str]:
    """Map the names that `save_pretrained` writes (stable) to the names in memory (not)."""
    names = {}
    for name, tensor in base_state(module).items():
        for disk_name in revert_weight_conversion(module, {name: tensor}):
            names[disk_name] = name
    return names


def _stored_names(module: PreTrainedModel, folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    names = _disk_names(module)
    return [names[disk_name] for disk_name in load_file_set(folder)]


def _guess_memory_names(stored: Mapping[str, Tensor]) -> list[str]:
    """An untied head is missing from its base checkpoint, and stored here under a name that is the same in memory."""
    return list(stored)


def _load_projection(model: VisionLanguageModel, folder: Path, dtype: torch.dtype) -> None:
    path = folder / "model.safetensors"
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: the folder is not complete")
    state = {name.removeprefix("projection."): tensor for name, tensor in load_file(path).items()}
    expected = set(model.projection.state_dict())
    if set(state) != expected:
        raise CheckpointError(f"{path}: weights unaccounted for: {sorted(set(state) ^ expected)[:5]}")
    model.projection.load_state_dict(state)
    model.projection.to(device=model.language.get_input_embeddings().weight.device, dtype=dtype)


def _check_portable(config: VisionLanguageConfig) -> None:
    for part in PARTS:
        described = config.parts[part]
        if described["stored"] != "all" and described["name"] and Path(described["name"]).is_absolute():
            raise CheckpointError(
                f"the {part} part is the local folder {described['name']}, which nobody else has: save with full=True, "
                "or train from its Hub name"
            )


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    if dtype is None or dtype == "auto":
        return torch.float32
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype):
        raise CheckpointError(f"dtype: got {dtype!r}, need a torch dtype such as 'bfloat16'")
    return found
