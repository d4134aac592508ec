"""What an encoder is given: the outputs of its image processor, batched in one form, and what `forward` takes of them.

In: what image processors make, every tensor [N, ...], an image each. Out: the arguments of an encoder's `forward`; how
large each image is; the inputs of one black image.

    counts = count_tokens(vision_inputs, num_tokens=197)
    vision(**arguments_of(vision, vision_inputs))

Where images differ in size, they are padded, and one of these says how large each is:

    pixel_attention_mask [N, P]     patches [N, P, D], True = real (SigLIP 2 NaFlex)
    image_position_ids [N, P, 2]    patches [N, P, D], x and y, -1 = padding (Gemma 4, Pix2Struct)
    image_grid_thw [N, 3]           patches [N, P, D] (Qwen-VL, GLM-V, Kimi-VL)
    target_sizes [N, 2]             patches [N, P, D] (MiniCPM-V)
    image_sizes [N, 2]              pixels [N, 3, H, W], of which the upper left is the image (Pixtral)
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from visgraft.errors import ModelError
from visgraft.model.tower import FAILURES, build_tower, model_class, shallow

ENDS_ROW = "ends_row"  # [N] bool, beside the encoder's own inputs: whether a row of tiles ends with a picture
PLACED = "flattened_patches"  # patches behind their row and column, as Pix2Struct takes them
DEFAULT_IMAGE_SIZE = 224  # of encoders whose config names none (ResNet, ConvNeXt)

# What `forward` takes of the patches of all images, which image processors make one behind the other, [P, D].
PatchForm = Literal["picture", "flat", "squares", "row of squares", "coloured squares", "strip"]
FORMS: dict[PatchForm, str] = {
    "picture": "[N, 3, H, W]: no patches",
    "flat": "[P, D] (Qwen-VL)",
    "squares": "[P, 3, side, side] (Kimi-VL)",
    "row of squares": "[1, P, 3, side, side] (PaddleOCR-VL)",
    "coloured squares": "[P, side, side, 3], each as large as one token (Inkling 2)",
    "strip": "[1, 3, side, P * side] (MiniCPM-V)",
}


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
    flat = {name: value.flatten(0, num_leading - 1) for name, value in vision_inputs.items()}
    return flat if image_mask is None else {name: value[mask.flatten()] for name, value in flat.items()}, mask


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
    return name in ("spatial_shapes", "target_sizes", ENDS_ROW) or (
        name.startswith(("pixel_", "image_")) and name not in ours
    )


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
    if name == "image_position_ids" and PLACED in names:  # they stand in front of the patches
        return PLACED
    bare = _without_modality(name)
    same = [each for each in names if _without_modality(each) == bare]
    return same[0] if same else None


def _without_modality(name: str) -> str:
    first, _, rest = name.partition("_")
    return rest if first in ("image", "pixel") else name


def _is_grid(name: str) -> bool:
    return "grid" in name or name == "target_sizes"


def _are_patches(vision_inputs: Mapping[str, Tensor]) -> bool:
    """Say whether each image is patches [P, D], not pixels [3, H, W]."""
    return any(name == "spatial_shapes" or _is_grid(name) or name.endswith("position_ids") for name in vision_inputs)


def patch_form(config: PreTrainedConfig) -> PatchForm:
    """Say in which form the tower of a config takes patches, where its config does not say so: by trying them."""
    forms = _possible_forms(config)
    if len(forms) == 1:
        return forms[0]
    key = json.dumps(config.to_dict(), sort_keys=True, default=str)
    if key not in _forms:
        _forms[key] = _first_that_runs(config, forms)
    return _forms[key]


_forms: dict[str, PatchForm] = {}


def _possible_forms(config: PreTrainedConfig) -> list[PatchForm]:
    parameters = inspect.signature(model_class(config).forward).parameters
    grids = [each for name, each in parameters.items() if _is_grid(name)]
    if "target_sizes" in parameters:
        return ["strip"]
    if not grids or patch_size_of(config) is None:
        return ["picture"]
    of_patches: list[PatchForm] = ["flat", "squares", "row of squares", "coloured squares"]
    return of_patches if grids[0].default is grids[0].empty else ["picture", *of_patches]


def _first_that_runs(config: PreTrainedConfig, forms: list[PatchForm]) -> PatchForm:
    for tried, device in ((config, "meta"), (shallow(config), "cpu")):
        for form in forms:
            try:
                with torch.random.fork_rng(devices=[]), torch.device(device), torch.no_grad():
                    vision = build_tower(tried).eval()
                    inputs = dummy_inputs(tried, image_size=None, device=device, form=form)
                    vision(**arguments_of(vision, inputs, form=form))
            except (*FAILURES, ModelError):
                continue
            return form
    return forms[0]  # whose error is then told


def _in_form(patches: Tensor, form: PatchForm, config: PreTrainedConfig) -> Tensor:
    """Lay patches [P, D] out as `forward` takes them."""
    channels, number = _num_channels(config), patches.shape[0]
    if form == "flat":
        return patches
    side = math.isqrt(patches.shape[1] // channels)
    if form == "coloured squares":
        return patches.view(number, side, side, channels)
    squares = patches.view(number, channels, side, side)
    if form == "strip":
        return squares.permute(1, 2, 0, 3).reshape(1, channels, side, number * side)
    return squares[None] if form == "row of squares" else squares


def arguments_of(
    vision: PreTrainedModel, vision_inputs: Mapping[str, Tensor], *, form: PatchForm | None = None
) -> dict[str, Any]:
    """Make the arguments of `forward` of what an image processor made; `form` of patches: None = found by trying.

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
        inputs["pixel_values"] = _in_form(torch.cat(own), form or patch_form(vision.config), vision.config)
    if PLACED in parameters:
        places = inputs.pop("image_position_ids")
        inputs["pixel_values"] = torch.cat([(places.flip(-1) + 1).to(pixels.dtype), inputs["pixel_values"]], dim=-1)
        inputs["pixel_attention_mask"] = (places >= 0).all(-1).long()
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
    config: PreTrainedConfig,
    *,
    image_size: int | None,
    device: torch.device | str,
    stretch: int = 1,
    form: PatchForm | None = None,
) -> dict[str, Tensor]:
    """Make the inputs of one black image, as the encoder takes them; `stretch`: how often wider than high."""
    channels = _num_channels(config)
    values_on = "cpu" if device == "meta" else device  # of what is read, not computed with
    names, patch = _forward_parameters(config), patch_size_of(config)
    if patch is None and PLACED in names:
        patch = math.isqrt(_of(config)("patch_embed_hidden_size") // channels)
    if "spatial_shapes" in names and patch is not None:  # native resolution: patches, flattened
        side = math.isqrt(config.num_patches)
        number = side * side * stretch
        return {
            "pixel_values": torch.zeros(1, number, channels * patch**2, device=device),
            "pixel_attention_mask": torch.ones(1, number, dtype=torch.long, device=device),
            "spatial_shapes": torch.tensor([[side, side * stretch]], device=values_on),
        }
    side = image_size or native_image_size(config)
    form = form or patch_form(config)
    grids, positions = [n for n in names if _is_grid(n)], {PLACED, "pixel_position_ids"} & set(names)
    if patch is None or not (grids or positions) or (grids and form == "picture"):
        pixels = torch.zeros(1, channels, side, side * stretch, device=device)
        sizes = {"image_sizes": torch.tensor([[side, side * stretch]], device=values_on)}
        return {"pixel_values": pixels, **(sizes if "image_sizes" in names else {})}
    merge = _merge_size(config)
    rows = max(1, side // patch // merge) * merge
    columns = rows * stretch
    if form == "coloured squares":
        rows, columns, patch = rows // merge, columns // merge, patch * merge
    depth = _of(config)("temporal_patch_size") or _of(config)("patch_temporal") or 1
    depth = depth if isinstance(depth, int) else depth[0]
    pixels = torch.zeros(1, rows * columns, channels * depth * patch**2, device=device)
    if grids:
        if form == "strip":
            return {"pixel_values": pixels, "target_sizes": torch.tensor([[rows, columns]], device=values_on)}
        made = {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, rows, columns]], device=values_on)}
        if "merge_sizes" in names:
            made["image_merge_sizes"] = torch.tensor([1], device=values_on)
        return made
    places = [(x, y) for y in range(rows) for x in range(columns)]
    return {"pixel_values": pixels, "image_position_ids": torch.tensor([places], device=values_on)}


def _num_channels(config: PreTrainedConfig) -> int:
    return next((n for n in map(_of(config), ("num_channels", "in_channels", "in_chans")) if n), 3)


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
    for name in ("spatial_merge_size", "merge_size", "merge_kernel_size", "pooling_kernel_size", "window_kernel_size"):
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
