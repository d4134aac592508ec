"""Load a model and its processor, ready to answer.

In: a run folder, a model folder or a Hub name. Out: the model on its device, its frozen weights in the format that the
device computes in, and its processor. Usage: `model, processor = load("runs/20260102-030405-demo")`
"""

from __future__ import annotations

import torch

from visgraft.data.prompt import end_token_id
from visgraft.model.precision import Precision, computing_dtype, pick_device
from visgraft.model.storage.restoring import find_folder
from visgraft.model.trainable import set_trainable
from visgraft.model.vlm import VisionLanguageModel
from visgraft.processor import Processor
from visgraft.runs import find_model


def load(
    name: str, *, device: str | torch.device | None = None, precision: Precision = "auto"
) -> tuple[VisionLanguageModel, Processor]:
    """Load a model and its processor, ready to answer.

    Args:
        name: run folder, model folder or Hub name.
        device: None = the accelerator that is there, else the CPU.
        precision: format of the weights that were frozen in training; what was trained stays float32. `auto` is bf16
            where the hardware computes in it, else fp16 on a GPU, else fp32.

    Raises:
        CheckpointError: nothing there, or the folder is not whole.
        ConfigError: the device does not exist or lacks the format.
    """
    target = pick_device(device)
    dtype = computing_dtype(precision, device=target)
    folder = find_folder(find_model(name))
    model = VisionLanguageModel.from_pretrained(folder, language_dtype=dtype)  # the large part never lies in float32
    processor = Processor.from_pretrained(folder)
    model.stop_also_at(end_token_id(processor.tokenizer, processor.prompt_template))
    set_trainable(model, modes={}, frozen_dtype=dtype)
    model.to(target)  # type: ignore[arg-type]  # transformers wraps the method untyped
    return model.eval(), processor
