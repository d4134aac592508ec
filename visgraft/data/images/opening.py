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
import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b, file_digest
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from visgraft.config import DataSettings
from visgraft.data.fingerprint import is_file_name
from visgraft.data.images.notes import may_have_notes, without_notes
from visgraft.data.sample import ImageRef, StoredImage
from visgraft.errors import BadSampleError

# A file of a few kilobytes may claim any size; one limit, that of a recipe which says nothing.
DEFAULT_MAX_PIXELS = DataSettings().max_pixels
# Formats that Pillow knows and that are no pictures, or that another program draws.
_NO_PICTURES = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")
_USUAL = ("JPEG", "PNG", "WEBP")  # tried first
_BY_GUESS = ("IM", "IMT", "IPTC", "PCD", "SPIDER", "TGA")  # those that no first bytes show: tried last
_ONE_PICTURE = ("MPO", "PSD")  # a photograph with its preview behind it; a picture with its layers
_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BASE64 = re.compile(r"[A-Za-z0-9+/_\-\s]{64}")
_LONGEST_PATH = 4096
_BASE64_LONG = re.compile(rf"[A-Za-z0-9+/_\-\s]{{{_LONGEST_PATH}}}")
_SIGNATURE_BYTES = 16  # that Pillow's plugins look at
_WEB_STARTS = ("http://", "https://")
_FILE_URL = re.compile(r"file:(?://(?:localhost)?(?=/))?", re.IGNORECASE)
_OTHER_URL = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
KEY_BYTES = 16
_URL_SAFE_TO_ORDINARY = bytes.maketrans(b"-_", b"+/")


def open_image(ref: ImageRef, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image.Image:
    """Open an image as RGB: EXIF rotation applied, transparency laid on white, 16-bit grey scaled to 8.

    The number of pixels is checked before anything is decoded. Raises BadSampleError for a missing, empty, truncated,
    broken or animated file, for what is no image, and above max_pixels; never for what stands beside the pixels.
    """
    data: Image.Image | bytes | Path | None = None
    try:
        data = image_data(ref)
        if isinstance(data, Image.Image):
            return _decode(data, max_pixels=max_pixels)
        if isinstance(data, Path):
            image_file_state(data)
        elif not data:
            raise BadSampleError("image file is empty")
        return _open(data, max_pixels=max_pixels)
    except (BadSampleError, MemoryError):
        raise
    except Exception as error:  # the decoders of damaged files fail in every way there is
        image = _open_without_notes(data, max_pixels=max_pixels)
        if image is None:
            raise BadSampleError(_reason(error)) from error
        return image


def _open(data: bytes | Path, *, max_pixels: int) -> Image.Image:
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels  # else Pillow warns of what the recipe allows, and refuses twice as much
    with Image.open(BytesIO(data) if isinstance(data, bytes) else data, formats=_readable_formats()) as image:
        return _decode(image, max_pixels=max_pixels)


def _open_without_notes(data: object, *, max_pixels: int) -> Image.Image | None:
    """Open the pixels of a file whose notes may be what is broken; None where they are not."""
    for keep_exif in (True, False):
        try:
            if isinstance(data, Path):
                with data.open("rb") as file:
                    data = data.read_bytes() if may_have_notes(file.read(_SIGNATURE_BYTES)) else None
            pixels = without_notes(data, keep_exif=keep_exif) if isinstance(data, bytes) else None
            if pixels is not None:
                return _open(pixels, max_pixels=max_pixels)
        except BadSampleError:
            raise
        except Exception:  # as above; what is told is why the whole file fails
            continue
    return None


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
        return path_of_text(ref) if data is None else data
    if isinstance(ref, (bytearray, memoryview)):
        return bytes(ref)
    if not isinstance(ref, (Image.Image, bytes, Path)):
        return image_of_array(ref)
    return ref


def file_state(path: Path) -> os.stat_result | None:
    """Look at a path; None: nothing is there, or it is a name that no file can have (too long, or with a NUL in it)."""
    try:
        return path.stat()
    except PermissionError:
        raise BadSampleError("image file may not be read") from None
    except (OSError, ValueError):
        return None


def image_file_state(path: Path) -> os.stat_result:
    """Look at an image file; raises BadSampleError for what is missing, no regular file (a device, a pipe) or empty."""
    state = file_state(path)
    if state is None:
        raise BadSampleError("image file is missing")
    if not stat.S_ISREG(state.st_mode):
        raise BadSampleError("image path is no file")
    if state.st_size == 0:
        raise BadSampleError("image file is empty")
    return state


def image_of_array(value: Any) -> Image.Image:
    """Return the image that an array or tensor of uint8 holds: [H, W], [H, W, 1, 3 or 4] or [1, 3 or 4, H, W].

    Raises BadSampleError for anything else, with the way to convert it.
    """
    if not hasattr(value, "__array__") or not hasattr(value, "dtype"):
        raise BadSampleError(f"image is given as {type(value).__name__}")
    if "uint8" not in str(value.dtype):
        kind = str(value.dtype).removeprefix("torch.")
        raise BadSampleError(
            f"image is an array of {kind}: give uint8, 0 is black and 255 white (of 0 to 1: times 255)"
        )
    values = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    if values.ndim == 3 and values.shape[2] not in (1, 3, 4) and values.shape[0] in (1, 3, 4):
        values = np.moveaxis(values, 0, 2)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (3, 4)) or not values.size:
        shape = list(value.shape)
        raise BadSampleError(
            f"image is an array of shape {shape}: give [H, W, 3], [3, H, W] or [H, W], an array an image"
        )
    return Image.fromarray(np.ascontiguousarray(values))


@cache
def _readable_formats() -> tuple[str, ...]:
    Image.init()
    named = [name for name in Image.ID if name not in (*_USUAL, *_NO_PICTURES, *_BY_GUESS)]
    return tuple(name for name in (*_USUAL, *named, *_BY_GUESS) if name in Image.OPEN)


def _decode(image: Image.Image, *, max_pixels: int) -> Image.Image:
    if image.width * image.height > max_pixels:
        raise BadSampleError("image has too many pixels")
    if image.width * image.height == 0:
        raise BadSampleError("image has no pixels")
    if getattr(image, "n_frames", 1) > 1 and image.format not in _ONE_PICTURE:
        raise BadSampleError("image is animated or has several pages")
    image.load()
    turned = _UPRIGHT.get(_orientation(image))
    return _to_rgb(image if turned is None else image.transpose(turned))


def _orientation(image: Image.Image) -> Any:
    """Return what the camera noted of how it was held; None where that cannot be read."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # notes are damaged in every way there is; the pixels are there
        return None


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

    A text is a data: URL, a web address, base64 (known by the first bytes of an image file) or else a path, which may
    be a file:// address, begin with ~ or have backslashes; a mapping holds one of bytes, path, base64 and url (a path
    with offset and size_bytes is a stretch of that file); an array or tensor is an image. Raises BadSampleError for
    anything else.
    """
    if isinstance(value, (bytes, Image.Image, StoredImage)):
        return value
    if isinstance(value, Mapping):
        return _ref_of_mapping(value, folder=folder)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise BadSampleError("image is empty")
    if isinstance(value, Path):
        return value if folder is None else folder / value
    if not isinstance(value, str):
        return image_of_array(value)
    if is_data_url(value) or is_web_address(value):
        return value
    return {"base64": value} if looks_like_base64(value) else path_of_text(value, folder=folder)


def path_of_text(text: str, *, folder: Path | None = None) -> Path:
    """Return the path that a text means; a relative one is taken from folder.

    Raises BadSampleError for an address of a kind that is not read (s3://) and a name that no file can have.
    """
    if text[:5].lower() == "file:":
        text = unquote(_FILE_URL.sub("", text, count=1))
    elif other := _OTHER_URL.match(text):
        raise BadSampleError(f"image is an address of a kind that is not read ({other[1].lower()}://)")
    if text.startswith("~"):
        with suppress(RuntimeError):  # no such user
            text = str(Path(text).expanduser())
    if not is_file_name(text):
        raise BadSampleError("image file is missing")
    path = Path(text) if folder is None else folder / text
    if "\\" in text and os.sep == "/" and file_state(path) is None:  # written on Windows
        return path_of_text(text.replace("\\", "/"), folder=folder)
    return path


def _ref_of_mapping(value: Mapping[str, Any], *, folder: Path | None) -> ImageRef:
    if value.get("bytes") is not None:
        return {"bytes": value["bytes"], "path": value.get("path")}
    if value.get("base64") is not None:
        return {"base64": value["base64"]}
    named = next((value[key] for key in ("path", "url", "image") if value.get(key) is not None), None)
    if named is None or isinstance(named, Mapping):
        raise BadSampleError("image has neither bytes nor path")
    ref = image_ref(named, folder=folder)
    offset, size_bytes = value.get("offset"), value.get("size_bytes")
    if isinstance(ref, Path) and isinstance(offset, int) and isinstance(size_bytes, int):
        return FilePart(ref, offset, size_bytes)
    return ref


def image_refs(values: object, *, folder: Path | None = None) -> list[ImageRef]:
    """Return what the values of one sample name: one image, a list of them, or none."""
    if values is None:
        return []
    many = values if isinstance(values, Sequence) and not isinstance(values, (str, bytes)) else [values]
    return [image_ref(value, folder=folder) for value in many]


def is_web_address(value: object) -> bool:
    """Say whether a value names a page of the web."""
    return isinstance(value, str) and value[:8].lower().startswith(_WEB_STARTS)


def is_data_url(value: object) -> bool:
    """Say whether a value is a data: URL, which holds what it names."""
    return isinstance(value, str) and value[:5].lower() == "data:"


def looks_like_base64(text: str) -> bool:
    """Say whether a text can only be an image file in base64: it has its first bytes, or is longer than any path."""
    begin = text.lstrip() if text[:1].isspace() else text
    if _BASE64.match(begin) is None or "." in begin[:_LONGEST_PATH]:  # as nearly every path has and no base64
        return False
    head = "".join(begin[: 4 * _SIGNATURE_BYTES].split())
    first = base64.b64decode(head[: len(head) // 4 * 4].encode().translate(_URL_SAFE_TO_ORDINARY))[:_SIGNATURE_BYTES]
    return any(accept(first) is True for accept in _signatures()) or _BASE64_LONG.match(begin) is not None


@cache
def _signatures() -> tuple[Callable[[bytes], bool | str], ...]:
    accepting = [Image.OPEN[name][1] for name in _readable_formats()]
    return tuple(accept for accept in accepting if accept is not None)


def decode_text(text: str) -> bytes | None:
    """Return the bytes of a data: URL or of base64 that is known as such; None: the text is neither.

    Raises BadSampleError where it cannot be decoded.
    """
    if is_data_url(text):
        kind, comma, payload = text.partition(",")
        if not comma or not kind.lower().endswith(";base64"):
            raise BadSampleError("image data: URL is not in base64")
        return decode_base64(unquote(payload) if "%" in payload else payload)
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


def image_key(ref: object, *, by_content: bool) -> bytes:
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
            path = path_of_text(ref) if isinstance(ref, str) else ref
            image_file_state(path)
            try:
                with path.open("rb") as file:  # piece by piece: it may be of any size
                    return file_digest(file, _new_digest).digest()
            except OSError:
                raise BadSampleError("image file may not be read") from None
        case str() | Path() | StoredImage():
            return short_digest(str(ref).encode("utf-8", "surrogatepass"))
    return image_key(image_of_array(ref), by_content=by_content)


def short_digest(data: bytes) -> bytes:
    """Return `KEY_BYTES` bytes that equal data share."""
    return _new_digest(data).digest()


def _new_digest(data: bytes = b"") -> blake2b:
    return blake2b(data, digest_size=KEY_BYTES)
