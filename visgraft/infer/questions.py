"""Read what is asked: dialogs to token ids, images to prefixes, and how many positions both leave for an answer.

In: samples whose dialogs end in a turn without an answer. Out: one `Question` for each dialog.

    questions = read_questions(model, processor, [(0, sample)], max_new_tokens=32, batch_size=16)
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visgraft.data.sample import ImageRef, Sample
from visgraft.errors import ModelError
from visgraft.model.vlm import VisionLanguageModel
from visgraft.processor import Processor


@dataclass(frozen=True)
class Question:
    """One dialog to answer: its place among all, its prompt's ids, its prefix [P, D_lm], the longest answer."""

    index: int
    ids: list[int]
    prefix: Tensor
    max_new_tokens: int

    @property
    def num_positions(self) -> int:
        """The positions of its row in front of the answer."""
        return len(self.ids) + self.prefix.shape[0]


def read_questions(
    model: VisionLanguageModel,
    processor: Processor,
    window: Sequence[tuple[int, Sample]],
    *,
    max_new_tokens: int,
    batch_size: int,
) -> list[Question]:
    """Encode the dialogs of some samples, and the images that they share once."""
    groups: dict[Hashable, Sequence[ImageRef]] = {}
    for _, sample in window:
        groups.setdefault(_same_images(sample), sample.images)
    prefixes: dict[Hashable, Tensor] = {}
    for keys in split(list(groups), batch_size):
        prefixes.update(zip(keys, _encode(model, processor, [groups[key] for key in keys]), strict=True))
    questions = []
    for start, sample in window:
        prefix = prefixes[_same_images(sample)]
        for offset, dialog in enumerate(sample.dialogs):
            ids = processor.prompt(dialog)
            limit = min(max_new_tokens, _room(model, len(ids), prefix.shape[0]))
            questions.append(Question(start + offset, ids, prefix, limit))
    return questions


def _same_images(sample: Sample) -> Hashable:
    """Give a key that is equal where the images are the same; each image stays alive while keys are compared."""
    return tuple(str(image) if isinstance(image, (str, Path)) else id(image) for image in sample.images)


def _encode(model: VisionLanguageModel, processor: Processor, groups: Sequence[Sequence[ImageRef]]) -> list[Tensor]:
    """Make the prefix [P, D_lm] of each group of images."""
    inputs = processor(images=[list(group) for group in groups], text=[""] * len(groups)).to(model.device)
    vision_inputs = {name: tensor for name, tensor in inputs.items() if name not in ("input_ids", "attention_mask")}
    if not vision_inputs:
        return [torch.zeros(0, model.entrance.width, device=model.device)] * len(groups)
    prefix, is_real = model.image_prefix(**vision_inputs)
    return [tokens[mask] for tokens, mask in zip(prefix, is_real, strict=True)]


def _room(model: VisionLanguageModel, num_text_tokens: int, num_image_tokens: int) -> int:
    """Say how many new tokens the language model's positions leave."""
    limit = model.contract.max_positions
    if limit is None:
        return 2**31
    room = limit - num_text_tokens - _positions_taken(model, num_image_tokens)
    if room < 1:
        raise ModelError(
            f"the prompt has {num_text_tokens} tokens behind {num_image_tokens} image tokens, and the {limit} "
            f"positions of {model.contract.name} leave no room for an answer; shorten the prompt"
        )
    return room


def _positions_taken(model: VisionLanguageModel, num_image_tokens: int) -> int:
    """Count the positions of image tokens; those of an imported ancestor take none (model/entrance.py)."""
    return num_image_tokens if model.entrance.at == "embeddings" else 0


def num_prompt_positions(model: VisionLanguageModel, processor: Processor, sample: Sample) -> int:
    """Count the positions that a sample's one dialog takes in front of its answer; no image is opened.

    Where images bring their own number of tokens, each counts as many as the processor expects at most.
    """
    [dialog] = sample.dialogs
    num_image_tokens = len(sample.images) * processor.num_image_tokens
    return len(processor.prompt(dialog)) + _positions_taken(model, num_image_tokens)


def split(items: list[Any], size: int) -> Iterator[list[Any]]:
    """Cut a list into pieces of a size; the last one may be shorter."""
    return (items[start : start + size] for start in range(0, len(items), size))
