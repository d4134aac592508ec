"""What the tests of model folders ask of a model and of a folder.

In: a model, or a folder. Out: logits, weights, file names. Usage: `assert torch.equal(logits(first), logits(second))`
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.tiny import random_ids, random_pixels
from visgraft.model.storage.weights import own_weights
from visgraft.model.vlm import VisionLanguageModel


def logits(model: VisionLanguageModel, *, vision: str = "clip") -> Tensor:
    """Run two fixed images with texts."""
    with torch.no_grad():
        return model(input_ids=random_ids(2, 5), pixel_values=random_pixels(2, vision=vision)).logits


def same_weights(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    """Compare every weight bit by bit, LoRA included; a wider format of the same value is the same."""
    mine, theirs = first.state_dict(), second.state_dict()
    return mine.keys() == theirs.keys() and all(
        torch.equal(mine[name].double(), theirs[name].double()) for name in mine
    )


def files(folder: Path) -> set[str]:
    """List the files of a folder and its folders."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def stored(folder: Path) -> dict[str, Tensor]:
    """Read all tensors of a folder, not of its folders."""
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def parts(folder: Path) -> dict[str, dict[str, Any]]:
    """Read what config.json says of the parts."""
    return json.loads((folder / "config.json").read_text())["parts"]


def edit_tensors(folder: Path, *, without: str = "", **added: Tensor) -> None:
    """Write a folder's only safetensors file again, without a weight and with others."""
    (path,) = folder.glob("*.safetensors")
    state = {name: tensor.clone() for name, tensor in load_file(path).items() if name != without}
    save_file({**state, **added}, path, metadata={"format": "pt"})


def edit_config(folder: Path, changes: Mapping[str, Any]) -> None:
    """Change values of a folder's config.json; None takes a key out."""
    values = json.loads((folder / "config.json").read_text()) | dict(changes)
    (folder / "config.json").write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def copied(folder: Path, to: Path) -> Path:
    """Copy a folder, so that a test may damage it."""
    return Path(shutil.copytree(folder, to))


def nudge(module: torch.nn.Module, *names: str) -> None:
    """Change some weights as a training step would: a little, and never in the format's last place only."""
    with torch.no_grad():
        for name in names or own_weights(module):
            tensor = own_weights(module)[name]
            if tensor.is_floating_point():
                tensor.add_(0.05)
