"""Whether an encoder can be joined, found by trying it on two different images, not by a list of names.

In: an encoder and how it is read. Out: whether images must go through it one at a time, or an `UnsupportedModelError`
that says what it did. A shallow random copy of the same class and configuration is asked four things: is an image's
answer the same twice; is it the same alone and beside another image; do two images have two answers; is the same
encoder made again from its config. An encoder whose class cannot be made shallow is tried itself.
(`measure` finds the axes, from images of two sizes, and refuses what makes no features at all.)

    image_by_image = check_encoder(vision, settings=VisionSettings())
"""

from __future__ import annotations

import json
from typing import NoReturn

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from visgraft.errors import ModelError, UnsupportedModelError
from visgraft.model.tower import FAILURES, build_tower, shallow, tower_class
from visgraft.model.vision import VisionSettings, encode, measure
from visgraft.model.vision_inputs import dummy_inputs, hides_patches, image_extents, native_image_size

LARGEST_SIDE = 224  # in pixels, of encoders that take images of any size
TOLERANCE, TOLERANCE_IN_HALF_PRECISION = 1e-4, 3e-2  # of the largest feature
_passed: dict[str, bool] = {}


def check_encoder(vision: PreTrainedModel, *, settings: VisionSettings) -> bool:
    """Refuse an encoder whose features of an image are not the image's alone.

    A masked autoencoder is told to hide nothing (`mask_ratio` of its config is set to 0).

    Returns:
        Whether images must go through it one at a time.

    Raises:
        UnsupportedModelError: with the class and what it did.
        ModelError: it needs an input that no image processor makes.
        ConfigError: it cannot take `settings.image_size`.
    """
    name = type(vision).__name__
    if hides_patches(vision.config):
        vision.config.mask_ratio = 0.0
    measure(vision.config, settings=settings)
    _check_again(vision)
    key = json.dumps([name, vision.config.to_dict(), str(settings)], sort_keys=True, default=str)
    if key not in _passed:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            copy = _shallow_copy(vision, settings)
            subject = vision if copy is None else copy
            if subject.device.type == "meta":
                return False
            was_training = subject.training
            subject.eval()
            _passed[key] = _check(subject, settings)
            subject.train(was_training)
    return _passed[key]


def _check(vision: PreTrainedModel, settings: VisionSettings) -> bool:
    inputs = _two_images(vision, settings)
    alone = [encode(vision, {key: value[index : index + 1] for key, value in inputs.items()}, settings=settings)
             for index in (0, 0, 1)]  # fmt: skip
    limit = (TOLERANCE if vision.dtype == torch.float32 else TOLERANCE_IN_HALF_PRECISION) * float(alone[0].abs().max())
    if not _close(alone[0], alone[1], limit):
        _refuse(vision, "it gives the same image other features every time (it draws random numbers)")
    if not all(each.isfinite().all() for each in alone):
        _refuse(vision, "its features are no finite numbers")
    if torch.equal(alone[0], alone[2]):
        _refuse(vision, "it gives two different images the same features")
    try:
        together = encode(vision, inputs, settings=settings)
    except (*FAILURES, ModelError):
        return True
    first_and_last = torch.cat([alone[0], alone[2]])
    return not _close(together, first_and_last, limit)


def _two_images(vision: PreTrainedModel, settings: VisionSettings) -> dict[str, Tensor]:
    side = settings.image_size or min(native_image_size(vision.config), LARGEST_SIDE)
    black = dummy_inputs(vision.config, image_size=side, device=vision.device)
    if image_extents(black) is None and settings.image_size is None:  # only native resolution takes any size
        black = dummy_inputs(vision.config, image_size=None, device=vision.device)
    inputs = {key: torch.cat([value, value]) for key, value in black.items()}
    inputs["pixel_values"] = torch.randn(inputs["pixel_values"].shape, device=vision.device)
    return inputs


def _shallow_copy(vision: PreTrainedModel, settings: VisionSettings) -> PreTrainedModel | None:
    """Make a random encoder of the same class, one layer of each kind, or None where that cannot be."""
    if settings.feature_layer != -1:
        return None
    try:
        copy = build_tower(shallow(vision.config), dtype=torch.float32)
        if type(copy) is not type(vision):
            return None
        for parameter in copy.parameters():
            if parameter.numel() and parameter.ndim > 1:  # the library's initial weights are too small
                nn.init.normal_(parameter, std=1.2 * parameter[0].numel() ** -0.5)
            else:
                parameter.add_(0.2 * torch.randn_like(parameter))
        _calibrate(copy, settings)
        return copy
    except FAILURES:
        return None


def _calibrate(copy: PreTrainedModel, settings: VisionSettings) -> None:
    """Give every BatchNorm the statistics of its input; others would let an image fade away layer by layer."""
    norms = [module for module in copy.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
    copy.eval()
    for norm in norms:
        norm.train()
    encode(copy, _two_images(copy, settings), settings=settings)
    copy.eval()


def _check_again(vision: PreTrainedModel) -> None:
    """See that a model folder's config.json makes the same encoder again."""
    try:
        values = vision.config.to_dict()
        again = AutoConfig.for_model(values.pop("model_type"), **values)
        with torch.device("meta"):
            made = build_tower(again)
        same = {name: value.shape for name, value in made.state_dict().items()}
    except FAILURES as error:
        _refuse(vision, f"its config cannot be read again ({type(error).__name__}: {error})")
    own = {name: value.shape for name, value in vision.state_dict().items()}
    if same != own:
        name = tower_class(vision.config).__name__
        _refuse(vision, f"what is saved of it could not be loaded again: its config makes another encoder ({name})")


def _close(first: Tensor, second: Tensor, limit: float) -> bool:
    return first.shape == second.shape and bool(((first - second).abs().max() <= limit).item())


def _refuse(vision: PreTrainedModel, reason: str) -> NoReturn:
    raise UnsupportedModelError(
        f"{type(vision).__name__} ({vision.config.model_type}) cannot be joined: {reason}. Choose another "
        "encoder; most vision encoders work"
    )
