"""Read a model folder back, and account for every weight.

In: a folder and its config. Out: the parts, each checked against what it was trained with.

    folder = find_folder("runs/first")
    part = restore_part(folder, "language", config=config, dtype=torch.float32)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from visgraft.errors import CheckpointError
from visgraft.model.configuration import VisionLanguageConfig
from visgraft.model.quantization import restored_config
from visgraft.model.storage.adapters import adapter_folder, load_adapter
from visgraft.model.storage.checksums import Checksum, combine, read_checksums
from visgraft.model.storage.pretrained import LoadedPart, explain_load_errors, missing_weights_error, read_part
from visgraft.model.storage.weights import cast_weights, disk_names, own_weights, read_tensors, round_weights


@dataclass(frozen=True)
class RestoredPart:
    """A part as it was trained.

    Attributes:
        module: the part.
        checksums: of the weights that a later slim folder need not hold; None = it holds everything.
    """

    module: PreTrainedModel
    checksums: dict[str, Checksum] | None


def find_folder(name: str | Path, **hub: Any) -> Path:
    """Give the local folder of a model folder, a run folder, or a name on the Hub.

    Args:
        name: any of them.
        hub: `revision`, `token`, `cache_dir` and so on.

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
    with explain_load_errors(name):
        return Path(snapshot_download(str(name), **hub))


def read_config(folder: Path) -> VisionLanguageConfig:
    """Read the config of a model folder.

    Raises:
        CheckpointError: it is damaged, or that of another kind of model.
    """
    with explain_load_errors(folder):
        values, _ = VisionLanguageConfig.get_config_dict(folder)
    if values.get("model_type") != VisionLanguageConfig.model_type or "parts" not in values:
        raise CheckpointError(
            f"{folder} holds a {values.get('model_type', 'nameless')} model and no model of visgraft: join it with "
            "another part by VisionLanguageModel.from_parts"
        )
    return VisionLanguageConfig.from_dict(values)


def restore_part(
    folder: Path,
    part: str,
    *,
    config: VisionLanguageConfig,
    dtype: torch.dtype,
    adapter_dtype: torch.dtype | None = None,
    **kwargs: Any,
) -> RestoredPart:
    """Read one part: its own weights from the folder, the rest from where its name says, and its LoRA.

    Raises:
        CheckpointError: a file is missing or damaged, a weight is unaccounted for, or the part at that name is not
            the one that was trained with.
    """
    described: Mapping[str, Any] = config.parts[part]
    own_config: PreTrainedConfig = getattr(config, "vision_config" if part == "vision" else "text_config")
    if described["stored"] == "all":
        restored = RestoredPart(_read_whole(folder / part, part, config=own_config, dtype=dtype, **kwargs), None)
    else:
        restored = _read_named(folder, part, described, config=own_config, dtype=dtype, **kwargs)
    for index in range(described["adapters"]):
        adapter = "default" if index == 0 else f"stage_{index + 1}"
        load_adapter(restored.module, folder / adapter_folder(part, index), adapter=adapter, dtype=adapter_dtype)
    return restored


def restore_projection(projection: nn.Module, folder: Path, *, dtype: torch.dtype) -> None:
    """Set the projection's weights.

    Raises:
        CheckpointError: the file is missing or damaged, or does not fit.
    """
    found = {name.removeprefix("projection."): tensor for name, tensor in read_tensors(folder).items()}
    expected = projection.state_dict()
    wrong = set(found) ^ set(expected) or {name for name in found if found[name].shape != expected[name].shape}
    if wrong:
        raise CheckpointError(
            f"{folder / 'model.safetensors'}: weights that do not fit: {', '.join(sorted(wrong)[:5])}"
        )
    projection.load_state_dict(found)
    projection.to(dtype=dtype)


def _read_whole(folder: Path, part: str, **options: Any) -> PreTrainedModel:
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is missing: the model folder is not complete")
    loaded = read_part(part, folder, **options)
    unaccounted = sorted(loaded.missing | loaded.unexpected)
    if unaccounted:
        raise CheckpointError(f"{folder}: weights missing or of no use: {', '.join(unaccounted[:5])}")
    return loaded.module


def _read_named(
    folder: Path,
    part: str,
    described: Mapping[str, Any],
    *,
    config: PreTrainedConfig,
    dtype: torch.dtype,
    **kwargs: Any,
) -> RestoredPart:
    """Load a part from its name, put the stored weights over it and check that the rest is what was trained with."""
    if not isinstance(described.get("checksum"), str):
        remedy = "save the model with full=True where it was trained"
        if "fingerprint" in described:
            remedy = "older versions wrote it under the key fingerprint: rename that key to checksum"
        raise CheckpointError(
            f"{folder / 'config.json'}: parts.{part} has no checksum of the weights that are read from "
            f"{described['name']}, so nothing shows that they are those that were trained with; {remedy}"
        )
    formats = {described["dtype"], *described["other_dtypes"].values()}
    stored = described.get("quantization")
    if stored is not None and "quantization_config" not in kwargs:
        kwargs["quantization_config"] = restored_config(stored)
        is_as_trained = True
    else:
        is_as_trained = not kwargs.get("quantization_config") and stored is None
    # Rounding to one half format and then to the other would not give what was trained with.
    is_direct = dtype == torch.bfloat16 and formats <= {"float32", "bfloat16"} and stored is None
    try:
        loaded = read_part(
            part,
            described["name"],
            revision=described["revision"],
            dtype=dtype if is_direct else torch.float32,
            config=config,
            may_be_resized=described["stored"] == "some",  # a table of tokens, which is then stored
            **kwargs,
        )
    except CheckpointError as error:
        raise CheckpointError(f"the {part} part of {folder} cannot be loaded: {error}") from error
    module = loaded.module
    rounded = {}
    if is_as_trained:
        rounded = round_weights(module, dtype=described["dtype"], other_dtypes=described["other_dtypes"])
    written = _overlay(loaded, folder / part) if described["stored"] == "some" else set()
    tensors = module.state_dict(keep_vars=True)
    there = {id(tensors[name]) for name in written if name in tensors}  # a tied head has two names
    lacking = {name for name in loaded.missing - written if name not in tensors or id(tensors[name]) not in there}
    if lacking:
        raise missing_weights_error(described["name"], lacking)
    rest = {name: tensor for name, tensor in own_weights(module).items() if name not in written}
    if not is_as_trained or any(tensor.device.type == "meta" for tensor in rest.values()):
        return RestoredPart(module, {})  # what was read is not in memory as it is on disk
    checksums = read_checksums(rest, rounded=rounded)
    if combine(checksums.values()) != described["checksum"]:
        raise CheckpointError(
            f"the {part} part at {described['name']} is not the one that {folder} was trained with (its weights "
            "differ); give the original, or save the model with full=True where the original is"
        )
    cast_weights(module, dtype)
    return RestoredPart(module, checksums)


def _overlay(loaded: LoadedPart, folder: Path) -> set[str]:
    """Put a folder's weights over those of the module, and name them as in memory."""
    stored = read_tensors(folder)
    in_memory = {on_disk: name for name, on_disk in disk_names(loaded.module).items()}
    weights = own_weights(loaded.module)
    for on_disk, tensor in stored.items():
        target = weights.get(in_memory.get(on_disk, ""))
        if target is None or target.shape != tensor.shape:
            raise CheckpointError(f"{folder}: {on_disk} does not fit {type(loaded.module).__name__}")
        if target.device.type == "meta":
            raise CheckpointError(
                f"{folder}: {on_disk} cannot be set where device_map offloads it: load without device_map, or save "
                "the model with full=True first"
            )
        with torch.no_grad():
            target.copy_(tensor)
    return {in_memory[on_disk] for on_disk in stored}
