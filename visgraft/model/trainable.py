"""What of a model trains, and in which number format everything is kept.

In: a model and one training mode per part. Out: the same model with its gradients switched, LoRA put in and weights
cast, and a report that says so.

    report = set_trainable(model, modes={"projection": "full", "language": "lora"}, lora={"language": settings})
    report = freeze_unused(model, report, loss=lambda: model.loss(batch).loss_sum)
    rows = parts_table(model, report, learning_rate={"projection": 1e-3})
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from visgraft.config import PARTS, LoraSettings, Part, TrainingMode
from visgraft.errors import ConfigError
from visgraft.model.lora import (
    activate_adapters,
    adapters_of,
    add_lora,
    find_lora_targets,
    is_lora_name,
    same_adapter,
    targets_by_block,
)
from visgraft.model.parts import full_names, input_embedding, is_tied, part_module, part_parameters
from visgraft.model.quantization import format_of, is_quantized_weight, num_weights, set_computing_dtype

MODES = "frozen, full, lora, {last_layers: k} or {patterns: [...]}"


@dataclass(frozen=True)
class Trainable:
    """What `set_trainable` did.

    Attributes:
        modes: part -> its training mode in words.
        lora_targets: part -> names, inside the part, of the linears that took LoRA.
        notes: part -> what the user should know of it.
        unused: full names of the tensors that were to train but receive no gradient.
    """

    modes: dict[Part, str]
    lora_targets: dict[Part, tuple[str, ...]]
    notes: dict[Part, tuple[str, ...]]
    unused: tuple[str, ...] = ()


@dataclass(frozen=True)
class PartRow:
    """One line of the table of parts; `learning_rate` is None where nothing trains."""

    part: Part
    mode: str
    num_parameters: int
    num_trainable: int
    dtype: str
    learning_rate: float | None
    notes: tuple[str, ...]


def set_trainable(
    model: nn.Module,
    *,
    modes: Mapping[Part, TrainingMode],
    lora: Mapping[Part, LoraSettings] | None = None,
    frozen_dtype: torch.dtype | None = None,
) -> Trainable:
    """Set what trains, put LoRA in and cast the weights.

    Args:
        model: has the modules `vision`, `projection` and `language` (a causal LM with output embeddings).
        modes: part -> training mode; a part that is not named is frozen.
        lora: part -> LoRA settings; one that is not named has the defaults.
        frozen_dtype: the format of parts whose own weights do not train (the autocast format); None leaves them.
            Weights that train are float32, and so is LoRA. A part of which any own weight trains stays float32
            whole, and so does the projection: it is small and exists nowhere else. Buffers and BatchNorm weights are
            never cast: rotary frequencies and running statistics do not survive bfloat16. Weights of 4 bits stay, and
            are unpacked to this format.

    Raises:
        ConfigError: an unknown part or mode, a pattern or LoRA target that matches nothing, or too many last layers.
    """
    for part in modes:
        if part not in PARTS:
            raise ConfigError(f"train.{part}: no such part; the parts are {', '.join(PARTS)}")
    complete: dict[Part, TrainingMode] = {part: modes.get(part, "frozen") for part in PARTS}
    notes: dict[Part, list[str]] = {part: [] for part in PARTS}
    targets: dict[Part, tuple[str, ...]] = {}
    if is_tied(model):
        notes["head"].append(_resolve_tied_head(model, complete))
    for part, mode in complete.items():
        if mode == "lora":
            settings = (lora or {}).get(part, LoraSettings())
            targets[part] = _set_lora(model, part, settings=settings, notes=notes[part])
        else:
            _set_own_weights(model, part, mode=mode)
    _cast(model, frozen_dtype)
    return Trainable(
        modes={part: describe_mode(mode) for part, mode in complete.items()},
        lora_targets=targets,
        notes={part: tuple(lines) for part, lines in notes.items()},
    )


def train_token_rows(model: nn.Module, report: Trainable, token_ids: Sequence[int]) -> Trainable:
    """Let the rows of some tokens train in the embeddings, and in an untied head, that are frozen otherwise.

    The gradient of every other row is 0, and nothing of these tables is decayed, so that they stay bit for bit what
    they are.

    Args:
        model: after `set_trainable`.
        report: what it returned.
        token_ids: whose rows.
    """
    notes = {part: list(lines) for part, lines in report.notes.items()}
    tables: dict[Part, nn.Parameter] = {"language": cast(nn.Parameter, input_embedding(model))}
    if not is_tied(model):
        tables["head"] = part_module(model, "head").weight  # type: ignore[assignment]
    for part, table in tables.items():
        if not table.requires_grad:
            table.data = table.data.float()
            table.requires_grad_(True)
            keep = torch.zeros(table.shape[0], 1, device=table.device)
            keep[list(token_ids)] = 1.0
            table.register_hook(lambda gradient, keep=keep: gradient * keep.to(gradient.device, gradient.dtype))
            table.is_never_decayed = True  # type: ignore[attr-defined]  # the optimizer asks for it
            notes[part].append(f"the rows of {len(token_ids)} new tokens train in a table of {table.shape[0]:,}")
    return replace(report, notes={part: tuple(lines) for part, lines in notes.items()})


def freeze_unused(model: nn.Module, report: Trainable, *, loss: Callable[[], Tensor]) -> Trainable:
    """Freeze what one backward pass does not reach, and name it.

    Poolers, norms behind the layer taken and the like receive no gradient; left trainable they would be decayed by
    the optimizer and waited for by DDP.

    Args:
        model: after `set_trainable`.
        report: what it returned.
        loss: computes a loss on a batch that uses everything the run will use (with images, if it has any).

    Raises:
        ConfigError: nothing at all trains.
    """
    model.zero_grad(set_to_none=True)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    value = loss()
    if value.requires_grad:
        value.backward()
    unused = tuple(name for name, parameter in trained.items() if parameter.grad is None)
    for name in unused:
        trained[name].requires_grad_(False)
    model.zero_grad(set_to_none=True)
    if len(unused) == len(trained):
        asked = f"; these were asked for but receive no gradient: {', '.join(unused)}" if unused else ""
        raise ConfigError(f"train: nothing trains{asked}; set one of {', '.join(PARTS)} to {MODES}")
    return replace(report, unused=unused)


def parts_table(
    model: nn.Module, report: Trainable, *, learning_rate: float | Mapping[Part, float] = 0.0
) -> list[PartRow]:
    """List what the parts are and what of them trains: one row per part, in the order of the pipeline."""
    rows = []
    for part, parameters in full_names(model).items():
        trained = [p for p in parameters.values() if p.requires_grad]
        rate = learning_rate.get(part) if isinstance(learning_rate, Mapping) else learning_rate
        dtypes = dict.fromkeys(format_of(p) for p in parameters.values())
        notes = [*report.notes.get(part, ()), *(f"unused: {name}" for name in report.unused if name in parameters)]
        if part == "language":
            notes += getattr(getattr(model, "attention_spec", None), "notes", ())
        if part in report.lora_targets:
            targets = report.lora_targets[part]
            by_block = targets_by_block(part_module(model, part), targets)
            kinds = [
                ", ".join(names) + (f" in {kind}" if len(by_block) > 1 else "") for kind, names in by_block.items()
            ]
            notes.insert(0, f"LoRA on {len(targets)} linears: {'; '.join(kinds)}")
        rows.append(
            PartRow(
                part=part,
                mode=report.modes.get(part, "frozen"),
                num_parameters=sum(num_weights(p) for p in parameters.values()),
                num_trainable=sum(p.numel() for p in trained),
                dtype=" + ".join(dtypes),
                learning_rate=rate if trained else None,
                notes=tuple(notes),
            )
        )
    return rows


def find_blocks(part: nn.Module) -> Sequence[nn.Module]:
    """Find the blocks that `last_layers` counts: the longest module list that lies in no other list.

    In a hierarchical encoder (Swin, ConvNeXt, ResNet) these are its stages. The norm behind the last block is not
    among them, nor are embeddings.
    """
    for kind in (nn.ModuleList, nn.Sequential):
        paths = [path for path, module in part.named_modules() if isinstance(module, kind)]
        outermost = [path for path in paths if not any(_is_below(path, other) for other in paths)]
        if outermost:
            return max((list(part.get_submodule(path).children()) for path in outermost), key=len)
    return []


def describe_mode(mode: TrainingMode) -> str:
    """Say a training mode in words."""
    if isinstance(mode, str):
        return mode
    keys = cast(Mapping[str, Any], mode)
    return f"last {keys['last_layers']} layers" if "last_layers" in keys else f"only {', '.join(keys['patterns'])}"


def _is_below(path: str, other: str) -> bool:
    return path != other and (other == "" or path.startswith(f"{other}."))


def _resolve_tied_head(model: nn.Module, modes: Mapping[Part, TrainingMode]) -> str:
    if modes["language"] == "full":
        return "tied to the input embeddings, which train with the language"
    if modes["head"] == "frozen":
        return "tied to the input embeddings"
    part_module(model, "head").weight = nn.Parameter(input_embedding(model).detach().clone())
    language: Any = part_module(model, "language")
    # Saving and loading tie again whatever these still call tied.
    language.config.tie_word_embeddings = language.config.get_text_config(decoder=True).tie_word_embeddings = False
    language.all_tied_weights_keys = {}
    whole: Any = model
    tied = getattr(whole, "all_tied_weights_keys", {})
    whole.all_tied_weights_keys = {name: to for name, to in tied.items() if not name.startswith("language.")}
    return "untied from the input embeddings into a copy of its own"


def _set_lora(model: nn.Module, part: Part, *, settings: LoraSettings, notes: list[str]) -> tuple[str, ...]:
    if part == "head":
        raise ConfigError("train.head: got 'lora', allowed are frozen, full or {patterns: [...]}")
    module = part_module(model, part)
    foreign = _not_of_the_text(model) if part == "language" else []
    targets = find_lora_targets(module, part=part, suffixes=settings.target_modules, exclude=foreign)
    for parameter in part_parameters(model)[part].values():
        parameter.requires_grad_(False)
    earlier = same_adapter(module, settings, targets=targets)
    if earlier is not None:
        activate_adapters(module, trained=earlier)
        notes.append(f"training goes on with its LoRA {earlier!r}")
        return targets
    if adapters_of(module):
        notes.append(f"a new LoRA on top of {', '.join(adapters_of(module))}, which is frozen")
    add_lora(module, settings, targets=targets)
    return targets


def _not_of_the_text(model: nn.Module) -> list[nn.Module]:
    """List the language part's modules that no text goes through: its head, and towers for pictures and sound."""
    language: Any = part_module(model, "language")
    decoder, embeddings = language.get_decoder(), language.get_input_embeddings()
    if embeddings not in set(decoder.modules()):  # some family calls its head so
        decoder = language
    inside = set(decoder.modules())
    foreign = [module for module in language.modules() if module not in inside]
    for tower in decoder.modules():
        if isinstance(tower, PreTrainedModel) and embeddings not in set(tower.modules()):
            foreign += tower.modules()
    return [*foreign, *part_module(model, "head").modules()]


def _set_own_weights(model: nn.Module, part: Part, *, mode: TrainingMode) -> None:
    parameters = part_parameters(model)[part]
    keys: Mapping[str, Any] = {mode: True} if isinstance(mode, str) else mode
    match list(keys):
        case ["frozen"]:
            chosen = set()
        case ["full"]:
            chosen = set(parameters)
        case ["last_layers"]:
            chosen = _in_last_layers(part_module(model, part), parameters, part=part, number=keys["last_layers"])
        case ["patterns"]:
            chosen = _matching(parameters, part=part, patterns=keys["patterns"])
        case _:
            raise ConfigError(f"train.{part}: got {mode!r}, allowed are {MODES}")
    quantized = [name for name in parameters if name in chosen and is_quantized_weight(parameters[name])]
    if quantized:
        raise ConfigError(
            f"train.{part}: got {describe_mode(mode)}, but {len(quantized)} of its weights are kept in "
            f"{format_of(parameters[quantized[0]])} and cannot train ({quantized[0]}, ...); say lora or frozen"
        )
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in chosen and parameter.is_floating_point())


def _in_last_layers(module: nn.Module, parameters: Mapping[str, nn.Parameter], *, part: Part, number: int) -> set[str]:
    blocks = find_blocks(module)
    if not 1 <= number <= len(blocks):
        raise ConfigError(f"train.{part}.last_layers: got {number}, this part has {len(blocks)} layers to choose from")
    inside = {id(parameter) for block in blocks[-number:] for parameter in block.parameters()}
    return {name for name, parameter in parameters.items() if id(parameter) in inside}


def _matching(parameters: Mapping[str, nn.Parameter], *, part: Part, patterns: Sequence[str]) -> set[str]:
    chosen: set[str] = set()
    for pattern in patterns:
        found = {name for name in parameters if fnmatchcase(name, pattern)}
        if not found:
            near = difflib.get_close_matches(pattern, parameters, n=3, cutoff=0.3) or list(parameters)[:3]
            raise ConfigError(
                f"train.{part}.patterns: {pattern!r} matches no parameter of the {part} part; "
                f"its names look like {', '.join(near)}"
            )
        chosen |= found
    return chosen


def _cast(model: nn.Module, frozen_dtype: torch.dtype | None) -> None:
    if frozen_dtype is not None:
        set_computing_dtype(model, frozen_dtype)
    for part, parameters in part_parameters(model).items():
        trains = any(p.requires_grad and not is_lora_name(name) for name, p in parameters.items())
        is_exact = trains or part == "projection"
        in_norms = {
            id(parameter)
            for module in part_module(model, part).modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
            for parameter in module.parameters()
        }
        for name, parameter in parameters.items():
            dtype = frozen_dtype
            if is_exact or is_lora_name(name) or id(parameter) in in_norms:
                dtype = torch.float32
            if dtype is not None and parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)  # the data alone: tied tensors stay tied
