"""Open images from anywhere as plain RGB, or say in a few stable words why not.

In:  an ImageRef: a PIL image, a path, an encoded file's bytes, a data: URL, base64, a dict {"bytes": ..., "path": ...},
     or a StoredImage.
Out: an RGB PIL image, upright; a BadSampleError whose text is a short reason without names, so that it can be counted.

    image = open_image("photo.jpg", max_pixels=40_000_000)
"""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from visgraft.data.images.references import decode_base64, decode_text, is_web_address
from visgraft.data.sample import ImageRef, StoredImage
from visgraft.errors import BadSampleError

# A file of a few kilobytes may claim any size; Pillow itself refuses twice this number.
DEFAULT_MAX_PIXELS = 89_478_485
# Not every format that Pillow knows: some run other programs (EPS) or hold no picture.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "MPO", "TGA")
_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")


def open_image(ref: ImageRef, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image.Image:
    """Open an image as RGB: EXIF rotation applied, transparency laid on white, 16-bit grey scaled to 8.

    The number of pixels is checked before anything is decoded. Raises BadSampleError for a missing, empty, truncated,
    broken or animated file, for what is no image, and above max_pixels.
    """
    try:
        if isinstance(ref, StoredImage):
            ref = ref.read()
        if isinstance(ref, Image.Image):
            return _decode(ref, max_pixels=max_pixels)
        with Image.open(_file_of(ref), formats=_readable_formats()) as image:
            return _decode(image, max_pixels=max_pixels)
    except (BadSampleError, MemoryError):
        raise
    except Exception as error:  # the decoders of damaged files fail in every way there is
        raise BadSampleError(_reason(error)) from error


def _reason(error: Exception) -> str:
    match error:
        case UnidentifiedImageError():
            return "not an image"
        case Image.DecompressionBombError() | Image.DecompressionBombWarning():
            return "image has too many pixels"
        case PermissionError():
            return "image file may not be read"
    return "image is truncated" if "truncated" in str(error).lower() else "image is broken"


def _file_of(ref: object) -> Path | BytesIO:
    """Return what Pillow opens, after the checks that give a better reason than Pillow's."""
    if isinstance(ref, Mapping):
        if ref.get("bytes") is not None:
            ref = ref["bytes"]
        elif ref.get("base64") is not None:
            ref = decode_base64(ref["base64"])
        else:
            ref = ref.get("path")
        if ref is None:
            raise BadSampleError("image has neither bytes nor path")
    if isinstance(ref, str):
        if is_web_address(ref):
            raise BadSampleError("image is a web address and data.allow_remote_images is false")
        data = decode_text(ref)
        ref = ref if data is None else data
    if isinstance(ref, (bytes, bytearray, memoryview)):
        if len(ref) == 0:
            raise BadSampleError("image file is empty")
        return BytesIO(ref)
    if not isinstance(ref, (str, Path)):
        raise BadSampleError(f"image is given as {type(ref).__name__}")
    path = Path(ref)
    try:
        if not path.is_file():
            raise BadSampleError("image path is no file" if path.exists() else "image file is missing")
        if path.stat().st_size == 0:
            raise BadSampleError("image file is empty")
    except (OSError, ValueError):  # a name that no file can have: too long, or with a NUL in it
        raise BadSampleError("image file is missing") from None
    return path


def _readable_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _decode(image: Image.Image, *, max_pixels: int) -> Image.Image:
    if image.width * image.height > max_pixels:
        raise BadSampleError("image has too many pixels")
    # A phone's MPO file is a photograph with its preview behind it, no animation.
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        raise BadSampleError("image is animated or has several pages")
    image.load()
    # Without a rotation, exif_transpose would copy the whole image.
    return _to_rgb(ImageOps.exif_transpose(image) if image.getexif().get(ExifTags.Base.Orientation, 1) != 1 else image)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _SIXTEEN_BIT_MODES:
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise BadSampleError("image has 32 bits a pixel")
        # 65535 / 255 = 257 exactly; Pillow's own conversion would cut everything above 255 to white.
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise BadSampleError("image has 32 bits a pixel")
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        white = Image.new("RGBA", colours.size, "white")
        return Image.alpha_composite(white, colours).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
