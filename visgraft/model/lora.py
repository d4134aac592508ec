"""LoRA inside one part of the model: which linears take it, and how it is put in.

In: one part (an `nn.Module`) and LoRA settings. Out: the same part with peft's LoRA layers in it, and no other part.
Usage: `add_lora(model.language, settings, targets=find_lora_targets(model.language, part="language"))`

(LoRA, Hu et al. 2021, arXiv:2106.09685, section 4.1.)
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Sequence

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from visgraft.config import LoraSettings, Part
from visgraft.errors import ConfigError

ATTENTION_NAMES = frozenset({"attn", "attention", "self_attn", "self_attention"})
FIRST_ADAPTER = "default"


def find_lora_targets(
    module: nn.Module, *, part: Part, suffixes: Sequence[str] | None = None, exclude: Collection[nn.Module] = ()
) -> tuple[str, ...]:
    """Name the linears of a part that take LoRA.

    Args:
        module: the part.
        part: its name, for errors.
        suffixes: ends of module names as in peft (`q_proj`, `mlp.fc1`); None takes every linear of the attention
            blocks, or, in a part without any attention, every linear. `nn.MultiheadAttention` is left alone: it
            reads the weights of its linear and never calls it.
        exclude: modules that are not the part's own (the language model's head).

    Raises:
        ConfigError: the part has no linear, or a suffix matches none.
    """
    uncalled = [path for path, layer in module.named_modules() if isinstance(layer, nn.MultiheadAttention)]
    linears = [
        path
        for path, layer in _walk(module)
        if _is_linear(layer) and layer not in exclude and not _is_inside(path, uncalled)
    ]
    if not linears:
        raise ConfigError(
            f"train.{part}: lora needs linear layers and this part ({type(module).__name__}) has none; "
            "use frozen, full, {last_layers: k} or {patterns: [...]}"
        )
    if suffixes is None:
        attention = [path for path, layer in _walk(module) if _is_attention(path, layer)]
        inside = [path for path in linears if _is_inside(path, attention)]
        return tuple(inside or linears)
    could = sorted({path.rpartition(".")[2] for path in linears})
    for suffix in suffixes:
        if not any(path == suffix or path.endswith(f".{suffix}") for path in linears):
            raise ConfigError(
                f"train.lora.target_modules: {suffix!r} matches no linear of the {part} part; "
                f"what could match: {', '.join(could)}"
            )
    return tuple(p for p in linears if any(p == suffix or p.endswith(f".{suffix}") for suffix in suffixes))


def add_lora(part: nn.Module, settings: LoraSettings, *, targets: Sequence[str]) -> str:
    """Put a new LoRA adapter on the named linears of one part, on top of those that are there.

    Everything else in the part comes out frozen, adapters of earlier stages included; all adapters are active.

    Returns:
        The adapter's name: `default`, then `stage_2`, `stage_3`, ...
    """
    present = adapters_of(part)
    adapter = FIRST_ADAPTER if not present else f"stage_{len(present) + 1}"
    modules = dict(part.named_modules())
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.lora_alpha,  # type: ignore[arg-type]  # peft multiplies by it; a float is as good
        lora_dropout=settings.lora_dropout,
        target_modules=list(targets),
        fan_in_fan_out=all(isinstance(_base(modules[path]), Conv1D) for path in targets),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # a second adapter is meant
        inject_adapter_in_model(config, part, adapter_name=adapter)
    reached = {path for path, layer in lora_layers(part) if adapter in layer.lora_A}
    assert reached == set(targets), f"peft put LoRA on {sorted(reached ^ set(targets))} against what was asked"
    activate_adapters(part, trained=adapter)
    return adapter


def activate_adapters(part: nn.Module, *, trained: str | None) -> None:
    """Let every adapter of a part take effect, and only the weights of `trained` (None: no adapter's) train."""
    names = adapters_of(part)
    for _, layer in lora_layers(part):
        layer.set_adapter(names)
        for path, parameter in layer.named_parameters():  # type: ignore[attr-defined]
            if is_lora_name(path):
                parameter.requires_grad_(trained is not None and f".{trained}." in f".{path}.")


def adapters_of(part: nn.Module) -> list[str]:
    """List the adapters of a part, oldest first."""
    return list(getattr(part, "peft_config", {}))


def lora_layers(part: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    """Go through the LoRA layers of a part, by module name."""
    return ((path, module) for path, module in part.named_modules() if isinstance(module, LoraLayer))


def is_lora_name(name: str) -> bool:
    """Say whether a parameter's name is that of a LoRA weight."""
    return any(piece.startswith("lora_") for piece in name.split("."))


def same_adapter(part: nn.Module, settings: LoraSettings, *, targets: Sequence[str]) -> str | None:
    """Return the newest adapter's name if it has exactly these settings, so that training can go on with it."""
    present = adapters_of(part)
    if not present:
        return None
    newest = present[-1]
    layers = {path: layer for path, layer in lora_layers(part) if newest in layer.lora_A}
    if set(layers) != set(targets):
        return None
    is_same = all(
        (layer.r[newest], float(layer.lora_alpha[newest])) == (settings.r, float(settings.lora_alpha))
        for layer in layers.values()
    )
    return newest if is_same else None


def _walk(part: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Go through named modules, taking a LoRA layer as the one linear that it wraps."""
    wrapped = tuple(f"{path}." for path, _ in lora_layers(part))
    return ((path, module) for path, module in part.named_modules() if path and not path.startswith(wrapped))


def _base(module: nn.Module) -> nn.Module:
    return module.get_base_layer() if isinstance(module, LoraLayer) else module


def _is_linear(module: nn.Module) -> bool:
    return isinstance(_base(module), nn.Linear | Conv1D)


def _is_attention(path: str, module: nn.Module) -> bool:
    return type(module).__name__.endswith("Attention") or path.rpartition(".")[2] in ATTENTION_NAMES


def _is_inside(path: str, blocks: Collection[str]) -> bool:
    return any(path.startswith(f"{block}.") for block in blocks)
