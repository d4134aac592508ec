"""Look inside a model at one image: visual words, norms, and where an answer looks.

In: a model, its processor, an image, perhaps a prompt. Out: an `ImageInspection`: the picture as the encoder gets it
and every number, which `report.py` draws.

    look = inspect_image(model, processor, image, prompt="What is it?")
    look.as_json()["image_tokens"][0]["by_cosine"][0]["text"]
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from visgraft.data.images.pixels import seen_image
from visgraft.data.messages import asked
from visgraft.data.sample import Sample
from visgraft.errors import ConfigError
from visgraft.inference import answer_each
from visgraft.inference.eval_mode import eval_mode
from visgraft.inspection.answer_attention import answer_attention
from visgraft.inspection.nearest_tokens import Nearest, Neighbours, find_nearest
from visgraft.inspection.patch_grid import PatchGrid, find_patch_grid, join_grids
from visgraft.model.vlm import VisionLanguageModel
from visgraft.processor import Processor

UNREADABLE = re.compile(r"[\x00-\x1f\x7f\ufffd]")
SPACE_MARKS = ("Ġ", "▁")  # how byte-level and sentencepiece vocabularies write a space in front
QUANTILES = {"least": 0.0, "5 %": 0.05, "median": 0.5, "95 %": 0.95, "most": 1.0}


@dataclass(frozen=True)
class AnswerInspection:
    """Where an answer looks.

    Attributes:
        prompt: what was asked.
        answer: the greedy answer.
        token_ids: of the answer's tokens, the one that ended it included.
        layers: numbers of the layers, the first is 0.
        image_share: [L, A], share of a token's attention that goes to the image.
        even_share: [A], the same if every position in front drew alike.
        weights: [L, A, P], how that share is spread over the image tokens; each row sums to 1.
    """

    prompt: str
    answer: str
    token_ids: list[int]
    layers: list[int]
    image_share: Tensor
    even_share: Tensor
    weights: Tensor


@dataclass(frozen=True)
class ImageInspection:
    """One image seen from inside.

    Attributes:
        picture: the image as the encoder gets it.
        squares: where on it the image tokens lie.
        nearest: the vocabulary's tokens near them.
        spelling: id -> text, of every token that is named.
        attention: of the answer, where a prompt was given.
    """

    picture: Image.Image
    squares: PatchGrid
    nearest: Nearest
    spelling: dict[int, str]
    attention: AnswerInspection | None

    def as_json(self) -> dict[str, Any]:
        """Return every number as plain values."""
        near, squares = self.nearest, self.squares
        tokens = [
            {
                "place": squares.place(index),
                "norm": round(float(norm), 5),
                "by_dot": self._words(near.by_dot, index),
                "by_cosine": self._words(near.by_cosine, index),
            }
            for index, norm in enumerate(near.image_norms)
        ]
        frequency = {
            name: [{"id": token, "text": self.spelling[token], "count": count} for token, count in found.frequency()]
            for name, found in (("dot", near.by_dot), ("cosine", near.by_cosine))
        }
        nearest_cosine = {
            "image_tokens": round(float(near.by_cosine.cosine[:, 0].median()), 5),
            "text_tokens": round(near.text_cosine, 5),
            "random_directions": round(near.random_cosine, 5),
        }
        return {
            "grid": {"rows": squares.rows, "columns": squares.columns, "leading_tokens": squares.num_leading},
            "image_tokens": tokens,
            "frequency": frequency,
            "norms": {"image": quantiles(near.image_norms), "text": quantiles(near.text_norms)},
            "nearest_cosine": nearest_cosine,
            "attention": None if self.attention is None else self._attention(self.attention),
        }

    def _words(self, found: Neighbours, index: int) -> list[dict[str, Any]]:
        values = zip(found.ids[index].tolist(), found.dot[index].tolist(), found.cosine[index].tolist(), strict=True)
        return [
            {"id": token, "text": self.spelling[token], "dot": round(dot, 5), "cosine": round(cosine, 5)}
            for token, dot, cosine in values
        ]

    def _attention(self, found: AnswerInspection) -> dict[str, Any]:
        tokens = [
            {
                "id": token,
                "text": self.spelling[token],
                "image_share": round(float(found.image_share[:, place].mean()), 5),
                "even_share": round(float(found.even_share[place]), 5),
                "image_share_by_layer": _rounded(found.image_share[:, place]),
                "weights_by_layer": [_rounded(row) for row in found.weights[:, place]],
            }
            for place, token in enumerate(found.token_ids)
        ]
        return {"prompt": found.prompt, "answer": found.answer, "layers": found.layers, "tokens": tokens}


def inspect_image(
    model: VisionLanguageModel,
    processor: Processor,
    image: Image.Image,
    *,
    prompt: str | None = None,
    number: int = 5,
    layers: str | None = None,
    max_new_tokens: int = 32,
) -> ImageInspection:
    """ImageInspection at one image from inside.

    Args:
        model: as `infer.load` gives it.
        processor: of that model.
        image: any size; it is shown as the encoder gets it.
        prompt: asked about the image, greedily answered; "" = a caption; None = nothing is asked.
        number: vocabulary tokens to find near each image token.
        layers: whose attention is shown, such as 0,5 or 10-20; None = all.
        max_new_tokens: longest answer.

    Raises:
        BadSampleError: the image cannot be used.
        ConfigError: a layer that there is not.
        UnsupportedModelError: the encoder's grid or the language model's attention cannot be read.
    """
    config = model.language.config.get_text_config(decoder=True)
    chosen = parse_layers(layers, num_layers=config.num_hidden_layers)
    texts = model.config.text_before_images
    inputs = processor(images=image, text="").to(model.device)
    vision_inputs = {key: value for key, value in inputs.items() if key not in ("input_ids", "attention_mask")}
    with eval_mode(model):
        prefix, is_real = model.image_prefix(**vision_inputs)
        read = prefix[0][is_real[0]]
        tokens = read[0 if texts is None else len(texts["first"]) :]
        cut = None if processor.tile_settings is None else processor.cut(image, image.convert("RGB"))
        is_cut = cut is not None and cut.grid != (1, 1)
        squares = find_patch_grid(
            model, vision_inputs, num_tokens=processor.num_image_tokens if is_cut else len(tokens)
        )
        nearest = find_nearest(model, tokens, sorted(processor.tokenizer.get_vocab().values()), number=number)
    if cut is not None and is_cut:
        ends = cut.ends_row if model.config.has_row_separator else [False] * len(cut.pictures)
        per_tile = processor.num_image_tokens
        squares = join_grids(squares, num_tokens=per_tile, grid=cut.grid, ends_row=ends)
        picture = image.convert("RGB").resize([cells * cut.pictures[0].width for cells in cut.grid[::-1]])
    else:
        picture = _seen(vision_inputs, squares, processor, image)
    attention = None
    if prompt is not None:
        sample = Sample(images=[image], dialogs=[[asked(prompt, num_images=1)]])
        attention = _inspect_answer(
            model, processor, sample, read, num_image=len(tokens), layers=chosen, max_new_tokens=max_new_tokens
        )
    named = {*nearest.by_dot.ids.flatten().tolist(), *nearest.by_cosine.ids.flatten().tolist()}
    named |= set() if attention is None else set(attention.token_ids)
    return ImageInspection(
        picture, squares, nearest, {token: spell(processor.tokenizer, token) for token in named}, attention
    )


def _seen(
    vision_inputs: Mapping[str, Tensor], squares: PatchGrid, processor: Processor, image: Image.Image
) -> Image.Image:
    """Give the image as the encoder gets it, where that can be told from its pixels."""
    pixels = vision_inputs["pixel_values"][0]
    if "spatial_shapes" in vision_inputs:
        return seen_image(pixels, processor.image_processor, grid=(squares.rows, squares.columns))
    if pixels.ndim != 3 or pixels.shape[0] != 3:  # patches in an order of their own
        return image.convert("RGB")
    return seen_image(pixels, processor.picture_processor)


def _inspect_answer(
    model: VisionLanguageModel,
    processor: Processor,
    sample: Sample,
    prefix: Tensor,
    *,
    num_image: int,
    layers: Sequence[int],
    max_new_tokens: int,
) -> AnswerInspection:
    prompt_ids = processor.prompt(sample.dialogs[0], has_images=True)
    [answered] = answer_each(model, processor, [sample], max_new_tokens=max_new_tokens)
    if answered.error is not None:
        raise answered.error
    answer_ids = list(answered.token_ids)
    with eval_mode(model):
        shares = answer_attention(model, prefix, prompt_ids=prompt_ids, answer_ids=answer_ids)[list(layers)].cpu()
    to_image = shares[:, :, len(prefix) - num_image : len(prefix)]  # text may stand before it
    image_share = to_image.sum(-1)
    in_front = len(prefix) + len(prompt_ids) + torch.arange(len(answer_ids))
    return AnswerInspection(
        prompt=sample.dialogs[0][0].prompt,
        answer=answered.text,
        token_ids=answer_ids,
        layers=list(layers),
        image_share=image_share,
        even_share=num_image / in_front,
        weights=to_image / image_share[..., None].clamp(min=1e-12),
    )


def parse_layers(text: str | None, *, num_layers: int) -> list[int]:
    """Read numbers of layers, such as 0,5 or 10-20; None = all.

    Raises:
        ConfigError: something else, or a layer that there is not.
    """
    if text is None:
        return list(range(num_layers))
    chosen: set[int] = set()
    for piece in text.split(","):
        first, dash, last = (part.strip() for part in piece.partition("-"))
        ends = (first, last if dash else first)
        if not all(end.isdecimal() and int(end) < num_layers for end in ends) or int(ends[0]) > int(ends[1]):
            raise ConfigError(
                f"--layers: got {text!r}, need numbers of layers from 0 to {num_layers - 1}, such as 0,5 or 10-20"
            )
        chosen.update(range(int(ends[0]), int(ends[1]) + 1))
    return sorted(chosen)


def spell(tokenizer: Any, token_id: int) -> str:
    """Write a token so that it can be read; a space in front is written as an open box."""
    piece = str(tokenizer.convert_ids_to_tokens(token_id))
    text = str(tokenizer.decode([token_id])).strip()
    if not text or UNREADABLE.search(text):  # white space alone, control characters, or some bytes of a letter
        return piece
    return f"␣{text}" if piece.startswith(SPACE_MARKS) else text


def quantiles(values: Tensor) -> dict[str, float]:
    """Give a few quantiles of [n] values by name."""
    ordered = values.sort().values  # torch.quantile refuses large inputs
    return {name: round(float(ordered[round(share * (len(ordered) - 1))]), 5) for name, share in QUANTILES.items()}


def _rounded(values: Iterable[Any]) -> list[float]:
    return [round(float(value), 6) for value in values]
