"""Make the pixels of ordinary image processors several times faster, bit for bit the same.

In:  an image processor of transformers. Out: a function that does its work, or None where it does anything else.

    fast = fast_pixels(image_processor)
    pixels = fast(images) if fast else image_processor(images=images)

Most processors resize, crop the middle, and map each byte of each channel to a number. The first two are Pillow's; the
map is read off the processor itself, as a table of 256 numbers a channel. Whether that is all that it does is tried on
images of several shapes, so there is no list of classes here.

Without `exact` torch resizes instead of Pillow, with the same filter and about 6 times as fast; a byte then differs by
1 of 255 here and there, as torch rounds its filter's weights to fewer bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow as pa
import torch
import torch.utils.dlpack
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor

_FILTERS = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}  # that torch has, too
_PROBES = ((640, 480), (60, 333), (333, 60), (40, 50), (31, 17))


@dataclass(frozen=True)
class FastPixels:
    """Resize, crop and map as an image processor does.

    Attributes:
        shorter_side: what the shorter side is resized to; None: both sides, to `size`.
        size: (width, height) after resizing; None: not resized.
        crop: (width, height) of the middle that is kept; None: all.
        table: [3, 256] float32, what each byte of each channel becomes.
    """

    shorter_side: int | None
    size: tuple[int, int] | None
    crop: tuple[int, int] | None
    resample: Image.Resampling
    table: NDArray[np.float32]

    def __call__(self, images: Sequence[Image.Image], *, exact: bool = True) -> Tensor | None:
        """Return `pixel_values` [F, 3, H, W]; None where an image is too small or of another shape than the first."""
        fitted = self.fit(images, exact=exact)
        return None if fitted is None else self.look_up(fitted)

    def fit(self, images: Sequence[Image.Image], *, exact: bool = True) -> Tensor | None:
        """Return the images resized and cropped, [F, H, W, 3] bytes; None as above."""
        fitted = [self._fit(image, exact=exact or self.resample not in _FILTERS) for image in images]
        shape = None if fitted[0] is None else fitted[0].shape
        if shape is None or any(values is None or values.shape != shape for values in fitted):
            return None
        return torch.from_numpy(np.stack([values[:, :, :3] for values in fitted if values is not None]))

    def look_up(self, fitted: Tensor) -> Tensor:
        """Return what the table says of bytes: [N, H, W, 3] -> [N, 3, H, W] float32, on the device where they are."""
        if fitted.device.type != "cpu":
            table = torch.from_numpy(self.table).to(fitted.device)
            return torch.stack([table[channel][fitted[..., channel].int()] for channel in range(3)], dim=1)
        pixels = np.empty((len(fitted), 3, *fitted.shape[1:3]), np.float32)
        for number, values in enumerate(fitted.numpy()):
            for channel in range(3):
                np.take(self.table[channel], values[:, :, channel], out=pixels[number, channel], mode="clip")
        return torch.from_numpy(pixels)

    def _fit(self, image: Image.Image, *, exact: bool) -> NDArray[np.uint8] | None:
        """Return an image resized and cropped, [H, W, 3 or 4]."""
        size = self._resized(image)
        width, height = self.crop or size
        if size[0] < width or size[1] < height:
            return None  # such are padded
        left, top = (size[0] - width) // 2, (size[1] - height) // 2
        if exact or size == image.size:
            image = image if size == image.size else image.resize(size, self.resample)
            return np.asarray(image if size == (width, height) else image.crop((left, top, left + width, top + height)))
        values = _bytes_of(image)[None].permute(0, 3, 1, 2)
        mode = _FILTERS[self.resample]
        values = torch.nn.functional.interpolate(values, size=size[::-1], mode=mode, antialias=True)
        kept: NDArray[np.uint8] = values[0, :, top : top + height, left : left + width].permute(1, 2, 0).numpy()
        return kept

    def _resized(self, image: Image.Image) -> tuple[int, int]:
        if self.shorter_side is None:
            return self.size or image.size
        short, long = sorted(image.size)
        longer_side = int(self.shorter_side * long / short)
        return (longer_side, self.shorter_side) if image.width > image.height else (self.shorter_side, longer_side)


def _bytes_of(image: Image.Image) -> Tensor:
    """Return the bytes of an image: [H, W, 4] without a copy, the last of each four unused; or copied, [H, W, 3]."""
    try:
        values = torch.utils.dlpack.from_dlpack(pa.array(image).values)
    except (ValueError, TypeError, pa.ArrowException):  # an old Pillow, or an image in several blocks of memory
        return torch.from_numpy(np.array(image))
    return values.reshape(image.height, image.width, 4)


_known: WeakKeyDictionary[BaseImageProcessor, FastPixels | None] = WeakKeyDictionary()


def fast_pixels(image_processor: BaseImageProcessor) -> FastPixels | None:
    """Return what does an image processor's work faster with the same result, if that can be done."""
    if image_processor not in _known:
        _known[image_processor] = _make(image_processor)
    return _known[image_processor]


def _make(image_processor: BaseImageProcessor) -> FastPixels | None:
    settings = image_processor.to_dict()
    size, crop_size = dict(settings.get("size") or {}), dict(settings.get("crop_size") or {})
    has_size = bool(settings.get("do_resize", True) and size)
    crops = bool(settings.get("do_center_crop") and crop_size)
    by_shorter_side = has_size and set(size) == {"shortest_edge"}
    if settings.get("do_pad") or (has_size and not by_shorter_side and set(size) != {"height", "width"}):
        return None
    fast = FastPixels(
        shorter_side=size["shortest_edge"] if by_shorter_side else None,
        size=(size["width"], size["height"]) if has_size and not by_shorter_side else None,
        crop=(crop_size["width"], crop_size["height"]) if crops and set(crop_size) == {"height", "width"} else None,
        resample=Image.Resampling(settings.get("resample") or Image.Resampling.BILINEAR),
        table=np.tile(np.arange(256, dtype=np.float32), (3, 1)),
    )
    try:
        whole = _with_table(fast, image_processor)
    except (ValueError, KeyError, TypeError, IndexError):  # it does something else, or cannot do this at all
        return None
    return whole if whole is not None and _is_right(whole, image_processor) else None


def _with_table(fast: FastPixels, image_processor: BaseImageProcessor) -> FastPixels | None:
    """Read the table off what becomes of an images that hold every byte and are not resized."""
    width, height = fast.size or fast.crop or (256, 256)
    if fast.shorter_side is not None:
        width = height = fast.shorter_side
    table = np.full((3, 256), np.nan, np.float32)
    for shift in range(0, 256, 4):
        values = ((shift + np.arange(width) + 37 * np.arange(height)[:, None]) % 256).astype(np.uint8)
        image = Image.fromarray(np.repeat(values[:, :, None], 3, axis=2))
        bytes_left, made = fast([image]), _pixel_values(image_processor, [image])
        if bytes_left is None or made is None or made.shape != bytes_left.shape or made.dtype != torch.float32:
            return None
        for channel in range(3):
            table[channel][bytes_left[0, channel].numpy().astype(np.int64)] = made[0, channel].numpy()
        if not np.isnan(table).any():
            return replace(fast, table=table)
    return None


def _is_right(fast: FastPixels, image_processor: BaseImageProcessor) -> bool:
    rng = np.random.default_rng(0)
    for width, height in _PROBES:
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        mine, made = fast([image]), _pixel_values(image_processor, [image])
        if made is None or (mine is not None and not torch.equal(mine, made)):
            return False
    return True


def _pixel_values(image_processor: BaseImageProcessor, images: list[Image.Image]) -> Tensor | None:
    made: Any = image_processor(images=images, return_tensors="pt")
    tensors = {name: value for name, value in made.items() if isinstance(value, Tensor)}
    return tensors["pixel_values"] if set(tensors) == {"pixel_values"} else None
