"""Take the pixels of an image file away from what was noted beside them, for files whose notes are what is broken.

In:  the bytes of a PNG, JPEG or WebP file. Out: a file of the pixels alone, or None where there is nothing to take off.

    pixels = without_notes(data)

Kept is what says how the pixels look: palette and transparency of a PNG, the kind of colours of a JPEG. EXIF, texts,
colour profiles, times and sizes on paper go.
"""

from __future__ import annotations

import struct

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT")
_WEBP_PIXELS = (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF")
_JPEG_COLOURS = (0xE0, 0xEE)  # JFIF and Adobe: which colours the channels are
_JPEG_NOTES = range(0xE0, 0xF0)
_JPEG_SCAN, _JPEG_COMMENT = 0xDA, 0xFE


def may_have_notes(data: bytes) -> bool:
    """Say of the beginning of a file whether it is of a format that `without_notes` knows."""
    return data.startswith((_PNG, _JPEG)) or _is_webp(data)


def without_notes(data: bytes) -> bytes | None:
    """Return an image file with its pixels alone; None where it has no other parts or is of another format."""
    if not may_have_notes(data):
        return None
    kept = _png(data) if data.startswith(_PNG) else _webp(data) if _is_webp(data) else _jpeg(data)
    return None if kept == data else kept


def _is_webp(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def _png(data: bytes) -> bytes:
    """Keep the chunks of a PNG that make its pixels: length, name, content, checksum each."""
    kept, place = [_PNG], len(_PNG)
    while place + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, place)
        if name in _PNG_PIXELS:
            kept.append(data[place : place + 12 + length])
        place += 12 + length
    return b"".join(kept)


def _jpeg(data: bytes) -> bytes:
    """Keep the segments of a JPEG but its notes, and from the first scan on all there is."""
    kept, place = [data[:2]], 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        if data[place + 1] == 0xFF:  # one may stand in front of any marker
            place += 1
            continue
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if marker == _JPEG_SCAN:
            break
        if marker in _JPEG_COLOURS or not (marker in _JPEG_NOTES or marker == _JPEG_COMMENT):
            kept.append(data[place : place + 2 + length])
        place += 2 + length
    return b"".join([*kept, data[place:]])


def _webp(data: bytes) -> bytes:
    """Keep the chunks of a WebP that make its pixels: name, length, content and padding to an even length each."""
    kept, place = [], 12
    while place + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, place)
        whole = data[place : place + 8 + length + length % 2]
        if name == b"VP8X":  # its first byte says which notes there are: colours, EXIF, XMP
            whole = whole[:8] + bytes([whole[8] & 0b11010011]) + whole[9:]
        if name in _WEBP_PIXELS:
            kept.append(whole)
        place += 8 + length + length % 2
    body = b"WEBP" + b"".join(kept)
    return b"RIFF" + len(body).to_bytes(4, "little") + body
