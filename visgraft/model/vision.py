"""The vision part: any Hugging Face image encoder, read as a sequence of patch features.

In: the encoder's own inputs (what its image processor made). Out: features [N, P, D_vision], whatever the encoder's
shape was: a sequence [N, P, D] (CLIP, SigLIP, DINOv2, ViT, BEiT, Swin) or a map [N, D, h, w] (EfficientNet, ConvNeXt,
ResNet). How many image tokens an encoder makes is found by running it once on nothing, on the meta device.

    shape = measure(config, VisionSettings())        # VisionShape(num_tokens=197, width=768, grid=(14, 14), ...)
    features = encode(vision, {"pixel_values": pixels}, VisionSettings())
"""

from __future__ import annotations

import contextlib
import inspect
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel, pytorch_utils

from visgraft.errors import ConfigError, ModelError, UnsupportedModelError

DEFAULT_IMAGE_SIZE = 224  # of encoders whose config names none (ResNet, ConvNeXt)


@dataclass(frozen=True)
class VisionSettings:
    """How the encoder is read.

    Attributes:
        image_size: side of the square input in pixels; None = the encoder's own.
        feature_layer: index into the hidden states; -1 = the last hidden state (as GIT), -2 the layer before.
        keep_class_token: keep class and register tokens in front of the patches (as GIT) or drop them.
    """

    image_size: int | None = None
    feature_layer: int = -1
    keep_class_token: bool = True


@dataclass(frozen=True)
class VisionShape:
    """What an encoder makes of one image.

    Attributes:
        num_tokens: P, image tokens of one image, those in front of the patches included if they are kept.
        width: D_vision.
        grid: rows and columns of the patches.
        num_leading: kept tokens in front of the patches (class token, registers).
    """

    num_tokens: int
    width: int
    grid: tuple[int, int]
    num_leading: int


def vision_tower_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Give the vision tower's config of a two-tower checkpoint (CLIP, SigLIP), or the config itself."""
    tower = getattr(config, "vision_config", None)
    return config if tower is None else tower


def native_image_size(config: PreTrainedConfig) -> int:
    """Give the side of the square image, in pixels, that the encoder was made for."""
    size = getattr(config, "image_size", None) or DEFAULT_IMAGE_SIZE
    return int(size[0]) if isinstance(size, (list, tuple)) else int(size)


def encode(vision: PreTrainedModel, vision_inputs: Mapping[str, Tensor], *, settings: VisionSettings) -> Tensor:
    """Run the encoder and give its features as a sequence.

    Args:
        vision: the encoder, unmodified.
        vision_inputs: what its image processor made, e.g. `pixel_values` [N, 3, H, W] float, normalised by the
            encoder's own mean and std.
        settings: which layer, whether leading tokens are kept, which input size.

    Returns:
        [N, P, D_vision], row by row for maps.

    Raises:
        UnsupportedModelError: the encoder gives neither a sequence nor a map.
    """
    arguments: dict[str, Any] = dict(vision_inputs)
    pixels = arguments["pixel_values"]
    own_size = native_image_size(vision.config)
    if pixels.ndim == 4 and pixels.shape[-1] != own_size and _accepts(vision, "interpolate_pos_encoding"):
        arguments["interpolate_pos_encoding"] = True
    if pixels.is_floating_point():
        arguments["pixel_values"] = pixels.to(next(vision.parameters()).dtype)
    if settings.feature_layer != -1:
        arguments["output_hidden_states"] = True
    output = vision(**arguments)
    if settings.feature_layer == -1:
        features = output.last_hidden_state
    else:
        features = _pick_layer(output.hidden_states, settings.feature_layer, type(vision).__name__)
    if features.ndim == 4:
        return features.flatten(2).transpose(1, 2)
    if features.ndim != 3:
        raise UnsupportedModelError(
            f"{type(vision).__name__} gives features of shape {list(features.shape)}; "
            "a sequence [N, P, D] or a map [N, D, h, w] is needed"
        )
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
    num_leading = pixels.ndim - (2 if "spatial_shapes" in vision_inputs else 3)
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
        if not _accepts(vision, name):
            raise ModelError(f"got an argument {name!r}, which neither the model nor {type(vision).__name__} takes")


def count_tokens(vision_inputs: Mapping[str, Tensor], num_tokens: int) -> Tensor:
    """Count the image tokens of each image: [N] long.

    Encoders of native resolution (SigLIP 2 NaFlex) pad their patches and say so in `pixel_attention_mask` [N, P];
    for all others every image has `num_tokens`.
    """
    mask = vision_inputs.get("pixel_attention_mask")
    if mask is not None:
        return mask.sum(1).long()
    pixels = next(iter(vision_inputs.values()))
    return torch.full((pixels.shape[0],), num_tokens, device=pixels.device)


_measured: dict[str, VisionShape] = {}


def measure(config: PreTrainedConfig, *, settings: VisionSettings) -> VisionShape:
    """Find how many image tokens an encoder makes and how wide they are, without its weights.

    Args:
        config: the encoder's config, or that of a two-tower checkpoint.
        settings: how the encoder is read.

    Raises:
        ConfigError: the encoder cannot take `settings.image_size`.
    """
    config = vision_tower_config(config)
    key = json.dumps([config.to_dict(), str(settings)], sort_keys=True, default=str)
    if key not in _measured:
        _measured[key] = _measure(config, settings)
    return _measured[key]


def dummy_inputs(config: PreTrainedConfig, *, image_size: int | None, device: torch.device | str) -> dict[str, Tensor]:
    """Make the inputs of one black image, as the encoder takes them."""
    channels = getattr(config, "num_channels", 3)
    if hasattr(config, "num_patches") and not hasattr(config, "image_size"):  # native resolution: patches, flattened
        side = math.isqrt(config.num_patches)
        return {
            "pixel_values": torch.zeros(1, side * side, channels * config.patch_size**2, device=device),
            "pixel_attention_mask": torch.ones(1, side * side, dtype=torch.long, device=device),
            "spatial_shapes": torch.tensor([[side, side]], device="cpu" if device == "meta" else device),
        }
    side = image_size or native_image_size(config)
    return {"pixel_values": torch.zeros(1, channels, side, side, device=device)}


def _measure(config: PreTrainedConfig, settings: VisionSettings) -> VisionShape:
    every_token = VisionSettings(settings.image_size, settings.feature_layer, keep_class_token=True)
    try:
        features = _dummy_features(config, every_token, device="meta")
    except (NotImplementedError, RuntimeError):  # a few encoders read values: run them once for real
        try:
            features = _dummy_features(config, every_token, device="cpu")
        except RuntimeError as error:
            raise ConfigError(
                f"model.image_size: {config.model_type} cannot take images of {settings.image_size} pixels "
                f"({str(error).splitlines()[0]}); its own size is {native_image_size(config)}"
            ) from error
    _, num_tokens, width = features.shape
    side = settings.image_size or native_image_size(config)
    grid, num_leading = _grid(config, num_tokens, (side, side))
    kept = num_leading if settings.keep_class_token else 0
    return VisionShape(grid[0] * grid[1] + kept, width, grid, kept)


def _dummy_features(config: PreTrainedConfig, settings: VisionSettings, device: str) -> Tensor:
    with torch.random.fork_rng(devices=[]), torch.device(device), torch.no_grad(), _uncached():
        vision = AutoModel.from_config(config).eval()
        inputs = dummy_inputs(config, image_size=settings.image_size, device=device)
        try:
            return encode(vision, inputs, settings=settings)
        except ValueError as error:  # the encoder's own words about a size it cannot take
            raise ConfigError(
                f"model.image_size: {type(vision).__name__} cannot take images of {settings.image_size} pixels "
                f"({error}); its own size is {native_image_size(config)}"
            ) from error


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
    patch = getattr(config, "patch_size", None)
    if isinstance(patch, int) and patch > 0:
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


def _accepts(module: nn.Module, argument: str) -> bool:
    return argument in inspect.signature(module.forward).parameters
