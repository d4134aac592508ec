"""Name images that are not opened yet: what a file's value means, and by what two images are the same.

In:  a value of a JSON line, a table's cell, ...: a path, a data: URL, base64, a web address, bytes, a dict.
Out: an ImageRef that any process can open, and a key of 16 bytes to gather texts about the same image.

    ref = image_ref("photos/cat.jpg", folder=Path("~/pictures"))
    key = image_key(ref, by_content=False)
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from PIL import Image

from visgraft.data.sample import ImageRef, StoredImage
from visgraft.errors import BadSampleError

# The first characters of a JPEG, PNG, GIF, WebP or TIFF file in base64; nobody names a folder so.
_BASE64_STARTS = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "SUkqA", "TU0AK")
_SHORTEST_BASE64 = 64
_WEB_STARTS = ("http://", "https://")
KEY_BYTES = 16


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
        return base64.b64decode(b"".join(raw.split()).translate(_ORDINARY), validate=True)
    except binascii.Error:
        raise BadSampleError("image is not valid base64") from None


_ORDINARY = bytes.maketrans(b"-_", b"+/")


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
