"""The check before training: on one real batch, does exactly what may move move, and is there anything to learn?

In: a model and one real batch. Out: the number of supervised tokens and what the user should know, or a PreflightError.
One row's images and then one of its text tokens are changed; every supervised token must notice exactly when the mask
lets it, through all layers:

    changed      noticed by
    image        every text behind it, no other row
    token t      its own text from t on; never the texts beside it, never another row

    report = preflight(model, batch)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from visgraft.errors import PreflightError
from visgraft.model.parts import input_embedding
from visgraft.model.quantization import format_of
from visgraft.model.sequence import SegmentTable, attention_mask
from visgraft.model.vlm import VisionLanguageModel
from visgraft.segments import IMAGE

# Dense models compute a position bit for bit the same whatever stands in other rows; experts may round otherwise.
TOLERANCE, TOLERANCE_IN_HALF_PRECISION = 1e-5, 1e-2
FUNCTIONAL_DROPOUTS = ("dropout", "attention_dropout", "activation_dropout")  # applied without a module of their own


@dataclass(frozen=True)
class PreflightReport:
    """How many tokens of the batch carry loss, and what the user should know."""

    num_supervised: int
    notes: tuple[str, ...]


@torch.no_grad()
def preflight(model: VisionLanguageModel, batch: Mapping[str, Any]) -> PreflightReport:
    """Check a model on one real batch; weights, mode and random state stay as they are.

    Args:
        model: as it will train (under the autocast that it will train under).
        batch: from `Processor.collate`, with an image and two dialogs behind it if the data have that.

    Raises:
        PreflightError: nothing is supervised, a loss is no finite number, or something moves that must not, or does
            not move that must.
    """
    if batch["target"].numel() == 0:
        raise PreflightError(
            f"none of the {batch['num_text_tokens']} text tokens of the first batch carries loss; samples need answers "
            "and data.max_text_tokens must leave room for them"
        )
    notes = list(_batch_dependence(model))
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(0)
            notes += _perturb(model, batch)
    finally:
        for module, was_training in modes.items():
            module.training = was_training
    return PreflightReport(int(batch["target"].numel()), tuple(notes))


def _perturb(model: VisionLanguageModel, batch: Mapping[str, Any]) -> list[str]:
    before, again = _losses(model, batch), _losses(model, batch)
    if not before.isfinite().all():
        raise PreflightError(
            f"the loss is not finite before training; samples: {', '.join(_named(batch, ~before.isfinite()))}"
        )
    reach = _Reach(model, batch)
    is_half = torch.is_autocast_enabled(model.device.type) or input_embedding(model).dtype.itemsize < 4
    is_half |= any(weight == "8bit" for weight in map(format_of, model.language.parameters()))  # computes in float16
    noise = float((again - before).abs().max()) + (TOLERANCE_IN_HALF_PRECISION if is_half else TOLERANCE)
    row = int(batch["source"][_choose_target(batch), 0])
    has_image = bool((batch["kind"][row] == IMAGE).any())
    if has_image:
        moved = (_losses(model, _with_other_images(batch, row)) - before).abs()
        columns = (batch["kind"][row] == IMAGE).nonzero()[:, 0]
        reach.check(moved, row=row, columns=columns, noise=noise, what="the image")
    column = batch["source"][_choose_target(batch), 1]
    moved = (_losses(model, _with_other_token(batch, row, int(column))) - before).abs()
    reach.check(moved, row=row, columns=column[None], noise=noise, what="a text token")
    return [] if has_image else ["the first batch has no image: only its text was checked"]


class _Reach:
    """Which supervised tokens may and which must notice a change, by the mask of every kind of layer."""

    def __init__(self, model: VisionLanguageModel, batch: Mapping[str, Any]) -> None:
        self.batch = batch
        self.num_layers = int(model.language.config.get_text_config(decoder=True).num_hidden_layers)
        self.causal_image = model.config.image_attention == "causal"
        self.reaches = [reach for reach, _ in model.attention_spec.reaches.values()]

    def check(self, moved: Tensor, *, row: int, columns: Tensor, noise: float, what: str) -> None:
        """Compare what moved [M] with what may and must."""
        may, must = (reached[self.batch["source"][:, 1]] for reached in self._reached(row, columns))
        in_row = self.batch["source"][:, 0] == row
        may, must = may & in_row, must & in_row
        leaked = (moved > noise) & ~may
        if leaked.any():
            raise PreflightError(
                f"changing {what} of sample {self._name(row)} moves tokens that must not see it (samples "
                f"{', '.join(_named(self.batch, leaked))}): the language model does not follow the mask; try "
                "model.attention: eager, or another language model"
            )
        if must.any() and not bool((moved[must] > 0).any()):
            raise PreflightError(
                f"changing {what} of sample {self._name(row)} moves no token that sees it: the model ignores {what}"
            )

    def _reached(self, row: int, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Give who may notice, through any layers, and who sees a changed position in every layer: [S] bool each."""
        names = ("kind", "group", "segment", "position", "sees")
        table = SegmentTable(*(self.batch[name][row : row + 1] for name in names))
        masks = torch.stack(
            [
                attention_mask(table, causal_image=self.causal_image, window=reach.window, chunk=reach.chunk)[0, 0]
                for reach in self.reaches
            ]
        )
        may = torch.zeros(table.length, dtype=torch.bool, device=columns.device)
        may[columns] = True
        for _ in range(self.num_layers):
            may = masks.any(0)[:, may].any(1)  # a position sees itself, so this only grows
        return may, masks.all(0)[:, columns].any(1)

    def _name(self, row: int) -> str:
        return ", ".join(_named(self.batch, self.batch["source"][:, 0] == row))


def _losses(model: VisionLanguageModel, batch: Mapping[str, Any]) -> Tensor:
    losses = model.loss(batch).target_losses
    assert losses is not None
    return losses


def _choose_target(batch: Mapping[str, Any]) -> int:
    """Choose the first supervised token of a row with an image and several dialogs, or the nearest to that."""
    rows = batch["source"][:, 0]
    has_image = (batch["kind"] == IMAGE).any(1)[rows]
    num_dialogs = batch["sees"].any(2).sum(1)[rows]
    return int((has_image.long() * (1 + num_dialogs.clamp(max=2))).argmax())


def _with_other_images(batch: Mapping[str, Any], row: int) -> dict[str, Any]:
    """Move the images of one row along a random direction (LayerNorm would take a constant out again)."""
    ends = batch["num_image_tokens"].cumsum(0)
    per_row = (batch["kind"] == IMAGE).sum(1).cumsum(0)
    first = 0 if row == 0 else int(per_row[row - 1])
    mine = (ends > first) & (ends <= int(per_row[row]))
    pixels = batch["vision_inputs"]["pixel_values"].clone()
    direction = torch.randn(pixels[mine].shape, device=pixels.device, dtype=torch.float32)
    pixels[mine] += (direction * pixels.float().std().clamp(min=0.1) * 3).to(pixels.dtype)
    return {**batch, "vision_inputs": {**batch["vision_inputs"], "pixel_values": pixels}}


def _with_other_token(batch: Mapping[str, Any], row: int, column: int) -> dict[str, Any]:
    ids = batch["input_ids"].clone()
    others = batch["target"][batch["target"] != ids[row, column]]
    ids[row, column] = others[0] if others.numel() else (ids[row, column] + 1) % 2
    return {**batch, "input_ids": ids}


def _named(batch: Mapping[str, Any], chosen: Tensor) -> list[str]:
    """Name the samples of chosen targets ([M] bool)."""
    return [batch["sample_ids"][index] for index in batch["target_sample"][chosen].unique().tolist()]


def _batch_dependence(model: VisionLanguageModel) -> Iterator[str]:
    """Say what makes a text's loss depend on the texts beside it, so that shared rows equal single ones no more."""
    for part in ("vision", "projection", "language"):
        module = model.get_submodule(part)
        if any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in module.modules()):
            yield f"{part}: BatchNorm in training mode makes each image's features depend on the batch"
        rates = [m.p for m in module.modules() if isinstance(m, nn.Dropout) and m.training]
        config = getattr(module, "config", None) if module.training else None
        rates += [getattr(config, name, None) or 0.0 for name in FUNCTIONAL_DROPOUTS]
        if any(format_of(parameter) == "8bit" for parameter in module.parameters()):
            yield (
                f"{part}: with weights of 8 bits, what is computed in 16 depends on all texts of the batch, so shared "
                "and single rows agree up to rounding only"
            )
        if max(rates) > 0:
            yield f"{part}: dropout {max(rates):g} is on, so shared and single rows agree on average only"
