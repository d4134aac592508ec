"""A part's own weights: their names in memory and on disk, and the number formats they are kept in.

In: a part. Out: its weights by name, without LoRA and quantized ones, each once; their names in a checkpoint; their
formats. Names on disk are those of the published checkpoint and stay; names in memory change between versions of
transformers.

    weights = own_weights(model.language)       # {"model.layers.0.self_attn.q_proj.weight": ..., ...}
    names = disk_names(model.language)          # name in memory -> name in a checkpoint
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from visgraft.errors import CheckpointError, names_needed_for
from visgraft.model.lora import is_lora_name
from visgraft.model.quantization import quantized_layers

Rounded = tuple[torch.dtype, ...]


def own_weights(module: nn.Module) -> dict[str, Tensor]:
    """Give parameters and persistent buffers by name, tied ones once, LoRA and quantized weights left out.

    `q_proj.base_layer.weight`, as a weight behind LoRA is called, is `q_proj.weight`. Quantized weights never train,
    and kinds of device round them differently: they are made from the checkpoint again and never compared.
    """
    weights: dict[str, Tensor] = {}
    seen: set[int] = set()
    quantized = {path for path, _ in quantized_layers(module)}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if not name.endswith(".bias") and _is_in(name, quantized):
            continue
        if not is_lora_name(name) and id(tensor) not in seen:
            seen.add(id(tensor))
            weights[name.replace(".base_layer.", ".")] = tensor
    return weights


def disk_names(module: PreTrainedModel) -> dict[str, str]:
    """Map each weight's name in memory to its name in a checkpoint.

    A weight that a checkpoint holds in another shape (experts, one by one) has no such name and is left out.
    """
    empty = {name: torch.empty_like(tensor, device="meta") for name, tensor in own_weights(module).items()}
    in_memory = {id(tensor): name for name, tensor in empty.items()}
    with names_needed_for("saving a model"):
        from transformers.core_model_loading import revert_weight_conversion
    reverted = revert_weight_conversion(module, empty)
    return {in_memory[id(tensor)]: name for name, tensor in reverted.items() if id(tensor) in in_memory}


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Read every safetensors file of a folder.

    Raises:
        CheckpointError: there is none, or one is damaged.
    """
    state: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            state.update(load_file(path))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path} is cut short or damaged ({error}): copy or download it again") from error
    if not state:
        raise CheckpointError(f"{folder} has no safetensors file: the model folder is not complete")
    return state


def describe_formats(module: PreTrainedModel, rounded: Mapping[str, Rounded]) -> dict[str, Any]:
    """Write down which half formats weights were rounded to: `{"dtype": ..., "other_dtypes": {name on disk: ...}}`.

    `dtype` holds for parameters (float32: none; two formats: one after the other); BatchNorm and buffers are float32.
    What differs is named in `other_dtypes`.

    Args:
        module: the part.
        rounded: name -> half formats in order, of the weights that are to be described.
    """
    castable, on_disk = _castable(module), disk_names(module)
    found = {name: " ".join(map(_short, formats)) or "float32" for name, formats in rounded.items()}
    common = Counter(words for name, words in found.items() if name in castable).most_common(1)
    dtype = common[0][0] if common else "float32"
    others = {
        on_disk.get(name, name): words
        for name, words in found.items()
        if words != (dtype if name in castable else "float32")
    }
    return {"dtype": dtype, "other_dtypes": others}


def round_weights(module: PreTrainedModel, *, dtype: str, other_dtypes: Mapping[str, str]) -> dict[str, Rounded]:
    """Round weights as `describe_formats` says, in place; the format in memory stays.

    Returns:
        name -> half formats in order.
    """
    castable, on_disk = _castable(module), disk_names(module)
    rounded: dict[str, Rounded] = {}
    for name, tensor in own_weights(module).items():
        if tensor.is_floating_point():
            words = other_dtypes.get(on_disk.get(name, name), dtype if name in castable else "float32")
            rounded[name] = tuple(getattr(torch, word) for word in words.split() if word != "float32")
            for step in rounded[name]:
                with torch.no_grad():
                    tensor.copy_(tensor.to(step))
    return rounded


def cast_weights(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast what a checkpoint holds; buffers that are computed (rotary frequencies) keep their format."""
    for tensor in own_weights(module).values():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)


def _is_in(name: str, paths: Collection[str]) -> bool:
    """Say whether a weight belongs to one of these modules; a quantized one has several (`weight.absmax`)."""
    pieces = name.split(".")
    return any(".".join(pieces[:end]) in paths for end in range(1, len(pieces)))


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _castable(module: nn.Module) -> set[str]:
    """Name the parameters outside BatchNorm: all others stay float32 when a part is frozen in a lower format."""
    in_norms = {
        id(parameter)
        for layer in module.modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm)
        for parameter in layer.parameters()
    }
    return {
        name
        for name, tensor in own_weights(module).items()
        if isinstance(tensor, nn.Parameter) and id(tensor) not in in_norms
    }
