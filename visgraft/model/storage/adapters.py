"""LoRA adapters on disk, as peft itself writes them.

In: a part with adapters and a folder. Out: `adapter_config.json` and `adapter_model.safetensors`, which peft's own
`PeftModel.from_pretrained` loads on top of the bare part too.

    save_adapter(model.language, "default", folder=folder / adapter_folder("language", 0), name="facebook/opt-350m")
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save_file
from transformers import PreTrainedModel

from visgraft.errors import CheckpointError
from visgraft.model.lora import activate_adapters, as_named, inject_adapter, is_lora_name
from visgraft.model.storage.weights import read_tensors

PEFT_PREFIX = "base_model.model."  # what peft puts in front of every name on disk


def adapter_folder(part: str, index: int) -> str:
    """Name the folder of a part's adapter: `language_lora`, `language_lora_2`, ..."""
    return f"{part}_lora" if index == 0 else f"{part}_lora_{index + 1}"


def save_adapter(module: PreTrainedModel, adapter: str, *, folder: Path, name: str | None) -> None:
    """Write one adapter of a part; `name` is the base model that peft should put it on."""
    folder.mkdir(exist_ok=True)
    state = get_peft_model_state_dict(module, adapter_name=adapter, save_embedding_layers=False)
    save_file(
        {PEFT_PREFIX + key: tensor.contiguous() for key, tensor in state.items()},
        folder / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    config = copy.copy(module.peft_config[adapter])
    config.base_model_name_or_path = name
    for key, value in vars(config).items():
        if isinstance(value, set):  # peft would write it in another order in every process
            setattr(config, key, sorted(value))
    config.save_pretrained(str(folder))


def load_adapter(module: PreTrainedModel, folder: Path, *, adapter: str, dtype: torch.dtype | None = None) -> None:
    """Put an adapter from disk on a part; its weights take the part's number format, or `dtype`.

    Raises:
        CheckpointError: a file of it is missing or damaged, or its weights do not fit the part.
    """
    try:
        config = LoraConfig.from_pretrained(str(folder))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{folder} has no adapter_config.json that can be read ({error})") from error
    state = {key.removeprefix(PEFT_PREFIX): tensor for key, tensor in read_tensors(folder).items()}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # a second adapter is meant
            inject_adapter(config, module, adapter=adapter)
    except ValueError as error:  # peft's words: no such modules in this model
        raise CheckpointError(f"{folder}: the LoRA does not fit {type(module).__name__}: {error}") from error
    expected = get_peft_model_state_dict(module, adapter_name=adapter, save_embedding_layers=False)
    wrong = set(expected) ^ set(state) or {key for key in state if state[key].shape != expected[key].shape}
    if wrong:
        raise CheckpointError(
            f"{folder}: LoRA weights that do not fit {type(module).__name__}: {', '.join(sorted(wrong)[:5])}"
        )
    if dtype is not None:  # before they are set, as a value that was rounded stays so
        for name, parameter in module.named_parameters():
            if is_lora_name(name) and adapter in name.split("."):
                parameter.data = parameter.data.to(dtype)
    with as_named():
        result: Any = set_peft_model_state_dict(module, state, adapter_name=adapter)
    lost = result.unexpected_keys
    if lost:
        raise CheckpointError(
            f"{folder}: peft found no place in {type(module).__name__} for {len(lost)} weights of the LoRA "
            f"({', '.join(sorted(lost)[:3])}): it renames them. Install the peft that constraints.txt names"
        )
    activate_adapters(module, trained=adapter)
