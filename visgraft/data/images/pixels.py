"""Give an encoder's image processor another image size, and run it.

In: an image processor of transformers, PIL images. Out: the tensors that the encoder takes.

    image_processor = with_image_size(load_image_processor("openai/clip-vit-base-patch16"), image_size=336)
    pixels = make_pixels(image_processor, images)          # {"pixel_values": [F, 3, 336, 336]}

The image processor stays that of transformers, so that an encoder sees the pixels that it was trained on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor

from visgraft.data.images.fast_pixels import fast_pixels
from visgraft.errors import BadSampleError, ConfigError

# Resizing by the shorter side makes a line of 1 x 10,000 pixels as wide as 224 x 2,240,000: a bomb, not an image.
MAX_ASPECT_RATIO = 100


def with_image_size(image_processor: BaseImageProcessor, *, image_size: int) -> BaseImageProcessor:
    """Return an image processor like the given one that makes square images of another size.

    How much is cut off around the middle stays the same: where the original resized to 256 and cropped to 224, one
    for 448 resizes to 512.

    Args:
        image_processor: left as it is.
        image_size: side of its images, in pixels.

    Raises:
        ConfigError: its images cannot be given this size.
    """
    settings = image_processor.to_dict()
    size, crop_size = dict(settings.get("size") or {}), dict(settings.get("crop_size") or {})
    crops = bool(settings.get("do_center_crop") and crop_size)
    by_shorter_side = "shortest_edge" in size and (crops or settings.get("crop_pct"))
    resized_to = size.get("shortest_edge") or size.get("height")
    ratio = resized_to / min(crop_size.values()) if crops and resized_to else 1.0
    side = round(image_size * ratio)
    settings["size"] = {"shortest_edge": side} if by_shorter_side else {"height": side, "width": side}
    if crops:
        settings["crop_size"] = {"height": image_size, "width": image_size}
    changed = type(image_processor).from_dict(settings)
    made = [shape[-2:] for shape in _probe(changed)]
    if any(shape != (image_size, image_size) for shape in made):
        raise ConfigError(
            f"model.image_size: got {image_size}, but {type(image_processor).__name__} makes images of {made[0]} from "
            "it; leave image_size out to keep the encoder's own size"
        )
    return changed


def made_image_size(image_processor: BaseImageProcessor) -> int | None:
    """Give the side in pixels of the square images that an image processor makes.

    Returns None where it makes patches in the image's own resolution instead (SigLIP 2 NaFlex).

    Raises:
        ConfigError: its images are not square, or of a size that depends on the image.
    """
    shapes = _probe(image_processor)
    if any(len(shape) != 3 for shape in shapes):
        return None
    sides = {side for shape in shapes for side in shape[-2:]}
    if len(sides) > 1:
        raise ConfigError(
            f"{type(image_processor).__name__} makes images of {' and '.join(str(s[-2:]) for s in shapes)}, "
            "but all need one square size; set model.image_size"
        )
    return sides.pop()


def make_pixels(
    image_processor: BaseImageProcessor, images: Sequence[Image.Image], *, exact: bool = True, as_bytes: bool = False
) -> dict[str, Tensor]:
    """Run an image processor on the images of one sample.

    Args:
        image_processor: of the encoder.
        images: F images, RGB.
        exact: bit for bit what the image processor makes; else a byte may differ by 1 of 255, for speed.
        as_bytes: where that can be, `pixel_bytes` [F, H, W, 3] uint8 instead, a quarter of the memory, to travel
            between processes; `finish_pixels` makes `pixel_values` of them.

    Returns:
        The encoder's inputs, each [F, ...]: `pixel_values` [F, 3, H, W] float, normalised by the encoder's own
        mean/std; {} for no image.

    Raises:
        BadSampleError: one side of an image is more than `MAX_ASPECT_RATIO` times the other.
    """
    if not images:
        return {}
    for image in images:
        if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
            raise BadSampleError("image is too narrow")
    fast = fast_pixels(image_processor)
    fitted = None if fast is None else fast.fit(images, exact=exact)
    if fitted is not None:
        return finish_pixels(image_processor, {"pixel_bytes": fitted}) if not as_bytes else {"pixel_bytes": fitted}
    made = image_processor(images=list(images), return_tensors="pt")
    return {name: made[name] for name in image_processor.model_input_names if isinstance(made.get(name), Tensor)}


def finish_pixels(image_processor: BaseImageProcessor, vision_inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Make `pixel_values` of `pixel_bytes`, on the device where they are; other inputs stay as they are."""
    if "pixel_bytes" not in vision_inputs:
        return vision_inputs
    fast = fast_pixels(image_processor)
    assert fast is not None, "bytes come from nowhere else"
    return {"pixel_values": fast.look_up(vision_inputs["pixel_bytes"])}


def stack_frames(samples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Stack the pixels of several samples as `forward` and `generate` take them.

    Args:
        samples: B samples as `make_pixels` made them, F images each, which may differ.

    Returns:
        {} where nobody has an image; each input [B, ...] where everybody has one; else [B, F, ...] with zeros in the
        missing places, and `image_mask` [B, F] bool, True = a real image.
    """
    counts = [len(next(iter(sample.values()), ())) for sample in samples]
    first = next((sample for sample in samples if sample), {})
    if all(count == 1 for count in counts):
        return {name: torch.cat([sample[name] for sample in samples]) for name in first}
    stacked: dict[str, Tensor] = {}
    for name, tensor in first.items():
        stacked[name] = tensor.new_zeros(len(samples), max(counts), *tensor.shape[1:])
        for row, sample in enumerate(samples):
            stacked[name][row, : counts[row]] = sample.get(name, tensor[:0])
    if stacked:
        stacked["image_mask"] = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    return stacked


def seen_image(
    pixels: Tensor, image_processor: BaseImageProcessor, *, grid: tuple[int, int] | None = None
) -> Image.Image:
    """Turn pixels back into the picture that the encoder sees: its numbers made colours again.

    Args:
        pixels: [3, H, W] float, or of encoders of native resolution patches [P, patch * patch * 3].
        image_processor: made them.
        grid: rows and columns of the patches; those beyond are padding.
    """
    laid_out = pixels.permute(1, 2, 0) if grid is None else _join_patches(pixels, grid)
    values = laid_out.cpu().float().numpy()
    mean, std = getattr(image_processor, "image_mean", None), getattr(image_processor, "image_std", None)
    if getattr(image_processor, "do_normalize", False) and mean is not None and std is not None:
        values = values * np.asarray(std) + np.asarray(mean)
    low, high = float(values.min()), float(values.max())
    if low < -0.02 or high > 1.02:  # a processor with other numbers (bytes, say): spread what there is
        values = (values - low) / max(high - low, 1e-6)
    return Image.fromarray((np.clip(values, 0, 1) * 255).round().astype(np.uint8))


def _join_patches(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """Lay patches [P, patch * patch * 3], row by row, out as one image [H, W, 3]."""
    rows, columns = grid
    side = math.isqrt(patches.shape[1] // 3)
    squares = patches[: rows * columns].view(rows, columns, side, side, 3)
    return squares.transpose(1, 2).reshape(rows * side, columns * side, 3)


def _probe(image_processor: BaseImageProcessor) -> list[tuple[int, ...]]:
    """Give the shapes of the pixels of a wide and a tall image."""
    shapes = []
    for size in ((60, 40), (40, 50)):
        pixels = make_pixels(image_processor, [Image.new("RGB", size)])
        shapes.append(tuple(pixels["pixel_values"].shape[1:]))
    return shapes
