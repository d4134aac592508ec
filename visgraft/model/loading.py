"""The parts from their names: Hub names, local folders or modules that are loaded already.

In: a name. Out: the module, with every weight accounted for, and where it came from.

    vision, origin = load_vision("openai/clip-vit-base-patch16")
    language, origin = load_language("facebook/opt-350m")
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils.hub import cached_file

from visgraft.errors import CheckpointError
from visgraft.model.vision import dummy_inputs, vision_tower_config

Origin = dict[str, Any]  # {"name": str | None, "revision": str | None}


def load_vision(
    name: str | Path | PreTrainedModel,
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    config: PreTrainedConfig | None = None,
    ignore_missing: Collection[str] = (),
) -> tuple[PreTrainedModel, Origin]:
    """Load an encoder; of a checkpoint that also holds a text tower (CLIP, SigLIP), the vision tower.

    Args:
        name: Hub name, local folder, or a loaded module.
        revision: branch, tag or commit on the Hub.
        dtype: of the weights.
        config: used instead of the checkpoint's own.
        ignore_missing: weights that the caller will set.

    Raises:
        CheckpointError: nothing there, or weights missing that the features need.
    """
    if isinstance(name, nn.Module):
        tower = getattr(name, "vision_model", None)
        return (tower if isinstance(tower, PreTrainedModel) else name), _origin(None)
    own = load_config(name, revision=revision) if config is None else config
    config = vision_tower_config(own)
    vision, missing = _load(AutoModel, name, revision=revision, dtype=dtype, config=config)
    missing -= set(ignore_missing)
    if missing:  # a pooler that no feature passes through may be missing; anything else may not
        missing &= _reached(vision)
    if missing:
        raise _missing_error(name, missing)
    return vision, _origin(name, revision=revision)


def load_language(
    name: str | Path | PreTrainedModel,
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    init: str = "pretrained",
    config: PreTrainedConfig | None = None,
    ignore_missing: Collection[str] = (),
    **kwargs: Any,
) -> tuple[PreTrainedModel, Origin]:
    """Load a causal language model, unmodified.

    Args:
        name: Hub name, local folder, or a loaded module.
        revision: branch, tag or commit on the Hub.
        dtype: of the weights.
        init: `pretrained`, or `random` to take only its configuration (as GIT itself began).
        config: used instead of the checkpoint's own.
        ignore_missing: weights that the caller will set.
        kwargs: for `AutoModelForCausalLM.from_pretrained` (`device_map`, `quantization_config`, `attn_implementation`).

    Raises:
        CheckpointError: nothing there, or weights missing.
    """
    if isinstance(name, nn.Module):
        return name, _origin(None)
    config = load_config(name, revision=revision) if config is None else config
    if init == "random":
        return AutoModelForCausalLM.from_config(config, dtype=dtype, **kwargs), _origin(None)
    language, missing = _load(AutoModelForCausalLM, name, revision=revision, dtype=dtype, config=config, **kwargs)
    missing -= set(ignore_missing)
    if missing:
        raise _missing_error(name, missing)
    return language, _origin(name, revision=revision)


def load_config(name: str | Path, *, revision: str | None = None) -> PreTrainedConfig:
    """Load the configuration of a Hub name or a local folder.

    Raises:
        CheckpointError: nothing there that is a model.
    """
    return _explained(lambda: AutoConfig.from_pretrained(name, revision=revision), name)


def _load(
    auto: Any, name: str | Path, *, revision: str | None, dtype: torch.dtype, config: PreTrainedConfig, **kwargs: Any
) -> tuple[PreTrainedModel, set[str]]:
    model, info = _explained(
        lambda: auto.from_pretrained(
            name, revision=revision, dtype=dtype, config=config, output_loading_info=True, **kwargs
        ),
        name,
    )
    if info.get("mismatched_keys"):
        raise CheckpointError(f"{name}: weights of another shape than the config says: {info['mismatched_keys']}")
    return model.eval(), set(info["missing_keys"])


def _explained(load: Callable[[], Any], name: str | Path) -> Any:
    """Say what to do when the Hub or the disk does not give a model."""
    try:
        return load()
    except (OSError, ValueError) as error:
        text = str(error)
        if "gated" in text.lower():
            raise CheckpointError(
                f"{name} is gated: accept its licence at https://huggingface.co/{name}, then run `hf auth login`"
            ) from error
        if Path(name).exists():
            raise CheckpointError(
                f"{name}: not a model folder that transformers can load ({_first_line(text)})"
            ) from error
        looks_like_path = str(name).startswith(("/", ".", "~")) or str(name).count("/") > 1
        if looks_like_path:
            raise CheckpointError(f"{name}: no such folder") from error
        raise CheckpointError(
            f"{name}: not found on the Hugging Face Hub, in its local cache or as a folder ({_first_line(text)}); "
            "check the spelling and the network, or give a local folder"
        ) from error


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0][:200] if text.strip() else "no reason given"


def _origin(name: str | Path | None, *, revision: str | None = None) -> Origin:
    """Say where a part came from: absolute path of a folder, or Hub name and the commit that was loaded."""
    if name is None:
        return {"name": None, "revision": None}
    if Path(name).is_dir():
        return {"name": str(Path(name).resolve()), "revision": None}
    return {"name": str(name), "revision": _commit(str(name), revision)}


def _commit(name: str, revision: str | None) -> str | None:
    path = cached_file(name, "config.json", revision=revision, local_files_only=True)
    parts = Path(path or "").parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else revision


def _reached(vision: PreTrainedModel) -> set[str]:
    """Name the weights that the features depend on, by one backward pass on a black image."""
    with torch.enable_grad():
        inputs = dummy_inputs(vision.config, image_size=None, device=vision.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(vision.dtype)
        parameters = dict(vision.named_parameters())
        grads = torch.autograd.grad(
            vision(**inputs).last_hidden_state.float().sum(), list(parameters.values()), allow_unused=True
        )
    reached = {name for name, grad in zip(parameters, grads, strict=True) if grad is not None}
    return reached | {name for name, _ in vision.named_buffers()}


def _missing_error(name: str | Path, missing: Collection[str]) -> CheckpointError:
    shown = ", ".join(sorted(missing)[:5])
    return CheckpointError(
        f"{name}: the checkpoint lacks {len(missing)} weights that the model needs ({shown}"
        f"{', ...' if len(missing) > 5 else ''}); they would be random. Is it the right kind of model?"
    )
