"""The parts from their names: Hub names, local folders or modules that are loaded already.

In: a name. Out: the module, with every weight accounted for, and where it came from.

    vision, origin = load_vision("openai/clip-vit-base-patch16")
    language, origin = load_language("facebook/opt-350m")
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub import constants as hub_constants
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.hub import cached_file

from visgraft.errors import CheckpointError, ConfigError
from visgraft.model.configuration import positions_of
from visgraft.model.hf_logging import quiet_transformers
from visgraft.model.quantization import prepare_4bit_for_cpu
from visgraft.model.storage.tower_weights import read_tower
from visgraft.model.storage.weights import cast_weights
from visgraft.model.tower import find_tower, model_class, tower_class, vision_tower_config
from visgraft.model.vision import VisionSettings, encode
from visgraft.model.vision_inputs import dummy_inputs
from visgraft.starter import resolve

Origin = dict[str, Any]  # {"name": str | None, "revision": str | None}
LANGUAGE_INIT = ("pretrained", "random")
# Else transformers asks on the terminal whether to run code that lies beside the weights.
OWN_CODE_ONLY: dict[str, Any] = {"trust_remote_code": False}


def load_vision(
    name: str | Path | PreTrainedModel, *, revision: str | None = None, dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel, Origin]:
    """Load an encoder; of a checkpoint that holds more (CLIP, LLaVA, Qwen-VL, SAM), the vision tower alone.

    Args:
        name: Hub name, local folder, `starter:` name, or a loaded module.
        revision: branch, tag or commit on the Hub.
        dtype: of the weights; a loaded module keeps its own.

    Raises:
        CheckpointError: nothing there, or weights missing that the features need.
        UnsupportedModelError: a module with no vision tower, or one that transformers has no class for.
    """
    if isinstance(name, nn.Module):
        return find_tower(name), _origin(None)
    config = vision_tower_config(load_config(name, revision=revision))
    loaded = read_part("vision", name, revision=revision, dtype=dtype, config=config)
    if loaded.missing:
        raise missing_weights_error(name, loaded.missing)
    return loaded.module, _origin(name, revision=revision)


def load_language(
    name: str | Path | PreTrainedModel,
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    init: str = "pretrained",
    **kwargs: Any,
) -> tuple[PreTrainedModel, Origin]:
    """Load a causal language model, unmodified.

    Args:
        name: Hub name, local folder, `starter:` name, or a loaded module.
        revision: branch, tag or commit on the Hub.
        dtype: of the weights; a loaded module keeps its own.
        init: `pretrained`, or `random` to take only its configuration (as GIT itself began).
        kwargs: for `AutoModelForCausalLM.from_pretrained` (`device_map`, `quantization_config`, `attn_implementation`).

    Raises:
        CheckpointError: nothing there, or weights missing.
        ConfigError: an unknown `init`, or one that a loaded module cannot follow.
    """
    if init not in LANGUAGE_INIT:
        raise ConfigError(f"language_init: got {init!r}, allowed are {', '.join(LANGUAGE_INIT)}")
    if isinstance(name, nn.Module):
        if kwargs or init == "random":
            given = ", ".join(kwargs) or "language_init='random'"
            raise ConfigError(f"{given}: only a language model given by its name or folder is loaded with it")
        return name, _origin(None)
    config = load_config(name, revision=revision)
    if init == "random":
        with explain_load_errors(name), quiet_transformers():
            made = AutoModelForCausalLM.from_config(config, dtype=dtype, **{**OWN_CODE_ONLY, **kwargs})
        return made.eval(), _origin(None)
    loaded = read_part("language", name, revision=revision, dtype=dtype, config=config, **kwargs)
    if loaded.missing:
        raise missing_weights_error(name, loaded.missing)
    if loaded.unexpected:
        warnings.warn(
            f"{name}: {len(loaded.unexpected)} weights of the checkpoint are not used by "
            f"{type(loaded.module).__name__}: {_first_few(loaded.unexpected)}",
            stacklevel=3,
        )
    return loaded.module, _origin(name, revision=revision)


def load_config(name: str | Path, *, revision: str | None = None) -> PreTrainedConfig:
    """Load the configuration of a Hub name or a local folder.

    Raises:
        CheckpointError: nothing there that is a model.
    """
    with explain_load_errors(name), quiet_transformers():
        return AutoConfig.from_pretrained(_expanded(name), revision=revision, **OWN_CODE_ONLY)


@dataclass(frozen=True)
class LoadedPart:
    """A part as it was read: names of weights that the checkpoint lacks, and of those that the module lacks."""

    module: PreTrainedModel
    missing: frozenset[str]
    unexpected: frozenset[str]


def read_part(
    part: str,
    name: str | Path,
    *,
    dtype: torch.dtype,
    config: PreTrainedConfig,
    revision: str | None = None,
    may_be_resized: bool = False,
    **kwargs: Any,
) -> LoadedPart:
    """Read a part and say which weights are unaccounted for.

    Weights of an encoder that no feature depends on (a pooler) may be missing; they are set to 0, so that every
    loading gives the same. Where it `may_be_resized`, weights of another shape than the config says are missing, too.

    Raises:
        CheckpointError: it cannot be read, or its weights have other shapes than the config says.
        ConfigError: it cannot be quantized as it was asked for.
    """
    auto: Any = tower_class(config) if part == "vision" else AutoModelForCausalLM
    options: dict[str, Any] = {
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,
        **OWN_CODE_ONLY,
        **kwargs,
    }
    # The bits of a quantized weight depend on the format it is quantized from, so that is always the same one.
    first = torch.float32 if kwargs.get("quantization_config") is not None else dtype
    place: str | None = _expanded(name)
    with explain_load_errors(name), quiet_transformers():
        weights = read_tower(_expanded(name), config=config, revision=revision) if part == "vision" else None
        if weights is not None:
            auto, place, options["state_dict"] = model_class(config), None, weights
        module, info = auto.from_pretrained(place, revision=revision, dtype=first, config=config, **options)
    wrong = sorted(str(key[0] if isinstance(key, tuple) else key) for key in info["mismatched_keys"])
    if wrong and not may_be_resized:
        raise CheckpointError(f"{name}: weights of another shape than its config.json says: {_first_few(wrong)}")
    missing = {*info["missing_keys"], *wrong}
    if part == "vision" and missing:
        weights = module.state_dict()
        for unused in missing - _reached(module):
            weights[unused].zero_()
            missing.discard(unused)
    prepare_4bit_for_cpu(module)
    if first != dtype:
        cast_weights(module, dtype)
    return LoadedPart(module.eval(), frozenset(missing), frozenset(info["unexpected_keys"]))


def missing_weights_error(name: str | Path, missing: Collection[str]) -> CheckpointError:
    """Make the error for a checkpoint that lacks weights."""
    return CheckpointError(
        f"{name}: the checkpoint lacks {len(missing)} weights that the model needs ({_first_few(missing)}); they would "
        "be random. Is it the right kind of model?"
    )


@contextlib.contextmanager
def explain_load_errors(name: str | Path) -> Iterator[None]:
    """Say what to do when the Hub or the disk does not give a model.

    Raises:
        CheckpointError: instead of what the libraries raise.
    """
    try:
        yield
    except SafetensorError as error:
        raise CheckpointError(
            f"{name}: its weights are cut short or damaged ({error}): copy or download it again"
        ) from error
    except ImportError as error:
        lacking = str(error).strip().splitlines()[0].partition(" but it was")[0]
        how = 'run `pip install "visgraft[timm]"`' if "timm" in lacking else "install it"
        raise CheckpointError(f"{name}: {lacking}, which is not installed; {how}") from error
    except (OSError, ValueError, EOFError, RecursionError, UnpicklingError) as error:
        raise CheckpointError(_explanation(str(name), error)) from error


def _explanation(name: str, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    if "gated" in str(error).lower():
        return f"{name} is gated: accept its licence at https://huggingface.co/{name}, then run `hf auth login`"
    if "trust_remote_code" in str(error):
        return (
            f"{name}: needs code that lies beside its weights (auto_map in its config.json), which is never run from "
            "here; name a model of a class that transformers has, or in Python load it yourself and give the module"
        )
    if Path(name).expanduser().exists() or not isinstance(error, OSError):
        return f"{name}: transformers cannot load a model from it ({reason})"
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        return f"{name}: no such folder"
    if hub_constants.HF_HUB_OFFLINE:
        reason = "the Hub was not asked: there is no network, or HF_HUB_OFFLINE is set"
    return (
        f"{name}: not found on the Hugging Face Hub, in its local cache or as a folder ({reason}); check the spelling "
        "and the network, run `hf auth login` if it is private, or give a local folder"
    )


def _first_few(names: Collection[str]) -> str:
    return ", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "")


def _expanded(name: str | Path) -> str:
    place = resolve(str(name))
    path = Path(place).expanduser()
    return str(path) if path.is_dir() else place


def _origin(name: str | Path | None, *, revision: str | None = None) -> Origin:
    """Say where a part came from: absolute path of a folder, or Hub name and the commit that was loaded."""
    if name is None:
        return {"name": None, "revision": None}
    expanded = _expanded(name)
    if Path(expanded).is_dir():
        return {"name": str(Path(expanded).resolve()), "revision": None}
    return {"name": expanded, "revision": _commit(expanded, revision)}


def _commit(name: str, revision: str | None) -> str | None:
    path = Path(cached_file(name, "config.json", revision=revision, local_files_only=True) or "")
    return path.parent.name if path.parent.parent.name == "snapshots" else revision


def _reached(vision: PreTrainedModel) -> set[str]:
    """Name the weights that the features depend on, by one backward pass on a black image."""
    with torch.enable_grad():
        inputs = dummy_inputs(vision.config, image_size=None, device=vision.device)
        parameters = dict(vision.named_parameters())
        features = encode(vision, inputs, settings=VisionSettings())
        grads = torch.autograd.grad(features.float().sum(), list(parameters.values()), allow_unused=True)
    reached = {name for name, grad in zip(parameters, grads, strict=True) if grad is not None}
    return reached | {name for name, _ in vision.named_buffers()}


def known_positions(
    language: str | Path | PreTrainedModel | PreTrainedTokenizerBase, *, revision: str | None
) -> tuple[int | None, bool]:
    """Return what `positions_of` says of a language model; nothing is known of a tokenizer alone."""
    if isinstance(language, PreTrainedTokenizerBase):
        return None, True
    try:
        config = language.config if isinstance(language, PreTrainedModel) else load_config(language, revision=revision)
    except CheckpointError:
        return None, True
    return positions_of(config)
