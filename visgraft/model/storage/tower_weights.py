"""The weights of a vision tower inside a larger checkpoint, read without the rest.

In: the name of a checkpoint (LLaVA, Qwen-VL, SAM, ...) and the tower's config. Out: the tower's tensors under the names
that it would have alone, or None where the checkpoint is the tower, or keeps its weights in no safetensors files.

    weights = read_tower("llava-hf/llava-1.5-7b-hf", config=clip_vision_config)

Where the tower lies is found by its own names: the beginning that most of them have in common in the checkpoint.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils.hub import cached_file

from visgraft.model.storage.weights import disk_names
from visgraft.model.tower import PARTS_THAT_SEE, build_tower, vision_tower_config
from visgraft.parsing import parse_json

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


def read_tower(name: str, *, config: PreTrainedConfig, revision: str | None = None) -> dict[str, Tensor] | None:
    """Read a tower's weights out of a larger checkpoint; only the files that hold some of them are fetched.

    Args:
        name: Hub name or folder.
        config: of the tower alone.
        revision: branch, tag or commit on the Hub.

    Raises:
        OSError: the checkpoint cannot be read.
    """
    whole = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    if vision_tower_config(whole) is whole:
        return None
    files = _files(name, revision)
    if not files:
        return None
    with torch.device("meta"):
        tower = build_tower(config)
    prefix = find_prefix(files, [*tower.state_dict(), *disk_names(tower).values()])
    if not prefix:
        return None
    weights: dict[str, Tensor] = {}
    wanted = sorted(key for key in files if key.startswith(prefix))
    for file in sorted({files[key] for key in wanted}):
        with safe_open(_fetch(name, file, revision), framework="pt") as opened:
            for key in (key for key in wanted if files[key] == file):
                weights[key.removeprefix(prefix)] = opened.get_tensor(key)
    return weights


def find_prefix(in_checkpoint: Collection[str], own: Iterable[str]) -> str:
    """Find what stands in front of a tower's own names in a larger checkpoint; "" = nothing, or it is not there.

    >>> find_prefix(["lm.head", "model.visual.a.weight", "model.visual.b.weight"], ["a.weight", "b.weight"])
    'model.visual.'
    """
    ends = {name for name in own if "." in name}
    found: Counter[str] = Counter()
    for key in in_checkpoint:
        pieces = key.split(".")
        for start in range(len(pieces)):
            if ".".join(pieces[start:]) in ends:
                found[".".join(pieces[:start])] += 1
    # a language model may have layers of the same names, and more of them
    most = max(found, key=lambda place: (any(word in place for word in PARTS_THAT_SEE), found[place]), default="")
    return f"{most}." if most else ""


def _files(name: str, revision: str | None) -> dict[str, str]:
    """Say which file holds each tensor."""
    index = cached_file(name, INDEX, revision=revision, _raise_exceptions_for_missing_entries=False)
    if index is not None:
        found: dict[str, str] = parse_json(Path(index).read_bytes())["weight_map"]
        return found
    single = cached_file(name, SINGLE, revision=revision, _raise_exceptions_for_missing_entries=False)
    if single is None:
        return {}
    with safe_open(single, framework="pt") as opened:
        return dict.fromkeys(opened.keys(), SINGLE)


def _fetch(name: str, file: str, revision: str | None) -> str:
    path = cached_file(name, file, revision=revision)
    assert path is not None, "it raises where the file is not there"
    return path
