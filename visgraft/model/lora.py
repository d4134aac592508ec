"""LoRA inside one part of the model: which linears take it, and how it is put in.

In: one part (an `nn.Module`) and LoRA settings. Out: the same part with peft's LoRA layers in it, and no other part.
Usage: `add_lora(model.language, settings, targets=find_lora_targets(model.language, part="language"))`

(LoRA, Hu et al. 2021, arXiv:2106.09685, section 4.1.)
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from visgraft.config import LoraSettings, Part
from visgraft.errors import ConfigError

ATTENTION_NAMES = frozenset({"attn", "attention", "self_attn", "self_attention"})
FIRST_ADAPTER = "default"
RENAMES_WEIGHTS = "convert_peft_adapter_state_dict_for_transformers"


def find_lora_targets(
    module: nn.Module, *, part: Part, suffixes: Sequence[str] | None = None, exclude: Collection[nn.Module] = ()
) -> tuple[str, ...]:
    """Name the linears of a part that take LoRA.

    Args:
        module: the part.
        part: its name, for errors.
        suffixes: ends of module names as in peft (`q_proj`, `mlp.fc1`); None takes every linear of the blocks in
            which positions meet (attention, and layers with a state: mixers, short convolutions), or, in a part
            without any, every linear. A linear whose weights a block reads without calling it, on this device or on
            another, is left alone: LoRA would change nothing there (`nn.MultiheadAttention`, Mamba's `out_proj`).
        exclude: modules that are not the part's own (the language model's head).

    Raises:
        ConfigError: the part has no linear, or a suffix matches none.
    """
    foreign = set(exclude)
    linears = [
        path
        for path, layer in _walk(module)
        if _is_linear(layer) and layer not in foreign and not _is_read_past(module, path)
    ]
    if not linears:
        raise ConfigError(
            f"train.{part}: lora needs linear layers and this part ({type(module).__name__}) has none; "
            "use frozen, full, {last_layers: k} or {patterns: [...]}"
        )
    if suffixes is None:
        mixers = [path for path, layer in _walk(module) if _is_mixer(path, layer)]
        inside = [path for path in linears if _is_inside(path, mixers)]
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
        inject_adapter(config, part, adapter=adapter)
    reached = {path for path, layer in lora_layers(part) if adapter in layer.lora_A}
    assert reached == set(targets), f"peft put LoRA on {sorted(reached ^ set(targets))} against what was asked"
    activate_adapters(part, trained=adapter)
    return adapter


def inject_adapter(config: LoraConfig, part: nn.Module, *, adapter: str) -> None:
    """Let peft put an adapter on exactly the modules that its config names."""
    with as_named():
        inject_adapter_in_model(config, part, adapter_name=adapter)


@contextlib.contextmanager
def as_named() -> Iterator[None]:
    """Let peft take the names of modules and of weights as they are.

    It takes `gate_proj`, `sconv.weight` and the like for names of older releases or of other checkpoints, and would
    rename or refuse them, wherever they stand: what was renamed when it is loaded is then in no module.
    """
    try:
        module: Any = importlib.import_module("peft.utils.transformers_weight_conversion")
    except ImportError:  # a release that renames nothing
        yield
        return
    own = {name: getattr(module, name) for name in ("convert_peft_config_for_transformers", RENAMES_WEIGHTS)}
    module.convert_peft_config_for_transformers = lambda *_, **__: None
    setattr(module, RENAMES_WEIGHTS, lambda *_, adapter_state_dict, **__: adapter_state_dict)
    try:
        yield
    finally:
        for name, function in own.items():
            setattr(module, name, function)


def targets_by_block(part: nn.Module, targets: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
    """Sort LoRA's targets by the kind of block they are in: {"LlamaAttention": ("q_proj", ...)}, each name once."""
    found: dict[str, dict[str, None]] = {}
    for path in targets:
        parent, _, name = path.rpartition(".")
        found.setdefault(type(part.get_submodule(parent)).__name__, {})[name] = None
    return {kind: tuple(names) for kind, names in found.items()}


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


def _is_mixer(path: str, module: nn.Module) -> bool:
    """Say whether positions meet in a module: it attends, or convolves along the row, as layers with a state do."""
    is_attention = type(module).__name__.endswith("Attention") or path.rpartition(".")[2] in ATTENTION_NAMES
    return is_attention or _convolves(module)


def _convolves(module: nn.Module) -> bool:
    return any(isinstance(child, nn.Conv1d) for child in module.children())


def _is_read_past(part: nn.Module, path: str) -> bool:
    """Say whether the block that has a linear reads its weights instead of calling it, as fused kernels do."""
    parent, _, name = path.rpartition(".")
    block = part.get_submodule(parent)
    kind: Any = type(block)
    return (_convolves(block) or isinstance(block, nn.MultiheadAttention)) and name in _weights_read(kind)


@functools.cache
def _weights_read(kind: Any) -> frozenset[str]:
    with contextlib.suppress(OSError, TypeError):  # a class without a source
        return frozenset(
            re.findall(r"\bself\.(\w+)\.weight\b(?!\s*\.\s*(?:dtype|device|shape))", inspect.getsource(kind))
        )
    return frozenset()


def _is_inside(path: str, blocks: Collection[str]) -> bool:
    return any(path.startswith(f"{block}.") for block in blocks)
