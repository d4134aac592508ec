"""Language models whose frozen linears are kept in 8 or 4 bits: how they are asked for, and what they are afterwards.

In: a word of a recipe. Out: the settings that transformers loads with; and of a loaded part, which layers are so kept.

    language, origin = load_language("meta-llama/Llama-2-7b-hf", quantization_config=quantization_config("4bit"))
    is_quantized(language)          # True

bitsandbytes does it (an extra), on a CPU too. 4 bits: NF4 with double quantization, as in QLoRA (Dettmers et al. 2023,
arXiv:2305.14314, section 3). 8 bits: LLM.int8() (Dettmers et al. 2022, arXiv:2208.07339, section 3). Embeddings, norms
and the head stay as they are. Weights are quantized as they are loaded, always from float32, so that every loading of
a checkpoint on one kind of device gives the same bits.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from visgraft.errors import ConfigError, names_needed_for

CONFIGS: dict[str, dict[str, Any]] = {
    "4bit": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": torch.float32,  # until `set_computing_dtype` says what the run computes in
    },
    "8bit": {"load_in_8bit": True},
}
QUANTIZED_WEIGHTS = {"Params4bit": "4bit", "Int8Params": "8bit"}  # bitsandbytes' classes; it need not be installed


def quantization_config(name: str) -> BitsAndBytesConfig:
    """Make what `quantization_config=` of `from_parts` takes, of `4bit` or `8bit`.

    Raises:
        ConfigError: another word, or bitsandbytes is not installed.
    """
    if name not in CONFIGS:
        raise ConfigError(f"model.language.quantization: got {name!r}, allowed are {', '.join(CONFIGS)}")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"model.language.quantization: got {name}, which needs bitsandbytes, and that is not installed; "
            "pip install 'visgraft[quantization]'"
        )
    # It says at every call of every layer that it computes in float16, which is what 8 bits mean.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    return BitsAndBytesConfig(**CONFIGS[name])


def stored_config(module: PreTrainedModel) -> dict[str, Any] | None:
    """Give what a model folder writes down of a part that was quantized as it was loaded; None for any other part."""
    quantizer = getattr(module, "hf_quantizer", None)
    if quantizer is None or quantizer.pre_quantized or not is_quantized(module):
        return None
    values: dict[str, Any] = quantizer.quantization_config.to_dict()
    return {**values, "quant_method": str(values["quant_method"].value)}


def restored_config(values: dict[str, Any]) -> BitsAndBytesConfig:
    """Make the settings again that `stored_config` wrote down.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    quantization_config("8bit" if values.get("load_in_8bit") else "4bit")  # for its checks
    return BitsAndBytesConfig.from_dict(values)


def quantization_name(values: dict[str, Any]) -> str:
    """Say the width of what `stored_config` wrote down."""
    return "8bit" if values.get("load_in_8bit") else "4bit"


def quantized_layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Go through the layers with quantized weights, by module name."""
    return (
        (path, layer)
        for path, layer in module.named_modules()
        if is_quantized_weight(layer._parameters.get("weight"))  # a LoRA layer shows its base layer's as its own
    )


def is_quantized(module: nn.Module) -> bool:
    """Say whether any layer is quantized."""
    return any(True for _ in quantized_layers(module))


def is_quantized_weight(weight: object) -> bool:
    """Say whether a weight is kept in 8 or 4 bits."""
    return type(weight).__name__ in QUANTIZED_WEIGHTS


def format_of(parameter: nn.Parameter) -> str:
    """Name the format of a weight: 4bit, 8bit, bfloat16, ..."""
    return QUANTIZED_WEIGHTS.get(type(parameter).__name__, str(parameter.dtype).removeprefix("torch."))


def num_weights(parameter: nn.Parameter) -> int:
    """Count the weights of a parameter; two of 4 bits share a byte."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else int(state.shape.numel())


def dequantize(module: PreTrainedModel) -> None:
    """Put ordinary float32 linears in the place of quantized ones, with the values that those stood for."""
    with names_needed_for("merging into quantized weights"):
        from peft.utils.integrations import dequantize_module_weight
    for path, layer in list(quantized_layers(module)):
        weight = dequantize_module_weight(layer).detach().float()
        bias: Any = layer._parameters.get("bias")
        linear: Any = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
        linear.weight = nn.Parameter(weight, requires_grad=False)
        linear.bias = None if bias is None else nn.Parameter(bias.detach().float(), requires_grad=False)
        parent, _, name = path.rpartition(".")
        setattr(module.get_submodule(parent), name, linear)
    whole: Any = module
    if getattr(whole, "hf_quantizer", None) is not None:
        whole.hf_quantizer = None
        del whole.config.quantization_config


def prepare_4bit_for_cpu(module: nn.Module) -> None:
    """Guard a part that was just loaded against what bitsandbytes does wrong on a CPU.

    In eval mode it changes the memory layout of 4-bit weights on some CPUs, and training goes in and out of that mode.

    Raises:
        ConfigError: a linear is of a width that its CPU kernel for 4 bits unpacks to other values.
    """
    for path, layer in quantized_layers(module):
        weight: Any = layer.weight
        if type(weight).__name__ != "Params4bit" or weight.device.type != "cpu":
            continue
        block, width = weight.quant_state.blocksize, weight.quant_state.shape[-1]
        if width % block:
            raise ConfigError(
                f"quantization to 4 bits: {path} is {width} wide, and on a CPU bitsandbytes unpacks widths that are no "
                f"multiple of {block} to wrong values; take 8bit, or a GPU"
            )
        layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def set_computing_dtype(module: nn.Module, dtype: torch.dtype) -> None:
    """Let 4-bit layers unpack their weights to this format and compute in it; 8-bit ones always take float16."""
    for _, layer in quantized_layers(module):
        weight: Any = layer.weight
        if type(weight).__name__ == "Params4bit":
            layer.compute_dtype = weight.quant_state.dtype = dtype  # type: ignore[assignment]
