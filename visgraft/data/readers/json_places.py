"""Find where the entries of a large JSON file begin and end by its brackets alone; nothing is parsed but one entry.

In:  a TextFile. Out: the places of its entries in bytes, or what the file looks like where it has none that mean rows.

    places = entries_of_list(file)          # [{...}, {...}]
    places = list_inside(file)              # {"info": {...}, "data": [{...}, {...}]}
    places = objects_in_file(file)          # {...} {...}, each over several lines
"""

from __future__ import annotations

import mmap
import re
from array import array
from functools import partial
from typing import NamedTuple

import numpy as np

from visgraft.data.readers.text_files import UTF8_MARK, TextFile
from visgraft.disk_cache import Arrays, keep_arrays
from visgraft.errors import DataError
from visgraft.parsing import parse_json

WRAPPERS = ("data", "annotations", "samples", "rows")
# A string as a whole, a bracket, or a number or name: what is needed to see where entries begin and end. A string never
# spans lines, so that a mark that is not closed spoils its own line and no more; possessive, it is looked at once.
_TOKEN = re.compile(rb'"[^"\\\n]*+(?:\\.[^"\\\n]*+)*+"|[\[\]{}]|[^\s"\[\]{},:]++', re.DOTALL)
# Lists that belong to a row, so that an object which has one is a row by itself.
_LISTS_OF_ROWS = frozenset(
    (
        *("answers", "captions", "completion", "conversations", "dialogs", "file_names", "image_base64_str", "images"),
        *("messages", "prompt", "references", "sentences", "texts", "videos"),
    )
)
_SHOWN_KEYS = 8


def entries_of_list(file: TextFile, *, inside: str | None = None) -> Arrays:
    """Return where the entries of a list begin and end; inside: the key of an object that holds it.

    Raises DataError where the brackets of the file do not close.
    """
    level = 1 if inside is None else 2
    scan = partial(_scan, file, level=level, inside=inside)
    places = keep_arrays(scan, fingerprint=f"JSON entries {inside} {file.fingerprint}")
    if not int(places["is_whole"]):
        raise DataError(f"{file.path}: is not a whole JSON list (brackets do not close); write it again")
    return places


def objects_in_file(file: TextFile) -> Arrays | None:
    """Return where the values of a file begin and end that stand one behind the other; None: brackets do not close."""
    places = keep_arrays(partial(_scan, file, level=0), fingerprint=f"JSON values {file.fingerprint}")
    return places if int(places["is_whole"]) and len(places["starts"]) else None


def list_inside(file: TextFile) -> Arrays | None:
    """Return where the rows of a file that is one object stand: in its one list of objects, under a usual name.

    None: the object is itself a row, as far as can be seen. Raises DataError where it is something else, saying what.
    """
    keys = _keys_of_object(file)
    lists = [key for key in keys if key.is_list_of_objects]
    names = {key.name for key in lists}
    shown = ", ".join(key.name[:40] for key in keys[:_SHOWN_KEYS])
    if {"images", "annotations"} <= names:
        raise DataError(
            f"{file.path}: looks like COCO captions (an object with images and annotations); use source: coco"
        )
    if {"images", "dataset"} <= {key.name for key in keys} and "images" in names:
        raise DataError(f"{file.path}: looks like Karpathy's captions (images with sentences); use source: karpathy")
    wrapped = [key.name for key in lists if key.name in WRAPPERS]
    if len(wrapped) == 1:
        return entries_of_list(file, inside=wrapped[0])
    if len(wrapped) > 1:
        raise DataError(
            f"{file.path}: is one object with several lists ({', '.join(wrapped)}); keep the one that holds the rows"
        )
    if keys and not {key.name for key in keys} & _LISTS_OF_ROWS and (names or all(key.kind in "[{" for key in keys)):
        raise DataError(
            f"{file.path}: is one JSON object with the keys {shown}, not rows; write one object a line or a list of "
            f"objects, alone or under {', '.join(WRAPPERS)}"
            + (" (of pandas: to_json(orient='records', lines=True))" if not names else "")
        )
    return None


def names_of_lists(file: TextFile) -> list[str]:
    """Return the keys of the lists of objects that the object of a file holds."""
    return [key.name for key in _keys_of_object(file) if key.is_list_of_objects]


class _Key(NamedTuple):
    """A key of an object, the first byte of its value, and whether that is a list whose first entry is an object."""

    name: str
    kind: str
    is_list_of_objects: bool


def _keys_of_object(file: TextFile) -> list[_Key]:
    """List the keys of the object that a file is, without reading what stands in it."""
    keys: list[_Key] = []
    name, depth = b"", 0
    is_value = False
    with file.open() as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as text:
        for token in _TOKEN.finditer(text):
            byte = token[0][:1]
            if depth == 1 and byte not in b"]}":
                if is_value:
                    keys.append(_Key(_name(name), byte.decode("latin-1"), False))
                else:
                    name = token[0]
                is_value = not is_value
            elif depth == 2 and byte == b"{" and keys and keys[-1].kind == "[" and _is_first(text, token.start()):
                keys[-1] = keys[-1]._replace(is_list_of_objects=True)
            depth += (byte in b"[{") - (byte in b"]}")
    return keys


def _is_first(text: mmap.mmap, start: int) -> bool:
    """Say whether nothing stands between a bracket that opens and a place."""
    return text[max(0, start - 256) : start].rstrip().endswith(b"[")


def _name(token: bytes) -> str:
    try:
        return str(parse_json(token))
    except ValueError:
        return token.decode("utf-8", "replace")


def _scan(file: TextFile, *, level: int, inside: str | None = None) -> Arrays:
    """Find where the values begin and end that stand inside `level` brackets, in a list; at level 0 anywhere."""
    starts, ends = array("q"), array("q")
    depth, last = 0, b""
    is_inside = inside is None
    in_list = level == 0
    with file.open() as opened:
        if not opened.read(1):  # an empty file cannot be mapped
            return _places(starts, ends, is_whole=False)
        with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as text:
            for token in _TOKEN.finditer(text):
                byte = token[0][:1]
                if byte in b"[{":
                    if depth == 1 and level == 2:
                        is_inside = _name(last) == inside
                    if depth == level and is_inside and in_list:
                        starts.append(token.start())
                    depth += 1
                    if depth == level:
                        in_list = byte == b"["
                elif byte in b"]}":
                    depth -= 1
                    if depth == level and is_inside and in_list:
                        ends.append(token.end())
                    if depth < 0:
                        break
                elif depth == level and is_inside and in_list:
                    if token[0] == UTF8_MARK:
                        continue
                    starts.append(token.start())
                    ends.append(token.end())
                elif depth == 1:
                    last = token[0]
    return _places(starts, ends, is_whole=depth == 0 and len(starts) == len(ends))


def _places(starts: array[int], ends: array[int], *, is_whole: bool) -> Arrays:
    number = min(len(starts), len(ends))
    return {
        "starts": np.array(starts[:number], dtype=np.int64),
        "ends": np.array(ends[:number], dtype=np.int64),
        "is_whole": np.array(is_whole),
    }
