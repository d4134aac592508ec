"""Change training images at random: crop, flip, colour; the same image, epoch and seed always give the same change.

In:  a sample, AugmentSettings of the recipe, and a name of the occasion (seed, epoch, sample).
Out: the sample with images that are augmented when they are opened.

    sample = augment(sample, settings, occasion="0 3 17", max_pixels=40_000_000)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from PIL import Image, ImageEnhance, ImageOps

from visgraft.config import AugmentSettings
from visgraft.data.images.opening import open_image
from visgraft.data.sample import ImageRef, Sample


@dataclass(frozen=True, slots=True)
class AugmentedImage:
    """An image that is augmented when it is opened; see WrappedImage."""

    image: ImageRef
    settings: AugmentSettings
    occasion: str
    max_pixels: int

    def read(self) -> Image.Image:
        """Open and augment the image; raises BadSampleError."""
        return augment_image(
            open_image(self.image, max_pixels=self.max_pixels), self.settings, rng=Random(self.occasion)
        )


def augment(sample: Sample, settings: AugmentSettings, *, occasion: str, max_pixels: int) -> Sample:
    """Return a sample whose images will be augmented, all of them alike (they may be frames of one video)."""
    if not settings.is_on:
        return sample
    return replace(sample, images=[AugmentedImage(image, settings, occasion, max_pixels) for image in sample.images])


def augment_image(image: Image.Image, settings: AugmentSettings, *, rng: Random) -> Image.Image:
    """Crop a part of the image's own shape, mirror it, vary brightness, contrast and saturation."""
    area, across, down, mirror, *colours = (rng.random() for _ in range(7))  # as many whatever the settings
    if settings.crop is not None:
        smallest, largest = settings.crop
        scale = (smallest + (largest - smallest) * area) ** 0.5
        width, height = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        left, top = round((image.width - width) * across), round((image.height - height) * down)
        image = image.crop((left, top, left + width, top + height))
    if mirror < settings.flip:
        image = ImageOps.mirror(image)
    if settings.colour:
        kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        for kind, amount in zip(kinds, colours, strict=True):
            image = kind(image).enhance(1 + settings.colour * (2 * amount - 1))
    return image
