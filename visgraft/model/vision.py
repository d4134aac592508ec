"""The vision part: any image encoder of transformers or timm, read as a sequence of patch features.

In: the encoder's own inputs (what its image processor made). Out: features [N, P, D_vision], whatever the encoder's
shape was: a sequence [N, P, D] (CLIP, SigLIP, DINOv2, ViT, BEiT, Swin), a map [N, D, h, w] or [N, h, w, D]
(EfficientNet, ConvNeXt, ResNet; Swin of timm, SAM 2), the last map of a backbone, or the images of a batch one behind
the other in one sequence (Qwen-VL, Pixtral). How an encoder is read, and how many image tokens it makes, is found by
running it once on nothing, on the meta device.

    shape = measure(config, settings=VisionSettings())        # VisionShape(num_tokens=197, width=768, ...)
    features = encode(vision, {"pixel_values": pixels}, settings=VisionSettings())

What an image processor makes is carried in one form: every tensor [N, ...], an image each. Where images differ in size,
they are padded, and one of these says how large each is:

    pixel_attention_mask [N, P]     patches [N, P, D], True = real (SigLIP 2 NaFlex)
    image_position_ids [N, P, 2]    patches [N, P, D], -1 = padding (Gemma 4)
    image_grid_thw [N, 3]           patches [N, P, D] (Qwen-VL, GLM-V, Kimi)
    image_sizes [N, 2]              pixels [N, 3, H, W], of which the upper left is the image (Pixtral)
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, pytorch_utils

from visgraft.errors import ConfigError, ModelError, UnsupportedModelError
from visgraft.model.tower import build_tower, vision_tower_config

ENDS_ROW = "ends_row"  # [N] bool, beside the encoder's own inputs: whether a row of tiles ends with a picture
DEFAULT_IMAGE_SIZE = 224  # of encoders whose config names none (ResNet, ConvNeXt)
# What a model raises that cannot run as it is asked to.
FAILURES = (ValueError, RuntimeError, TypeError, AttributeError, KeyError, IndexError, AssertionError, ImportError)
DEPTHS = ("num_hidden_layers", "num_layers", "depth", "depths", "encoder_layers", "num_block_repeats")


@dataclass(frozen=True)
class VisionSettings:
    """How the encoder is read.

    Attributes:
        image_size: side of the square input in pixels; None = the encoder's own.
        feature_layer: index into the hidden states; -1 = the last hidden state (as GIT), -2 the layer before.
        keep_class_token: keep class and register tokens in front of the patches (as GIT) or drop them.
        image_by_image: run the encoder on one image at a time, as images of one batch would change one another.
    """

    image_size: int | None = None
    feature_layer: int = -1
    keep_class_token: bool = True
    image_by_image: bool = False


@dataclass(frozen=True)
class VisionShape:
    """What an encoder makes of one image.

    Attributes:
        num_tokens: P, image tokens of one image, those in front of the patches included if they are kept; of encoders
            of native resolution, of an image of the encoder's own size.
        width: D_vision.
        grid: rows and columns of the patches.
        num_leading: kept tokens in front of the patches (class token, registers).
        extent_per_token: of encoders of native resolution, how many patches (or pixels, whatever says how large an
            image is) become one token; 0 = every image becomes `num_tokens`.
        channels_last: whether maps are [N, h, w, D].
        is_pooled: whether the merged patches are read (`pooler_output`), which the language model of a Qwen-VL gets.
    """

    num_tokens: int
    width: int
    grid: tuple[int, int]
    num_leading: int
    extent_per_token: int = 0
    channels_last: bool = False
    is_pooled: bool = False


def native_image_size(config: PreTrainedConfig) -> int:
    """Give the side of the square image, in pixels, that the encoder was made for."""
    of_timm = getattr(config, "pretrained_cfg", None) or {}
    size = getattr(config, "image_size", None) or of_timm.get("input_size") or DEFAULT_IMAGE_SIZE
    return int(size[-1]) if isinstance(size, (list, tuple)) else int(size)


def encode(vision: PreTrainedModel, vision_inputs: Mapping[str, Tensor], *, settings: VisionSettings) -> Tensor:
    """Run the encoder and give its features as a sequence.

    Args:
        vision: the encoder, unmodified.
        vision_inputs: what its image processor made, e.g. `pixel_values` [N, 3, H, W] float, normalised by the
            encoder's own mean and std; the other forms are drawn above.
        settings: which layer, whether leading tokens are kept, which input size.

    Returns:
        [N, P, D_vision], row by row for maps; where images have fewer tokens, zeros stand behind them.

    Raises:
        ModelError: the encoder needs an input that is not there.
        UnsupportedModelError: the encoder gives neither a sequence nor a map.
    """
    number = vision_inputs["pixel_values"].shape[0]
    if not settings.image_by_image or number == 1:
        return _encode(vision, vision_inputs, settings=settings)
    alone = [_encode(vision, _one_image(vision_inputs, index), settings=settings)[0] for index in range(number)]
    return nn.utils.rnn.pad_sequence(alone, batch_first=True)


def _encode(vision: PreTrainedModel, vision_inputs: Mapping[str, Tensor], *, settings: VisionSettings) -> Tensor:
    arguments = _arguments(vision, vision_inputs)
    if settings.feature_layer != -1:
        arguments["output_hidden_states"] = True
    output = vision(**arguments)
    name, pixels = type(vision).__name__, vision_inputs["pixel_values"]
    extents = image_extents(vision_inputs)
    if settings.feature_layer != -1:
        features = _pick_layer(output.hidden_states, settings.feature_layer, name)
    elif extents is not None and measured_shape(vision, settings=settings).is_pooled:
        features = output.pooler_output
    else:
        features = _last_features(output, name)
    if features.ndim == 4 and features.shape[0] == pixels.shape[0]:
        channels_last = measured_shape(vision, settings=settings).channels_last
        return features.flatten(1, 2) if channels_last else features.flatten(2).transpose(1, 2)
    features = _one_sequence_an_image(features, pixels.shape[0], extents, name)
    if not settings.keep_class_token:
        features = features[:, _num_leading(vision.config, features.shape[1], pixels) :]
    return features


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


# --- What an encoder is given, and what it gives


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


def _arguments(vision: PreTrainedModel, vision_inputs: Mapping[str, Tensor]) -> dict[str, Any]:
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
        patch = _patch_size(vision.config) or 1
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


def _one_image(vision_inputs: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    """Take one image out of a batch, its padding cut off where images are pixels."""
    one = {name: value[index : index + 1] for name, value in vision_inputs.items()}
    if "image_sizes" in one:
        height, width = one["image_sizes"][0].tolist()
        one["pixel_values"] = one["pixel_values"][..., :height, :width]
    return one


def _last_features(output: Any, name: str) -> Tensor:
    """Take the features out of what an encoder gives: its last hidden state, or the last map of a backbone."""
    maps = getattr(output, "feature_maps", None)
    features = getattr(output, "last_hidden_state", maps[-1] if maps else None)
    if isinstance(output, Tensor):
        features = output
    if not isinstance(features, Tensor):
        given = ", ".join(output.keys()) if isinstance(output, Mapping) else type(output).__name__
        raise UnsupportedModelError(f"{name} gives no features of patches, but {given}: choose another encoder")
    return features


def _one_sequence_an_image(features: Tensor, number: int, extents: Tensor | None, name: str) -> Tensor:
    """Make [N, P, D] of features that may stand one image behind the other: [1, sum of P, D] or [sum of P, D]."""
    if features.ndim == 3 and features.shape[0] == number:
        return features
    is_one_row = features.ndim == 2 or (features.ndim == 3 and features.shape[0] == 1)
    if is_one_row and extents is not None:
        rows = features.reshape(-1, features.shape[-1])
        per_token = int(extents.sum()) // max(1, rows.shape[0])
        counts = (extents // max(1, per_token)).tolist()
        if sum(counts) == rows.shape[0]:
            return nn.utils.rnn.pad_sequence(rows.split(counts), batch_first=True)
    if features.ndim == 3 and features.shape[0] == 1 and features.shape[1] % number == 0:
        return features.reshape(number, -1, features.shape[-1])
    raise UnsupportedModelError(
        f"{name} gives features of shape {list(features.shape)}; a sequence [N, P, D] or a map [N, D, h, w] is needed"
    )


# --- Measuring


_measured: dict[str, VisionShape] = {}
_of_modules: WeakKeyDictionary[nn.Module, dict[VisionSettings, VisionShape]] = WeakKeyDictionary()


def measure(config: PreTrainedConfig, *, settings: VisionSettings) -> VisionShape:
    """Find how many image tokens an encoder makes and how wide they are, without its weights.

    Args:
        config: the encoder's config, or that of a checkpoint with a vision tower.
        settings: how the encoder is read.

    Raises:
        ConfigError: the encoder cannot take `settings.image_size`.
        ModelError: it needs an input that no image processor makes.
        UnsupportedModelError: it gives no features of patches.
    """
    config = vision_tower_config(config)
    if hides_patches(config):
        config = copy.deepcopy(config)
        config.mask_ratio = 0.0
    key = json.dumps([config.to_dict(), str(settings)], sort_keys=True, default=str)
    if key not in _measured:
        _measured[key] = _measure(config, settings)
    return _measured[key]


def measured_shape(vision: nn.Module, *, settings: VisionSettings) -> VisionShape:
    """Give what `measure` found about an encoder, remembered with it."""
    known = _of_modules.setdefault(vision, {})
    if settings not in known:
        known[settings] = measure(vision.config, settings=settings)  # type: ignore[arg-type]
    return known[settings]


def dummy_inputs(
    config: PreTrainedConfig, *, image_size: int | None, device: torch.device | str, stretch: int = 1
) -> dict[str, Tensor]:
    """Make the inputs of one black image, as the encoder takes them; `stretch`: how often wider than high."""
    channels = next((n for n in map(_of(config), ("num_channels", "in_channels", "in_chans")) if n), 3)
    values_on = "cpu" if device == "meta" else device  # of what is read, not computed with
    names, patch = _forward_parameters(config), _patch_size(config)
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


def _patch_size(config: PreTrainedConfig) -> int | None:
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


_signatures: dict[type, tuple[str, ...]] = {}


def _forward_parameters(config: PreTrainedConfig) -> tuple[str, ...]:
    """Name the arguments of the `forward` of an encoder, by its config."""
    if type(config) not in _signatures:
        with torch.device("meta"):
            _signatures[type(config)] = tuple(_parameters(build_tower(shallow(config))))
    return _signatures[type(config)]


def shallow(config: PreTrainedConfig) -> PreTrainedConfig:
    """Copy a config with few layers where it has many: number and width of the features stay."""
    values = config.to_dict()
    for name in DEPTHS:
        value = values.get(name)
        if isinstance(value, int) and value > 2:
            values[name] = 2
            for stages in ("stage_names", "out_features", "out_indices"):  # of a transformer, one a layer
                values.pop(stages, None)
        elif isinstance(value, (list, tuple)) and all(isinstance(each, int) for each in value):
            values[name] = [min(each, 1) for each in value]
    try:
        few = type(config).from_dict(values)
    except FAILURES:
        return copy.deepcopy(config)
    few._attn_implementation_internal = config._attn_implementation_internal
    return few


def _measure(config: PreTrainedConfig, settings: VisionSettings) -> VisionShape:
    # A few encoders read values, so nothing of the meta device will do: such run for real, with one layer of each kind.
    tries = [(config, "meta"), (shallow(config), "cpu"), (config, "cpu")]
    if settings.feature_layer != -1:
        tries.pop(1)
    shape, name = None, config.model_type
    for number, (tried, device) in enumerate(tries):
        try:
            with torch.random.fork_rng(devices=[]), torch.device(device), torch.no_grad(), _uncached():
                vision = build_tower(tried).eval()
                name = type(vision).__name__
                shape = _run_on_nothing(vision, settings, device=device)
            break
        except (ConfigError, ModelError):
            raise
        except FAILURES as error:
            if number == len(tries) - 1:
                raise _cannot_run(config, settings, name, error) from error
    assert shape is not None
    side = settings.image_size or native_image_size(config)
    grid, num_leading = _grid(config, shape.num_tokens, (side, side))
    kept = num_leading if settings.keep_class_token else 0
    return replace(shape, num_tokens=grid[0] * grid[1] + kept, grid=grid, num_leading=kept)


def _cannot_run(
    config: PreTrainedConfig, settings: VisionSettings, name: str, error: Exception
) -> ConfigError | UnsupportedModelError:
    reason = " ".join(f"{error}".split())[:200] or type(error).__name__
    own = native_image_size(config)
    if settings.image_size not in (None, own):
        return ConfigError(
            f"model.image_size: {name} cannot take images of {settings.image_size} pixels ({reason}); "
            f"its own size is {own}"
        )
    return UnsupportedModelError(
        f"{name} ({config.model_type}) makes no features of an image of {own} x {own} pixels: "
        f"{type(error).__name__}: {reason}. Choose another encoder, or another model.image_size"
    )


def _run_on_nothing(vision: PreTrainedModel, settings: VisionSettings, *, device: str) -> VisionShape:
    config, name = vision.config, type(vision).__name__

    def run(stretch: int) -> tuple[Tensor, Tensor | None, int | None]:
        inputs = dummy_inputs(config, image_size=settings.image_size, device=device, stretch=stretch)
        is_last = settings.feature_layer == -1
        output = vision(**_arguments(vision, inputs), **({} if is_last else {"output_hidden_states": True}))
        last = (
            _last_features(output, name) if is_last else _pick_layer(output.hidden_states, settings.feature_layer, name)
        )
        extents = image_extents(inputs)
        return last, getattr(output, "pooler_output", None), None if extents is None else int(extents.sum())

    last, pooled, extent = run(1)
    if extent is not None:
        wide, wide_pooled, wide_extent = run(2)
        for is_pooled, first, second in ((True, pooled, wide_pooled), (False, last, wide)):
            if settings.feature_layer == -1 or not is_pooled:
                per_token = _extent_per_token(first, extent), _extent_per_token(second, wide_extent)
                if per_token[0] is not None and per_token[0] == per_token[1]:
                    assert first is not None
                    tokens, width = first.shape[-2:]
                    return VisionShape(tokens, width, (1, tokens), 0, per_token[0], is_pooled=is_pooled)
        raise UnsupportedModelError(
            f"{name} makes {list(last.shape)} of {extent} patches and {list(wide.shape)} of {wide_extent}: the "
            "number of its tokens follows no rule that visgraft knows; choose another encoder"
        )
    if last.ndim == 4 and last.shape[0] == 1:
        channels_last = _is_channels_last(last.shape[1:], lambda: run(2)[0].shape[1:], name)
        rows, columns, width = last.shape[1:] if channels_last else (*last.shape[2:], last.shape[1])
        return VisionShape(rows * columns, width, (rows, columns), 0, channels_last=channels_last)
    _, tokens, width = _one_sequence_an_image(last, 1, None, name).shape
    return VisionShape(tokens, width, (1, tokens), 0)


def _extent_per_token(features: Any, extent: int | None) -> int | None:
    """Say how many patches become one token: None where that is no whole number of at least one."""
    if not isinstance(features, Tensor) or features.ndim not in (2, 3) or not extent:
        return None
    tokens = math.prod(features.shape[:-1])
    return None if tokens == 0 or extent % tokens else extent // tokens


def _is_channels_last(shape: torch.Size, wide: Callable[[], torch.Size], name: str) -> bool:
    """Say which axis of a map [a, b, c] of a square image holds its channels: the one that is unlike the other two.

    Where all three are equal, `wide` gives the map of a wider image, in which one of the outer two stays.

    Raises:
        UnsupportedModelError: that does not tell it either.
    """
    first, middle, last = shape
    if first == middle != last or middle == last != first:
        return first == middle
    with contextlib.suppress(*FAILURES):
        _, middle_wide, last_wide = wide()  # [h, w, D] or [D, h, w], w wider
        if (middle_wide == middle) != (last_wide == last):
            return last_wide == last
    raise UnsupportedModelError(
        f"{name} makes a map of shape {list(shape)}, and nothing tells which axis holds its channels: set "
        "model.image_size to another size, or choose another encoder"
    )


@contextlib.contextmanager
def _uncached() -> Iterator[None]:
    """Keep the library from remembering tensors of the meta device, which hold no values (BEiT's position index)."""
    library: Any = pytorch_utils
    original = library.is_torchdynamo_compiling
    library.is_torchdynamo_compiling = lambda: True
    try:
        yield
    finally:
        library.is_torchdynamo_compiling = original


def _grid(config: PreTrainedConfig, num_tokens: int, size: tuple[int, int]) -> tuple[tuple[int, int], int]:
    """Split a token count into (rows, columns) of patches and the tokens in front of them."""
    patch = _patch_size(config)
    if patch is not None:
        rows, columns = size[0] // patch, size[1] // patch
        if 0 <= num_tokens - rows * columns <= 1 + getattr(config, "num_register_tokens", 8):
            return (rows, columns), num_tokens - rows * columns
    side = math.isqrt(num_tokens)
    return (side, side), num_tokens - side * side


def _num_leading(config: PreTrainedConfig, num_tokens: int, pixels: Tensor) -> int:
    return 0 if pixels.ndim != 4 else _grid(config, num_tokens, (pixels.shape[-2], pixels.shape[-1]))[1]


def _pick_layer(hidden_states: tuple[Tensor, ...] | None, layer: int, name: str) -> Tensor:
    if hidden_states is None or not -len(hidden_states) <= layer < len(hidden_states):
        count = 0 if hidden_states is None else len(hidden_states)
        raise ConfigError(
            f"model.feature_layer: got {layer}, {name} has {count} hidden states (-{count} to {count - 1})"
        )
    return hidden_states[layer]
