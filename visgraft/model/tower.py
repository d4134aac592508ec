"""The vision tower of whatever a name holds: found by structure, built from its config, looked up in a whole model.

In: the config of a checkpoint (an encoder alone, or LLaVA, Qwen-VL, SAM, DETR, ...), or such a model. Out: the config
or the module of the part that looks at images.

    config = vision_tower_config(AutoConfig.from_pretrained("llava-hf/llava-1.5-7b-hf"))    # CLIPVisionConfig
    vision = build_tower(config)                                                            # random weights

No list of families: a tower is the first part whose name in the config says that it sees (`PARTS_THAT_SEE`), at any
depth. Configs that `AutoModel` does not know are built from the class that stands beside them in transformers.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from visgraft.errors import UnsupportedModelError

# Words in the names of sub-configs, the surest first; a detector's `backbone_config` is what sees in it.
PARTS_THAT_SEE = ("vision", "visual", "image", "vit", "backbone", "encoder")
_HAS_HEAD = re.compile("(For|With)[A-Z]")  # ViTForImageClassification, not PPFormulaNet
# What a model raises that cannot run as it is asked to.
FAILURES = (
    ValueError, RuntimeError, TypeError, AttributeError, KeyError, IndexError, AssertionError, ImportError,
    ArithmeticError, StrictDataclassError,
)  # fmt: skip
DEPTHS = ("num_hidden_layers", "num_layers", "depth", "depths", "encoder_layers", "n_layers", "num_block_repeats")


def vision_tower_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Give the config of what sees in a checkpoint (CLIP, LLaVA, Qwen-VL, SAM), or the config itself."""
    parts = _sub_configs(config)
    for word in PARTS_THAT_SEE:
        for name, part in parts.items():
            if word in name:
                tower = vision_tower_config(part)
                # a part that takes no images is a piece of what does (DeepSeek-OCR 2: two encoders, one behind another)
                return tower if _takes_images(tower) or not _takes_images(config) else config
    for part in parts.values():
        tower = vision_tower_config(part)
        if tower is not part:
            return tower
    return config


def build_tower(config: PreTrainedConfig, **options: Any) -> PreTrainedModel:
    """Make an encoder with random weights.

    Args:
        config: of the tower itself.
        options: for `from_config` (`dtype`, `attn_implementation`).

    Raises:
        UnsupportedModelError: transformers has no class that makes features of images with this config.
    """
    if type(config) in AutoModel._model_mapping:
        return AutoModel.from_config(config, **options)
    made: PreTrainedModel = tower_class(config)._from_config(config, **options)
    return made


def tower_class(config: PreTrainedConfig) -> Any:
    """Give what loads and builds the tower of a config: `AutoModel` where that knows it, else the class beside it.

    Raises:
        UnsupportedModelError: there is no such class.
    """
    if type(config) in AutoModel._model_mapping:
        return AutoModel
    found = list(_classes_beside(config))
    if not found:
        raise UnsupportedModelError(
            f"{config.model_type}: transformers has no class that makes features of images with a "
            f"{type(config).__name__}; name a checkpoint with a vision tower, or in Python give the loaded tower"
        )
    return found[-1]  # wrappers stand behind what they wrap


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Give the class of the encoder that a config makes.

    Raises:
        UnsupportedModelError: there is none.
    """
    found: Any = tower_class(config)
    if found is AutoModel:
        known: Any = AutoModel._model_mapping[type(config)]
        found = known[0] if isinstance(known, tuple) else known
    made: type[PreTrainedModel] = found
    return made


def find_tower(model: PreTrainedModel) -> PreTrainedModel:
    """Give the module that sees in a loaded model, or the model itself.

    Raises:
        UnsupportedModelError: no module has the config that its config names for it.
    """
    wanted = vision_tower_config(model.config)
    if wanted is model.config:
        return model
    for name, module in model.named_modules():
        own = getattr(module, "config", None)
        if name and isinstance(module, PreTrainedModel) and type(own) is type(wanted):
            return module
    raise UnsupportedModelError(
        f"{type(model).__name__}: its config names a {type(wanted).__name__}, but no part of it has that config; give "
        "the vision tower itself"
    )


def shallow(config: PreTrainedConfig) -> PreTrainedConfig:
    """Copy a config with few layers where it has many: number and width of the features stay."""
    try:
        few = type(config).from_dict(_with_few_layers(config.to_dict()))
    except FAILURES:
        return copy.deepcopy(config)
    few._attn_implementation_internal = config._attn_implementation_internal
    return few


def _with_few_layers(values: dict[str, Any]) -> dict[str, Any]:
    few = {key: _with_few_layers(each) if _is_config(each) else each for key, each in values.items()}
    for name in DEPTHS:
        value = few.get(name)
        if isinstance(value, int) and value > 2:
            few[name] = 2
            for stages in ("stage_names", "out_features", "out_indices"):  # of a transformer, one a layer
                few.pop(stages, None)
            of_layers = {key: each for key, each in few.items() if isinstance(each, list) and len(each) == value}
            few |= {key: each[:2] for key, each in of_layers.items()}
        elif isinstance(value, (list, tuple)) and all(isinstance(each, int) for each in value):
            few[name] = [min(each, 1) for each in value]
    return few


def _is_config(value: Any) -> bool:
    return isinstance(value, dict) and "model_type" in value


def _sub_configs(config: PreTrainedConfig) -> dict[str, PreTrainedConfig]:
    named = {name: getattr(config, name, None) for name in getattr(type(config), "sub_configs", None) or ()}
    return {name: part for name, part in named.items() if isinstance(part, PreTrainedConfig)}


def _takes_images(config: PreTrainedConfig) -> bool:
    """Say whether transformers has a class that takes images, and images first, with this config."""
    try:
        arguments = list(inspect.signature(model_class(config).forward).parameters)
    except UnsupportedModelError:
        return False
    return arguments[1:2] != ["input_ids"]


def _classes_beside(config: PreTrainedConfig) -> Iterator[type[PreTrainedModel]]:
    """List the classes of transformers that take this config and images, heads left out."""
    module = type(config).__module__.replace(".configuration_", ".modeling_")
    try:
        beside = vars(importlib.import_module(module))
    except ModuleNotFoundError:
        return
    for name, found in beside.items():
        if not (inspect.isclass(found) and issubclass(found, PreTrainedModel) and found.__module__ == module):
            continue
        own_forward = found.forward is not nn.Module.forward
        if found.config_class is type(config) and own_forward and not _HAS_HEAD.search(name):
            arguments = inspect.signature(found.forward).parameters
            takes = {"pixel_values", "grid_thw", "flattened_patches", "image"}
            if takes & set(arguments) or ("Backbone" in name and list(arguments)[1:2] == ["hidden_states"]):
                yield found
