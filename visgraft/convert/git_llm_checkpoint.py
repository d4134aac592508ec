"""Read a checkpoint of GIT-LLM or heron from disk and sort its tensors, each accounted for.

In: a folder with their `config.json` and `model.safetensors`, shards of it, or `pytorch_model*.bin`. Out: a
`GitLlmCheckpoint`: the tensors of encoder, projection, language model and LoRA, by the names of the plain parts.

    checkpoint = read_git_llm_checkpoint(folder)
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from visgraft.convert.architectures import Architecture, find_architecture
from visgraft.errors import CheckpointError
from visgraft.parsing import parse_json

_WRAPPER = "base_model.model."  # peft's, around the whole model (heron) or around OPT's decoder (GIT-LLM)
_LORA = re.compile(r"^(?P<module>.+)\.lora_(?P<side>[AB])(?:\.[^.]+)?\.weight$")
_DEAD_IN_VISION = (r"\.embeddings\.position_ids$",)
_UNUSED_IN_VISION = re.compile(r"\.post_layernorm\.(weight|bias)$")
_PROJECTION = {
    "visual_projection.visual_projection.0.weight": "linear.weight",
    "visual_projection.visual_projection.0.bias": "linear.bias",
    "visual_projection.visual_projection.1.weight": "norm.weight",
    "visual_projection.visual_projection.1.bias": "norm.bias",
}


@dataclass
class GitLlmCheckpoint:
    """A checkpoint of GIT-LLM or heron, sorted.

    Attributes:
        folder: where it was read.
        values: what its `config.json` says.
        architecture: the row of its language model.
        vision: the encoder's tensors, under its own names.
        projection: linear and norm, and the temporal embedding [F, D_vision] where it has one.
        language: the language model's tensors, under the plain model's names.
        lora: part -> module name in that part -> (A [r, in], B [out, r]).
        dead: keys that are stored and were never used.
    """

    folder: Path
    values: dict[str, Any]
    architecture: Architecture
    vision: dict[str, Tensor] = field(default_factory=dict)
    projection: dict[str, Tensor] = field(default_factory=dict)
    language: dict[str, Tensor] = field(default_factory=dict)
    lora: dict[str, dict[str, tuple[Tensor, Tensor]]] = field(default_factory=dict)
    dead: list[str] = field(default_factory=list)

    @property
    def is_tied(self) -> bool:
        """Say whether the head is the input embedding."""
        return bool(self.values.get("tie_word_embeddings", self.architecture.is_tied))


def read_git_llm_checkpoint(folder: Path) -> GitLlmCheckpoint:
    """Read and sort a checkpoint.

    Raises:
        CheckpointError: no such checkpoint, files that are missing or cannot be trusted, tensors unaccounted for.
    """
    values = read_config(folder)
    checkpoint = GitLlmCheckpoint(folder, values, find_architecture(values.get("model_type")))
    tensors = _plain_names(read_tensors(folder))
    frames: dict[int, Tensor] = {}
    pairs: dict[str, dict[str, Tensor]] = {}
    for key in sorted(tensors):
        if is_dead(key, checkpoint.architecture):
            checkpoint.dead.append(key)
        elif match := _LORA.match(key):
            pair = pairs.setdefault(match["module"], {})
            if match["side"] in pair:
                raise CheckpointError(f"{folder}: {match['module']} has two LoRA adapters; need one, merge the other")
            pair[match["side"]] = tensors[key]
        else:
            _sort(key, tensors[key], checkpoint, frames)
    _move(checkpoint)
    _tie(checkpoint)
    _set_frames(checkpoint, frames)
    _set_lora(checkpoint, pairs)
    return checkpoint


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Read every tensor of a checkpoint folder; pickled files are read without running any code in them.

    Raises:
        CheckpointError: no weights there, a shard is missing, or a file holds more than tensors.
    """
    for pattern, index in (
        ("model*.safetensors", "model.safetensors.index.json"),
        ("pytorch_model*.bin", "pytorch_model.bin.index.json"),
    ):
        paths = sorted(folder.glob(pattern))
        if (folder / index).is_file():
            paths = _listed(folder / index)
        if paths:
            tensors: dict[str, Tensor] = {}
            for path in paths:
                tensors.update(_read_file(path))
            return tensors
    if any(folder.glob("adapter_model.*")):
        raise CheckpointError(
            f"{folder} holds a LoRA adapter alone, as the trainers of GIT-LLM and heron save them on the way: the "
            "projection is not in it and nothing can be shown with it. Import the final checkpoint (model.safetensors "
            "or pytorch_model.bin)"
        )
    raise CheckpointError(f"{folder}: no weights; need model*.safetensors or pytorch_model*.bin")


def is_dead(key: str, architecture: Architecture) -> bool:
    """Say whether a key is known to be stored for nothing."""
    return any(re.search(pattern, key) for pattern in (*architecture.dead, *_DEAD_IN_VISION))


def read_config(folder: Path) -> dict[str, Any]:
    """Read the settings of a checkpoint's folder; raises CheckpointError where there are none."""
    path = folder / "config.json"
    try:
        values = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); need the checkpoint's folder") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: holds no settings: got {type(values).__name__}, need a JSON object")
    return values


def _listed(index: Path) -> list[Path]:
    """Give the shards that an index names."""
    try:
        names = sorted(set(parse_json(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: is no index of shards ({error}); download the checkpoint again") from error
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(f"{index}: names {missing}, which are not there; download the whole checkpoint")
    return [index.parent / name for name in names]


def _read_file(path: Path) -> Mapping[str, Tensor]:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise CheckpointError(f"{path} is cut short or damaged ({error}): copy or download it again") from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{path} cannot be read as plain tensors ({reason[:200]}); a file that holds code is not run. Save the "
            "tensors alone, best as safetensors"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise CheckpointError(f"{path}: need a state dict, names to tensors, and nothing else")
    return state


def _plain_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take peft's wrappers out of the names."""
    plain: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = key.replace(_WRAPPER, "").replace(".base_layer.", ".")
        if name in plain:
            raise CheckpointError(f"{name} is stored twice, once as {key}; which is meant cannot be known")
        plain[name] = tensor
    return plain


def _sort(key: str, tensor: Tensor, checkpoint: GitLlmCheckpoint, frames: dict[int, Tensor]) -> None:
    inside = key.removeprefix(checkpoint.architecture.root)
    if inside.startswith("image_encoder."):
        checkpoint.vision[inside.removeprefix("image_encoder.")] = tensor
        if _UNUSED_IN_VISION.search(inside):
            checkpoint.dead.append(key)
    elif inside in _PROJECTION:
        checkpoint.projection[_PROJECTION[inside]] = tensor
    elif match := re.fullmatch(r"img_temporal_embedding\.(\d+)", inside):
        frames[int(match[1])] = tensor
    else:
        checkpoint.language[key] = tensor


def _move(checkpoint: GitLlmCheckpoint) -> None:
    """Put tensors where the plain model has them; what was stored there is dead."""
    for source, target in checkpoint.architecture.moved:
        if source not in checkpoint.language:
            raise CheckpointError(f"{checkpoint.folder}: the tensor {source} is missing, which GIT-LLM computes with")
        if target in checkpoint.language:
            checkpoint.dead.append(target)
        checkpoint.language[target] = checkpoint.language.pop(source)


def _tie(checkpoint: GitLlmCheckpoint) -> None:
    """Keep one copy of a tied head, if it is one."""
    architecture, language = checkpoint.architecture, checkpoint.language
    if not checkpoint.is_tied or architecture.head not in language:
        return
    head = language.pop(architecture.head)
    if not torch.equal(head, language.setdefault(architecture.embedding, head)):
        raise CheckpointError(
            f"{checkpoint.folder}: config.json ties {architecture.head} to {architecture.embedding}, but the tensors "
            "differ; which is meant cannot be known. Set tie_word_embeddings in config.json"
        )


def _set_frames(checkpoint: GitLlmCheckpoint, frames: Mapping[int, Tensor]) -> None:
    if not frames:
        return
    if sorted(frames) != list(range(len(frames))):
        raise CheckpointError(
            f"{checkpoint.folder}: img_temporal_embedding has frames {sorted(frames)}, need all from 0"
        )
    checkpoint.projection["temporal_embedding"] = torch.stack([frames[i].flatten() for i in range(len(frames))])


def _set_lora(checkpoint: GitLlmCheckpoint, pairs: Mapping[str, Mapping[str, Tensor]]) -> None:
    vision_root = f"{checkpoint.architecture.root}image_encoder."
    for module, pair in pairs.items():
        if set(pair) != {"A", "B"}:
            raise CheckpointError(f"{checkpoint.folder}: {module} has lora_{'/'.join(pair)} alone; need A and B")
        part = "vision" if module.startswith(vision_root) else "language"
        checkpoint.lora.setdefault(part, {})[module.removeprefix(vision_root)] = (pair["A"], pair["B"])
