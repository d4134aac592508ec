"""The images that clients name, and nothing else that they name: data: URLs, and web addresses of allowed hosts.

In: what stands behind `image_url`. Out: the bytes of an image file; an RGB image within what is left of the limits.
No path is ever opened here, no file: address, no private address.

    data = read_image_url("data:image/png;base64,iVBORw0...", place="messages.0.content.1.image_url.url")
    image = open_bytes(data, max_pixels=40_000_000, place=place)
"""

from __future__ import annotations

from PIL import Image

from visgraft.data.images.opening import decode_text, is_data_url, is_web_address, open_image
from visgraft.data.images.remote import download
from visgraft.errors import BadSampleError
from visgraft.serving.failures import Failure, bad_request
from visgraft.serving.settings import ServeSettings

# What browsers and cameras write; further decoders would be further ways in.
FORMATS = "PNG, JPEG, WebP, GIF and BMP"
_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"BM")


def is_remote(url: str) -> bool:
    """Say whether an image must be fetched."""
    return is_web_address(url)


def read_data_url(url: str, *, place: str) -> bytes:
    """Return what a data: URL holds.

    Raises:
        Failure: 400, it is no data: URL of an image in base64.
    """
    if not is_data_url(url):
        raise bad_request(
            f"{place}: got neither a data: URL nor a web address, and nothing else is ever opened; send the image as "
            "data:image/png;base64,...",
            param=place,
            code="invalid_image_url",
        )
    if not url[5:11].lower() == "image/":
        raise bad_request(f"{place}: this data: URL holds no image; need data:image/...;base64,...", param=place)
    try:
        data = decode_text(url)
    except BadSampleError as error:
        raise _bad_image(error, place) from None
    assert data is not None
    return data


def fetch_image(url: str, *, place: str, settings: ServeSettings) -> bytes:
    """Fetch an image from the web, where its host is allowed; no proxy is asked, so that what is checked is asked.

    Raises:
        Failure: 400, images are not fetched, not from there, or it cannot be had.
    """
    if not settings.image_hosts:
        raise bad_request(
            f"{place}: this server fetches no images (--allow-image-hosts); send the image as "
            "data:image/png;base64,...",
            param=place,
            code="invalid_image_url",
        )
    try:
        return download(
            url,
            hosts=settings.image_hosts,
            max_bytes=settings.limits.max_body_bytes,
            deadline_s=settings.limits.fetch_timeout_s,
            may_use_proxy=False,
        )
    except BadSampleError as error:
        reason = str(error).partition(" and data.")[0]  # a recipe's remedy is none here
        raise bad_request(f"{place}: {reason}", param=place, code="invalid_image_url") from None


def open_bytes(data: bytes, *, max_pixels: int, place: str) -> Image.Image:
    """Open an image file as RGB; `max_pixels` is what is left for it.

    Raises:
        Failure: 400, it cannot be used.
    """
    if not data:
        raise _bad_image(BadSampleError("image is empty"), place)
    if not data.startswith(_SIGNATURES) and not (data[:4] == b"RIFF" and data[8:12] == b"WEBP"):
        raise bad_request(f"{place}: not an image of a kind that is read: {FORMATS}", param=place, code="invalid_image")
    try:
        return open_image(data, max_pixels=max_pixels)
    except BadSampleError as error:
        if "pixels" in str(error) and max_pixels:
            error = BadSampleError(f"{error} (left for it are {max_pixels:,}, over all images of the request)")
        raise _bad_image(error, place) from None


def _bad_image(error: BadSampleError, place: str) -> Failure:
    return bad_request(f"{place}: {error}", param=place, code="invalid_image")
