"""Fold LoRA into the weights it stands on, and refuse to where the model would then say something else.

In: a model folder with LoRA. Out: a full model folder without, whose logits were compared after loading it back.

    report = merge_model("runs/my-run", "merged")
"""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from visgraft.atomic import whole_folder
from visgraft.errors import CheckpointError, ModelError
from visgraft.model.lora import adapters_of, lora_layers
from visgraft.model.quantization import dequantize, is_quantized, quantization_name
from visgraft.model.storage.restoring import find_folder
from visgraft.model.storage.saving import STORED_PARTS
from visgraft.model.storage.weights import read_tensors
from visgraft.model.trainable import set_trainable
from visgraft.model.vision_inputs import dummy_inputs
from visgraft.model.vlm import VisionLanguageModel
from visgraft.runs import find_model

# How far logits may move, relative to the largest, by rounding the folded weights to a format.
ALLOWED = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
QUANTIZED_LORA = "peft.tuners.lora.bnb"  # the module of peft's LoRA layers around quantized linears
_NUM_ROWS, _NUM_TOKENS = 2, 12  # on which logits are compared


class MergeRefusedError(ModelError):
    """The merged model says something else than the model with its adapters; nothing was written."""


@dataclass(frozen=True)
class MergeReport:
    """What a merge did.

    Attributes:
        folder: the merged model folder.
        merged: part -> number of linears that had LoRA.
        change: how far logits moved, relative to the largest.
        allowed: how far they might have.
    """

    folder: str
    merged: dict[str, int]
    change: float
    allowed: float

    def __fspath__(self) -> str:
        return self.folder


def merge_model(
    src: str | Path, dst: str | Path, *, dtype: str | None = None, dequantize_first: bool = False, replace: bool = False
) -> MergeReport:
    """Fold the LoRA of a model folder into its weights and write the result.

    Args:
        src: model folder, run folder or Hub name.
        dst: folder to write.
        dtype: format of the merged weights, float32, bfloat16 or float16; None = as the language model's are stored.
        dequantize_first: unpack weights of 8 or 4 bits; without it, a model that has such is refused.
        replace: write over a model folder that is there.

    Raises:
        CheckpointError: the folder has no LoRA, or it is `dst` itself.
        MergeRefusedError: the logits moved more than the format explains.
    """
    source, folder = find_folder(find_model(src)), Path(dst).expanduser()
    check_target(folder, source=source, replace=replace)
    model = VisionLanguageModel.from_pretrained(source)
    merged = {part: len(list(lora_layers(getattr(model, part)))) for part in STORED_PARTS}
    if not any(merged.values()):
        raise CheckpointError(f"{src} has no LoRA: nothing to merge")
    if is_quantized(model.language):
        if not dequantize_first:
            width = quantization_name(model.config.parts["language"]["quantization"])
            raise MergeRefusedError(
                f"{src}: its language model is kept in {width}, into "
                "which LoRA cannot be merged without loss; --dequantize unpacks it first, into a model as large as "
                "the unquantized one"
            )
        dequantize(model.language)
    format_ = _format(dtype or stored_format(model, source))
    before = trial_logits(model)
    for part in STORED_PARTS:
        fold_lora(getattr(model, part))
    set_trainable(model, modes={}, frozen_dtype=format_)  # casts, BatchNorm left alone
    with whole_folder(folder) as building:
        model.save_pretrained(building, full=True)
        del model
        after = trial_logits(VisionLanguageModel.from_pretrained(building))
        change = float((after - before).abs().max() / before.abs().max())
        if not change <= ALLOWED[format_]:  # NaN is refused too
            raise MergeRefusedError(
                f"merging {src} moves its logits by {change:.1e} of the largest, {format_} explains "
                f"{ALLOWED[format_]:.0e}; nothing was written. "
                + ("Merge in float32" if format_ != torch.float32 else "Keep the adapters")
            )
        copy_missing(source, building)
    return MergeReport(str(folder), {part: count for part, count in merged.items() if count}, change, ALLOWED[format_])


def check_target(folder: Path, *, source: Path, replace: bool) -> None:
    """See that a folder may be written, or replaced where that is asked for.

    Raises:
        CheckpointError: it is the source, holds something that is no model, or a model that is not to be replaced.
    """
    if folder.resolve() == source.resolve():
        raise CheckpointError(f"{folder}: is the model itself, which would be overwritten; give another folder")
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: holds something that is no model; give a new folder")
    if not replace:
        raise CheckpointError(f"{folder}: a model is there already; give another folder, or say --force to replace it")


def fold_lora(part: nn.Module) -> None:
    """Add every adapter of a part to the weights below it, and take the adapters out."""
    for path, layer in list(lora_layers(part)):
        tuned: Any = layer
        if type(tuned).__module__ == QUANTIZED_LORA:  # its own `merge` would quantize the sum again
            for adapter in adapters_of(part):
                tuned.get_base_layer().weight.data += tuned.get_delta_weight(adapter)
        else:
            tuned.merge(safe_merge=True, adapter_names=adapters_of(part))
        parent, _, name = path.rpartition(".")
        setattr(part.get_submodule(parent), name, tuned.get_base_layer())
    if hasattr(part, "peft_config"):
        del part.peft_config


@torch.no_grad()
def trial_logits(model: VisionLanguageModel) -> Tensor:
    """Give fp32 logits [2, P + T, V] on `trial_inputs`."""
    return model(**trial_inputs(model)).logits.float()


def trial_inputs(model: VisionLanguageModel) -> dict[str, Tensor]:
    """Make images of noise and random tokens, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    embeddings: Any = model.get_input_embeddings()
    ids = torch.randint(0, embeddings.weight.shape[0], (_NUM_ROWS, _NUM_TOKENS), generator=generator)
    inputs = dummy_inputs(model.vision.config, image_size=model.config.image_size, device="cpu")
    inputs["pixel_values"] = torch.randn(inputs["pixel_values"].shape, generator=generator)
    repeated = {name: value.repeat_interleave(_NUM_ROWS, 0).to(model.device) for name, value in inputs.items()}
    return {"input_ids": ids.to(model.device), **repeated}


def stored_format(model: VisionLanguageModel, folder: Path) -> str:
    """Give the format in which most of the language model's weights are kept on disk."""
    described = model.config.parts["language"]
    if "dtype" in described:
        return str(described["dtype"])
    formats = Counter(tensor.dtype for tensor in read_tensors(folder / "language").values())
    return str(formats.most_common(1)[0][0]).removeprefix("torch.")


def _format(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if found not in ALLOWED:
        raise CheckpointError(f"dtype: got {name!r}, allowed are float32, bfloat16 and float16")
    return found


def copy_missing(source: Path, target: Path) -> None:
    """Take the processor and whatever else lies beside the model along."""
    for path in source.iterdir():
        if path.is_file() and not (target / path.name).exists() and path.suffix != ".py" and path.name != "import.json":
            shutil.copy(path, target)
