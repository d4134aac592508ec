"""Take the pixels of an image file away from what was noted beside them, for files whose notes are what is broken.

In:  the bytes of a PNG, JPEG, WebP or TIFF file.
Out: a file of the pixels alone; None where there is nothing to take off.

    pixels = without_notes(data, keep_exif=True)

Kept is what says how the pixels look: palette and transparency of a PNG, the kind of colours of a JPEG, and if that is
asked for what says how the camera was held. Texts, colour profiles, times and sizes on paper go.
"""

from __future__ import annotations

import struct

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT")
_WEBP_PIXELS = (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF")
_JPEG_COLOURS = (0xE0, 0xEE)  # JFIF and Adobe: which colours the channels are
_JPEG_NOTES = range(0xE0, 0xF0)
_JPEG_SCAN, _JPEG_COMMENT, _JPEG_EXIF = 0xDA, 0xFE, 0xE1
_TIFF_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
# Name, description, camera, page, orientation, resolution, program, date, people, XMP, IPTC, Photoshop, ICC, EXIF, GPS
_TIFF_NOTES = {269, 270, 271, 272, 274, 282, 283, 285, 286, 287, 296, 297, 305, 306, 315, 316}
_TIFF_NOTES |= {700, 33432, 33723, 34377, 34665, 34675, 34853}
_TIFF_ORIENTATION, _TIFF_ENTRY_BYTES = 274, 12


def may_have_notes(data: bytes) -> bool:
    """Say of the beginning of a file whether it is of a format that `without_notes` knows."""
    return data.startswith((_PNG, _JPEG)) or _is_webp(data) or data[:4] in _TIFF_ORDERS


def without_notes(data: bytes, *, keep_exif: bool) -> bytes | None:
    """Return an image file with its pixels alone; None where it has no other parts or is of another format."""
    if not may_have_notes(data):
        return None
    take_off = _webp if _is_webp(data) else _tiff if data[:4] in _TIFF_ORDERS else _jpeg
    kept = (_png if data.startswith(_PNG) else take_off)(data, keep_exif)
    return None if kept == data else kept


def _is_webp(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def _png(data: bytes, keep_exif: bool) -> bytes:
    """Keep the chunks of a PNG that make its pixels: length, name, content, checksum each."""
    kept, place = [_PNG], len(_PNG)
    while place + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, place)
        if name in _PNG_PIXELS or (keep_exif and name == b"eXIf"):
            kept.append(data[place : place + 12 + length])
        place += 12 + length
    return b"".join(kept)


def _jpeg(data: bytes, keep_exif: bool) -> bytes:
    """Keep the segments of a JPEG but its notes, and from the first scan on all there is."""
    kept, place = [data[:2]], 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        if data[place + 1] == 0xFF:  # one may stand in front of any marker
            place += 1
            continue
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if marker == _JPEG_SCAN:
            break
        is_exif = marker == _JPEG_EXIF and data[place + 4 : place + 8] == b"Exif"
        is_note = marker == _JPEG_COMMENT or (marker in _JPEG_NOTES and marker not in _JPEG_COLOURS)
        if not is_note or (keep_exif and is_exif):
            kept.append(data[place : place + 2 + length])
        place += 2 + length
    return b"".join([*kept, data[place:]])


def _webp(data: bytes, keep_exif: bool) -> bytes:
    """Keep the chunks of a WebP that make its pixels: name, length, content and padding to an even length each."""
    kept, place = [], 12
    while place + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, place)
        whole = data[place : place + 8 + length + length % 2]
        if name == b"VP8X":  # its first byte says which notes there are: colours, EXIF, XMP
            whole = whole[:8] + bytes([whole[8] & (0b11011011 if keep_exif else 0b11010011)]) + whole[9:]
        if name in _WEBP_PIXELS or (keep_exif and name == b"EXIF"):
            kept.append(whole)
        place += 8 + length + length % 2
    body = b"WEBP" + b"".join(kept)
    return b"RIFF" + len(body).to_bytes(4, "little") + body


def _tiff(data: bytes, keep_exif: bool) -> bytes:
    """Keep the entries of a TIFF's first directory that make its pixels; all else stays in its place."""
    order = _TIFF_ORDERS[data[:4]]
    [place] = struct.unpack_from(f"{order}I", data, 4)
    [number] = struct.unpack_from(f"{order}H", data, place)
    first, end = place + 2, place + 2 + number * _TIFF_ENTRY_BYTES
    entries = [data[at : at + _TIFF_ENTRY_BYTES] for at in range(first, end, _TIFF_ENTRY_BYTES)]
    tags = [struct.unpack_from(f"{order}H", entry)[0] for entry in entries]
    is_held = [keep_exif and tag == _TIFF_ORIENTATION for tag in tags]
    kept = [e for e, tag, held in zip(entries, tags, is_held, strict=True) if held or tag not in _TIFF_NOTES]
    following = data[end : end + 4]  # where the next directory is
    directory = struct.pack(f"{order}H", len(kept)) + b"".join(kept) + following
    return data[:place] + directory.ljust(end + 4 - place, b"\0") + data[end + 4 :]
