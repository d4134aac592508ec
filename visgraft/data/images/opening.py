"""Open images from anywhere as plain RGB, or say in a few stable words why not; and say which images are the same.

In:  a value of a JSON line, a table's cell, ... (a path, a data: URL, base64, a web address, bytes, a dict), of which
     image_ref makes an ImageRef that any process can open later; or whatever a program has at hand.
Out: an RGB PIL image, upright; a key of 16 bytes to gather texts about the same image; a BadSampleError whose text is a
     short reason without names, so that it can be counted.

    ref = image_ref("photos/cat.jpg", folder=Path("~/pictures"))
    image = open_image(ref, max_pixels=40_000_000)
    key = image_key(ref, by_content=False)
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from visgraft.data.sample import ImageRef, StoredImage
from visgraft.errors import BadSampleError

# A file of a few kilobytes may claim any size; Pillow itself refuses twice this number.
DEFAULT_MAX_PIXELS = 89_478_485
# Not every format that Pillow knows: some run other programs (EPS) or hold no picture.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "MPO", "TGA")
_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")
# The first characters of a JPEG, PNG, GIF, WebP or TIFF file in base64; no one names a folder so.
_BASE64_STARTS = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "SUkqA", "TU0AK")
_SHORTEST_BASE64 = 64
_WEB_STARTS = ("http://", "https://")
KEY_BYTES = 16
_URL_SAFE_TO_ORDINARY = bytes.maketrans(b"-_", b"+/")


def open_image(ref: ImageRef, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image.Image:
    """Open an image as RGB: EXIF rotation applied, transparency laid on white, 16-bit grey scaled to 8.

    The number of pixels is checked before anything is decoded. Raises BadSampleError for a missing, empty, truncated,
    broken or animated file, for what is no image, and above max_pixels.
    """
    try:
        data = image_data(ref)
        if isinstance(data, Image.Image):
            return _decode(data, max_pixels=max_pixels)
        _check_file(data)
        with Image.open(BytesIO(data) if isinstance(data, bytes) else data, formats=_readable_formats()) as image:
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


def image_data(ref: object) -> Image.Image | bytes | Path:
    """Return what holds an image: the image itself, the bytes of an image file, or the path of one.

    Raises BadSampleError where there is no such thing; whether the file is there and whole is not looked at.
    """
    if isinstance(ref, StoredImage):
        ref = ref.read()
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
        return Path(ref) if data is None else data
    if isinstance(ref, (bytearray, memoryview)):
        return bytes(ref)
    if not isinstance(ref, (Image.Image, bytes, Path)):
        raise BadSampleError(f"image is given as {type(ref).__name__}")
    return ref


def _check_file(data: bytes | Path) -> None:
    """Give better reasons than Pillow's for what is no file or empty."""
    if isinstance(data, bytes):
        if not data:
            raise BadSampleError("image file is empty")
        return
    try:
        if not data.is_file():
            raise BadSampleError("image path is no file" if data.exists() else "image file is missing")
        if data.stat().st_size == 0:
            raise BadSampleError("image file is empty")
    except (OSError, ValueError):  # a name that no file can have: too long, or with a NUL in it
        raise BadSampleError("image file is missing") from None


@cache
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


# --- What a file's value means


@dataclass(frozen=True, slots=True)
class FilePart:
    """An encoded image that is a stretch of a larger file (a tar shard); see StoredImage."""

    path: Path
    offset: int
    size_bytes: int

    def read(self) -> bytes:
        """Return the bytes of the image."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                return file.read(self.size_bytes)
        except OSError:
            raise BadSampleError("image file is missing") from None


def image_ref(value: object, *, folder: Path | None = None) -> ImageRef:
    """Return what a file's value names; a relative path is taken from folder.

    A text is a data: URL, a web address, base64 (known by the first bytes of an image file) or else a path; a mapping
    holds one of bytes, path, base64 and url. Raises BadSampleError for anything else.
    """
    if isinstance(value, (bytes, Image.Image, StoredImage)):
        return value
    if isinstance(value, Mapping):
        return _ref_of_mapping(value, folder=folder)
    if not isinstance(value, (str, Path)) or not str(value).strip():
        raise BadSampleError("image is empty" if value in ("", None) else f"image is given as {type(value).__name__}")
    if isinstance(value, str):
        if value.startswith("data:") or is_web_address(value):
            return value
        if looks_like_base64(value):
            return {"base64": value}
    return Path(value) if folder is None else folder / value


def _ref_of_mapping(value: Mapping[str, Any], *, folder: Path | None) -> ImageRef:
    if value.get("bytes") is not None:
        return {"bytes": value["bytes"], "path": value.get("path")}
    if value.get("base64") is not None:
        return {"base64": value["base64"]}
    named = next((value[key] for key in ("path", "url", "image") if value.get(key) is not None), None)
    if named is None or isinstance(named, Mapping):
        raise BadSampleError("image has neither bytes nor path")
    return image_ref(named, folder=folder)


def image_refs(values: object, *, folder: Path | None = None) -> list[ImageRef]:
    """Return what the values of one sample name: one image, a list of them, or none."""
    if values is None:
        return []
    many = values if isinstance(values, Sequence) and not isinstance(values, (str, bytes)) else [values]
    return [image_ref(value, folder=folder) for value in many]


def is_web_address(value: object) -> bool:
    """Say whether a value names a page of the web."""
    return isinstance(value, str) and value[:8].lower().startswith(_WEB_STARTS)


def looks_like_base64(text: str) -> bool:
    """Say whether a text can only be an image file in base64."""
    return len(text) >= _SHORTEST_BASE64 and text.lstrip().startswith(_BASE64_STARTS)


def decode_text(text: str) -> bytes | None:
    """Return the bytes of a data: URL or of base64 that is known as such; None: the text is neither.

    Raises BadSampleError where it cannot be decoded.
    """
    if text.startswith("data:"):
        kind, comma, payload = text.partition(",")
        if not comma or not kind.endswith(";base64"):
            raise BadSampleError("image data: URL is not in base64")
        return decode_base64(payload)
    return decode_base64(text) if looks_like_base64(text) else None


def decode_base64(text: object) -> bytes:
    """Return the bytes that a text in base64 (ordinary or URL-safe) holds; raises BadSampleError."""
    if not isinstance(text, (str, bytes)):
        raise BadSampleError(f"image base64 is given as {type(text).__name__}")
    raw = text.encode("ascii", "replace") if isinstance(text, str) else text
    try:
        return base64.b64decode(b"".join(raw.split()).translate(_URL_SAFE_TO_ORDINARY), validate=True)
    except binascii.Error:
        raise BadSampleError("image is not valid base64") from None


# --- When two images are the same


def image_key(ref: ImageRef, *, by_content: bool) -> bytes:
    """Return 16 bytes that equal images share; inlined images are compared by content in any case.

    by_content: compare files by what they hold, else by their path.
    Raises BadSampleError where an image that must be read cannot be.
    """
    match ref:
        case bytes():
            return short_digest(ref)
        case Mapping():
            if ref.get("bytes") is not None:
                return short_digest(ref["bytes"])
            if ref.get("base64") is not None:
                return short_digest(decode_base64(ref["base64"]))
            return image_key(ref["path"], by_content=by_content)
        case Image.Image():
            return short_digest(f"{ref.mode} {ref.size}".encode() + ref.tobytes())
        case str() if (data := decode_text(ref)) is not None:
            return short_digest(data)
        case FilePart():
            return short_digest(ref.read() if by_content else repr(ref).encode())
        case str() | Path() if by_content and not is_web_address(ref):
            try:
                return short_digest(Path(ref).read_bytes())
            except OSError:
                raise BadSampleError("image file is missing") from None
    return short_digest(str(ref).encode("utf-8", "surrogatepass"))


def short_digest(data: bytes) -> bytes:
    """Return `KEY_BYTES` bytes that equal data share."""
    return blake2b(data, digest_size=KEY_BYTES).digest()
