"""The vision part: any image encoder of transformers or timm, read as a sequence of patch features.

In: the encoder's own inputs (what its image processor made). Out: features [N, P, D_vision], whatever the encoder's
shape was: a sequence [N, P, D] (CLIP, SigLIP, DINOv2, ViT, BEiT, Swin), a map [N, D, h, w] or [N, h, w, D]
(EfficientNet, ConvNeXt, ResNet; Swin of timm, SAM 2), the last map of a backbone, or the images of a batch one behind
the other in one sequence (Qwen-VL, Pixtral). How an encoder is read, and how many image tokens it makes, is found by
running it once on nothing, on the meta device.

    shape = measure(config, settings=VisionSettings())        # VisionShape(num_tokens=197, width=768, ...)
    features = encode(vision, {"pixel_values": pixels}, settings=VisionSettings())
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, pytorch_utils

from visgraft.disk_cache import keep_facts
from visgraft.errors import ConfigError, ModelError, UnsupportedModelError
from visgraft.model.tower import FAILURES, build_tower, shallow, vision_tower_config
from visgraft.model.vision_inputs import (
    arguments_of,
    dummy_inputs,
    hides_patches,
    image_extents,
    native_image_size,
    one_image,
    patch_size_of,
    reads_text,
)

MOST_WEIGHTS = 10**9  # of an encoder that is made for real only to be measured


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
    alone = [_encode(vision, one_image(vision_inputs, index), settings=settings)[0] for index in range(number)]
    return nn.utils.rnn.pad_sequence(alone, batch_first=True)


def _encode(vision: PreTrainedModel, vision_inputs: Mapping[str, Tensor], *, settings: VisionSettings) -> Tensor:
    arguments = arguments_of(vision, vision_inputs)
    if settings.feature_layer != -1:
        arguments["output_hidden_states"] = True
    output = vision(**arguments)
    name, pixels = type(vision).__name__, vision_inputs["pixel_values"]
    extents = image_extents(vision_inputs)
    if settings.feature_layer != -1:
        features = _pick_layer(output.hidden_states, settings.feature_layer, name)
    elif extents is not None and measured_shape(vision, settings=settings).is_pooled:
        merged = output.pooler_output  # [P, D], or [P, k * k, D] where the k * k patches of a token are not yet one
        features = merged if merged.shape[-1] == measured_shape(vision, settings=settings).width else merged.flatten(1)
    else:
        features = _last_features(output, name)
    if features.ndim == 4 and features.shape[0] == pixels.shape[0]:
        channels_last = measured_shape(vision, settings=settings).channels_last
        return features.flatten(1, 2) if channels_last else features.flatten(2).transpose(1, 2)
    features = _one_sequence_an_image(features, pixels.shape[0], extents, name)
    if not settings.keep_class_token:
        features = features[:, _num_leading(vision.config, features.shape[1], pixels) :]
    return features


# --- What an encoder is given, and what it gives


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
        # Without numbers, but torch first gets ready to compute so: half a second of every start.
        found = keep_facts(lambda: asdict(_measure(config, settings)), fingerprint=f"{_what_measures()} {key}")
        _measured[key] = VisionShape(**{**found, "grid": tuple(found["grid"])})
    return _measured[key]


def _what_measures() -> str:
    """Name all but an encoder's config that measuring depends on."""
    here = [sys.modules[each.__module__].__file__ for each in (measure, build_tower, arguments_of)]  # by any name
    changed = [Path(str(path)).stat().st_mtime_ns for path in here]
    return f"{torch.__version__} {transformers.__version__} {changed}"


def measured_shape(vision: nn.Module, *, settings: VisionSettings) -> VisionShape:
    """Give what `measure` found about an encoder, remembered with it."""
    known = _of_modules.setdefault(vision, {})
    if settings not in known:
        known[settings] = measure(vision.config, settings=settings)  # type: ignore[arg-type]
    return known[settings]


def _measure(config: PreTrainedConfig, settings: VisionSettings) -> VisionShape:
    # A few encoders read values, so nothing of the meta device will do: such run for real, with one layer of each kind.
    tries = [(config, "meta"), (shallow(config), "cpu"), (config, "cpu")]
    if settings.feature_layer != -1:
        tries.pop(1)
    if reads_text(config):
        raise UnsupportedModelError(
            f"{config.model_type} reads text, and its config names no part that only sees: choose another encoder"
        )
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
            if number == len(tries) - 1 or (number == len(tries) - 2 and _is_too_large(config)):
                raise _cannot_run(config, settings, name, error) from error
    assert shape is not None
    side = settings.image_size or native_image_size(config)
    grid, num_leading = (shape.grid, 0) if all(shape.grid) else _grid(config, shape.num_tokens, (side, side))
    kept = num_leading if settings.keep_class_token else 0
    return replace(shape, num_tokens=grid[0] * grid[1] + kept, grid=grid, num_leading=kept)


def _is_too_large(config: PreTrainedConfig) -> bool:
    """Say whether an encoder has too many weights to be made only to be measured, or cannot be made at all."""
    try:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in build_tower(config).parameters()) > MOST_WEIGHTS
    except FAILURES:
        return True


def _cannot_run(
    config: PreTrainedConfig, settings: VisionSettings, name: str, error: Exception
) -> ConfigError | ModelError:
    if any(getattr(config, key, None) for key in ("num_frames", "tubelet_size")):
        return ModelError(
            f"{name} ({config.model_type}) needs pixel_values of several frames at once, which visgraft does not make "
            "of an image: choose another encoder (frames of a video go through any encoder of images)"
        )
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
        output = vision(**arguments_of(vision, inputs), **({} if is_last else {"output_hidden_states": True}))
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
                first, second = _one_row_a_token(first, extent), _one_row_a_token(second, wide_extent)
                per_token = _extent_per_token(first, extent), _extent_per_token(second, wide_extent)
                if per_token[0] is not None and per_token[0] == per_token[1]:
                    assert first is not None
                    tokens, width = first.shape[-2:]
                    return VisionShape(tokens, width, (0, 0), 0, per_token[0], is_pooled=is_pooled)
        raise UnsupportedModelError(
            f"{name} makes {list(last.shape)} of {extent} patches and {list(wide.shape)} of {wide_extent}: the "
            "number of its tokens follows no rule that visgraft knows; choose another encoder"
        )
    if last.ndim == 4 and last.shape[0] == 1:
        channels_last = _is_channels_last(last.shape[1:], lambda: run(2)[0].shape[1:], name)
        rows, columns, width = last.shape[1:] if channels_last else (*last.shape[2:], last.shape[1])
        return VisionShape(rows * columns, width, (rows, columns), 0, channels_last=channels_last)
    _, tokens, width = _one_sequence_an_image(last, 1, None, name).shape
    return VisionShape(tokens, width, (0, 0), 0)


def _one_row_a_token(features: Any, extent: int | None) -> Any:
    """Make [P, k * k * D] of merged patches [P, k * k, D], of one image; leave anything else as it is."""
    if not isinstance(features, Tensor) or features.ndim != 3 or features.shape[0] == 1:
        return features
    return features.flatten(1) if features.shape[0] * features.shape[1] == extent else features


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
    patch = patch_size_of(config)
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
