"""What an encoder is given: the outputs of its image processor, batched in one form, and what `forward` takes of them.

In: what image processors make, every tensor [N, ...], an image each. Out: the arguments of an encoder's `forward`; how
large each image is; the inputs of one black image.

    counts = count_tokens(vision_inputs, num_tokens=197)
    vision(**arguments_of(vision, vision_inputs))

Where images differ in size, they are padded, and one of these says how large each is:

    pixel_attention_mask [N, P]     patches [N, P, D], True = real (SigLIP 2 NaFlex)
    image_position_ids [N, P, 2]    patches [N, P, D], -1 = padding (Gemma 4)
    image_grid_thw [N, 3]           patches [N, P, D] (Qwen-VL, GLM-V)
    image_sizes [N, 2]              pixels [N, 3, H, W], of which the upper left is the image (Pixtral)
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from visgraft.errors import ModelError
from visgraft.model.tower import model_class

ENDS_ROW = "ends_row"  # [N] bool, beside the encoder's own inputs: whether a row of tiles ends with a picture
DEFAULT_IMAGE_SIZE = 224  # of encoders whose config names none (ResNet, ConvNeXt)


def native_image_size(config: PreTrainedConfig) -> int:
    """Give the side of the square image, in pixels, that the encoder was made for."""
    of_timm = getattr(config, "pretrained_cfg", None) or {}
    size = getattr(config, "image_size", None) or of_timm.get("input_size") or DEFAULT_IMAGE_SIZE
    return int(size[-1]) if isinstance(size, (list, tuple)) else int(size)


def flatten_images(
    vision_inputs: Mapping[str, Tensor], *, image_mask: Tensor | None
) -> tuple[dict[str, Tensor], Tensor]:
    """Line up the images of all samples one behind the other.

    Args:
        vision_inputs: `pixel_values` [B, 3, H, W] or [B, F, 3, H, W] float (of encoders of native resolution [B, P, D]
            or [B, F, P, D]); everything else with the same leading axes.
        image_mask: [B, F] bool, True = a real image; None = all.

    Returns:
        The inputs of the N real images, each [N, ...], and the mask [B, F].

    Raises:
        ModelError: the mask is not of one value an image, or the pixels have too few or too many axes.
    """
    pixels = vision_inputs["pixel_values"]
    num_leading = pixels.ndim - (2 if _are_patches(vision_inputs) else 3)
    if num_leading not in (1, 2):
        raise ModelError(
            f"pixel_values has shape {list(pixels.shape)}: need an axis of samples, and perhaps one of images, "
            "in front of each image's own axes: [B, 3, H, W] or [B, F, 3, H, W]"
        )
    num_samples, *frames = pixels.shape[:num_leading]
    shape = (num_samples, frames[0] if frames else 1)
    mask = pixels.new_ones(shape, dtype=torch.bool) if image_mask is None else image_mask.bool()
    if mask.shape not in (shape, pixels.shape[:num_leading]):
        raise ModelError(
            f"image_mask has shape {list(mask.shape)}, pixel_values {list(pixels.shape)}: need one value an image, "
            f"{list(shape)}"
        )
    mask = mask.view(shape)
    flat = {name: value.flatten(0, num_leading - 1)[mask.flatten()] for name, value in vision_inputs.items()}
    return flat, mask


def check_rows(images: Tensor | None, texts: Tensor) -> None:
    """See that there are images for each text: both have samples as their first axis.

    Raises:
        ModelError: with both numbers.
    """
    if images is not None and images.shape[0] != texts.shape[0]:
        raise ModelError(
            f"got images for {images.shape[0]} samples and {texts.shape[0]} prompts: give as many of each, in the same "
            "order (repeat an image for every prompt about it; image_mask says which prompts have none)"
        )


def check_inputs(vision: nn.Module, names: Iterable[str]) -> None:
    """Refuse inputs that the encoder does not take.

    Raises:
        ModelError: with the name.
    """
    for name in names:
        if _argument_for(name, _parameters(vision)) is None:
            raise ModelError(f"got an argument {name!r}, which neither the model nor {type(vision).__name__} takes")


def is_vision_input(name: str) -> bool:
    """Say whether an argument of `generate` is one of the encoder, by its name."""
    ours = ("image_mask", "image_embeds", "image_token_mask")
    return name in ("spatial_shapes", ENDS_ROW) or (name.startswith(("pixel_", "image_")) and name not in ours)


def image_extents(vision_inputs: Mapping[str, Tensor]) -> Tensor | None:
    """Say how large each image is, in patches or pixels: [N] long; None where all are of one size."""
    for name, value in vision_inputs.items():
        if name == "pixel_attention_mask" and value.ndim == 2:
            return value.sum(1).long()
        if name.endswith("position_ids"):
            return (value >= 0).all(-1).sum(1)
        if _is_grid(name) or name == "image_sizes":
            return value.long().prod(-1)
    return None


def count_tokens(vision_inputs: Mapping[str, Tensor], num_tokens: int, *, extent_per_token: int = 1) -> Tensor:
    """Count the image tokens of each image: [N] long.

    Encoders of native resolution pad their images and say how large each is (`image_extents`); for all others every
    image has `num_tokens`.
    """
    extents = image_extents(vision_inputs)
    if extents is not None:
        return extents // max(1, extent_per_token)
    pixels = next(iter(vision_inputs.values()))
    return torch.full((pixels.shape[0],), num_tokens, device=pixels.device)


def _parameters(vision: nn.Module) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(vision.forward).parameters


def _argument_for(name: str, parameters: Iterable[str]) -> str | None:
    """Name the argument of `forward` that takes an output of an image processor; None = none."""
    names = list(parameters)
    if name in names:
        return name
    if name == "pixel_values":  # hidden_states, image, ...: what an encoder is given first
        return names[0] if names and names[0] not in ("input_ids", "kwargs", "args") else None
    bare = _without_modality(name)
    same = [each for each in names if _without_modality(each) == bare]
    return same[0] if same else None


def _without_modality(name: str) -> str:
    first, _, rest = name.partition("_")
    return rest if first in ("image", "pixel") else name


def _is_grid(name: str) -> bool:
    return "grid" in name


def _are_patches(vision_inputs: Mapping[str, Tensor]) -> bool:
    """Say whether each image is patches [P, D], not pixels [3, H, W]."""
    return any(name == "spatial_shapes" or _is_grid(name) or name.endswith("position_ids") for name in vision_inputs)


def arguments_of(vision: PreTrainedModel, vision_inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """Make the arguments of `forward` of what an image processor made.

    Raises:
        ModelError: one is missing.
    """
    parameters = _parameters(vision)
    inputs = dict(vision_inputs)
    pixels = inputs["pixel_values"]
    if pixels.is_floating_point():
        inputs["pixel_values"] = pixels.to(next(vision.parameters()).dtype)
    if any(map(_is_grid, inputs)):
        extents = image_extents(inputs)
        assert extents is not None
        own = [row[:extent] for row, extent in zip(inputs["pixel_values"], extents.tolist(), strict=True)]
        inputs["pixel_values"] = torch.cat(own)
    targets = {name: _argument_for(name, parameters) for name in inputs}
    arguments: dict[str, Any] = {target: inputs[name] for name, target in targets.items() if target is not None}
    if pixels.ndim == 4 and pixels.shape[-1] != native_image_size(vision.config):
        arguments |= {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in parameters else {}
    if is_masking_off(vision.config) and "noise" in parameters:  # by which patches are sorted, to drop the last
        patch = patch_size_of(vision.config) or 1
        order = torch.arange(
            (pixels.shape[-2] // patch) * (pixels.shape[-1] // patch), device=pixels.device, dtype=torch.float32
        )
        arguments["noise"] = order.expand(pixels.shape[0], -1)
    free = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    needed = [name for name, each in parameters.items() if each.default is each.empty and each.kind not in free]
    lacking = [name for name in needed if name not in arguments]
    if lacking:
        raise ModelError(
            f"{type(vision).__name__} needs {', '.join(lacking)}, which visgraft does not make of an image "
            f"(there is {', '.join(sorted(vision_inputs))}): choose another encoder"
        )
    return arguments


def hides_patches(config: PreTrainedConfig) -> bool:
    """Say whether an encoder hides patches at random, as masked autoencoders do."""
    return bool(getattr(config, "mask_ratio", None)) and "noise" in _forward_parameters(config)


def is_masking_off(config: PreTrainedConfig) -> bool:
    """Say whether an encoder that hides patches at random was told to hide none."""
    return getattr(config, "mask_ratio", None) == 0


def one_image(vision_inputs: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    """Take one image out of a batch, its padding cut off where images are pixels."""
    one = {name: value[index : index + 1] for name, value in vision_inputs.items()}
    if "image_sizes" in one:
        height, width = one["image_sizes"][0].tolist()
        one["pixel_values"] = one["pixel_values"][..., :height, :width]
    return one


def dummy_inputs(
    config: PreTrainedConfig, *, image_size: int | None, device: torch.device | str, stretch: int = 1
) -> dict[str, Tensor]:
    """Make the inputs of one black image, as the encoder takes them; `stretch`: how often wider than high."""
    channels = next((n for n in map(_of(config), ("num_channels", "in_channels", "in_chans")) if n), 3)
    values_on = "cpu" if device == "meta" else device  # of what is read, not computed with
    names, patch = _forward_parameters(config), patch_size_of(config)
    if "spatial_shapes" in names and patch is not None:  # native resolution: patches, flattened
        side = math.isqrt(config.num_patches)
        return {
            "pixel_values": torch.zeros(1, side * side, channels * patch**2, device=device),
            "pixel_attention_mask": torch.ones(1, side * side, dtype=torch.long, device=device),
            "spatial_shapes": torch.tensor([[side, side]], device=values_on),
        }
    side = image_size or native_image_size(config)
    grids, positions = [n for n in names if _is_grid(n)], [n for n in names if n.endswith("pixel_position_ids")]
    if patch is None or not (grids or positions):
        pixels = torch.zeros(1, channels, side, side * stretch, device=device)
        sizes = {"image_sizes": torch.tensor([[side, side * stretch]], device=values_on)}
        return {"pixel_values": pixels, **(sizes if "image_sizes" in names else {})}
    merge = _merge_size(config)
    rows = max(1, side // patch // merge) * merge
    columns = rows * stretch
    depth = _of(config)("temporal_patch_size") or 1
    depth = depth if isinstance(depth, int) else depth[0]
    pixels = torch.zeros(1, rows * columns, channels * depth * patch**2, device=device)
    if grids:
        made = {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, rows, columns]], device=values_on)}
        if "merge_sizes" in names:
            made["image_merge_sizes"] = torch.tensor([1], device=values_on)
        return made
    places = [(x, y) for y in range(rows) for x in range(columns)]
    return {"pixel_values": pixels, "image_position_ids": torch.tensor([places], device=values_on)}


def _of(config: PreTrainedConfig) -> Any:
    return lambda name: getattr(config, name, None)


def patch_size_of(config: PreTrainedConfig) -> int | None:
    """Give the side of a square patch in pixels; None where the config names none."""
    patch = getattr(config, "patch_size", None)
    if isinstance(patch, (list, tuple)) and len(set(patch)) == 1:
        patch = patch[0]
    return patch if isinstance(patch, int) and patch > 0 else None


def _merge_size(config: PreTrainedConfig) -> int:
    """Say how many patches in a row become one token, where the tower itself merges them."""
    for name in ("spatial_merge_size", "merge_size", "merge_kernel_size", "pooling_kernel_size"):
        value = getattr(config, name, None)
        if value is not None:
            return int(value[0]) if isinstance(value, (list, tuple)) else int(value)
    return 1


def _forward_parameters(config: PreTrainedConfig) -> tuple[str, ...]:
    """Name the arguments of the `forward` of an encoder, by its config."""
    return tuple(inspect.signature(model_class(config).forward).parameters)[1:]  # without self


def reads_text(config: PreTrainedConfig) -> bool:
    """Say whether the class of a config is a language model, which may take images too."""
    names = _forward_parameters(config)
    return names[:1] == ("input_ids",)
