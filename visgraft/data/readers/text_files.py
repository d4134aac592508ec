"""Text out of files that others wrote, by one rule for JSON, CSV and the text members of tars alike.

In:  a file or bytes; the source's option `encoding`, where it is not UTF-8.
Out: a text, or a BadSampleError that says what to set. A byte order mark decides by itself (UTF-8, UTF-16, UTF-32); any
     other encoding is named by the recipe and never guessed. What is not UTF-8 is read from a copy that is, in
     the cache.

    file = TextFile(Path("metadata.csv"), encoding="cp1252")
    with file.open() as opened: text = decode_text(next(text_lines(opened)))
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from visgraft.atomic import whole_file
from visgraft.data.fingerprint import Fingerprint, stamp
from visgraft.disk_cache import cache_folder
from visgraft.errors import BadSampleError, ConfigError, DataError

UTF8_MARK = b"\xef\xbb\xbf"
_UTF8_NAMES = ("utf-8", "utf-8-sig", "ascii")
_MARKS = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_CHUNK_BYTES = 2**20
_BAD_BYTES = "visgraft_bad_bytes"
# The first bytes of files that hold no text, and what to do with them.
_OTHER_KINDS = {
    b"\x1f\x8b": "is compressed with gzip; unpack it first (gunzip)",
    b"BZh": "is compressed with bzip2; unpack it first (bunzip2)",
    b"\xfd7zXZ": "is compressed with xz; unpack it first (unxz)",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd; unpack it first (unzstd)",
    b"PK\x03\x04": "is a zip archive or a spreadsheet; unpack it, or save the sheet as CSV",
    b"PAR1": "is a parquet file; let its name end in .parquet",
    b"ARROW1": "is an Arrow file; read the folder of save_to_disk with `source: hf`, or save it as parquet",
    b"SQLite format 3": "is a database; export the table as CSV",
}


def _mark_bad_bytes(error: UnicodeError) -> tuple[str, int]:
    """Put half a character where bytes mean none: UTF-8 cannot hold it, so that its line is refused when it is read."""
    assert isinstance(error, UnicodeDecodeError)
    return "\ud800", error.end


codecs.register_error(_BAD_BYTES, _mark_bad_bytes)


def check_encoding(name: str | None) -> str | None:
    """Return the encoding's own name, None for UTF-8; raises ConfigError for one that Python does not know."""
    if name is None:
        return None
    try:
        found = codecs.lookup(name)
        "".encode(name)  # refuses those that make no text, such as base64
    except (LookupError, ValueError):
        raise ConfigError(
            f"encoding: got {name!r}, which is no encoding that Python knows; try cp1252 (Western Windows), cp1251 "
            "(Cyrillic), shift_jis, gbk, latin-1 or utf-16"
        ) from None
    return None if found.name in _UTF8_NAMES else found.name


def decode_text(data: bytes, *, encoding: str | None = None, what: str = "text") -> str:
    """Return the text that all bytes of a file are, without its byte order mark.

    encoding: None = UTF-8, or what a byte order mark says. what: the thing as messages call it.
    Raises BadSampleError where they are none, and for NUL bytes.
    """
    return _decode(data, encoding=_encoding_by_mark(data) or encoding, what=what)


def _encoding_by_mark(data: bytes) -> str | None:
    return next((name for mark, name in _MARKS.items() if data.startswith(mark)), None)


def _decode(data: bytes, *, encoding: str | None, what: str) -> str:
    try:
        text = data.decode(encoding or "utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError:
        raise BadSampleError(not_in_encoding(what, encoding=encoding)) from None
    if "\0" in text:
        raise BadSampleError(f"{what} holds NUL bytes; of UTF-16, set the source's encoding (encoding: utf-16-le)")
    return text


def not_in_encoding(what: str, *, encoding: str | None) -> str:
    """Say that bytes are no text in an encoding, and what to set."""
    if encoding is None:
        return f"{what} is not UTF-8; set the source's encoding (encoding: cp1252, say)"
    return f"{what} is not {encoding}; set the source's encoding to what it is"


@dataclass(frozen=True)
class TextFile:
    """Hold a text file and what its bytes mean.

    Attributes:
        path: the file, as messages name it.
        encoding: as the recipe names it; None = UTF-8, or what the byte order mark says.
        settings: what else decides how it is read, for the fingerprint.

    Raises DataError for a file of another kind, ConfigError for an encoding that there is not.
    """

    path: Path
    encoding: str | None = None
    settings: tuple[str, ...] = ()
    readable: Path = field(init=False)

    def __post_init__(self) -> None:
        with self.path.open("rb") as file:
            head = file.read(16)
        for start, advice in _OTHER_KINDS.items():
            if head.startswith(start):
                raise DataError(f"{self.path}: {advice}")
        object.__setattr__(self, "encoding", _encoding_by_mark(head) or check_encoding(self.encoding))
        object.__setattr__(self, "readable", self.path if self.encoding is None else self._utf8_copy())

    def open(self) -> BinaryIO:
        """Open it as UTF-8."""
        return self.readable.open("rb")

    @property
    def name(self) -> str:
        """The file's own name."""
        return self.path.name

    @property
    def fingerprint(self) -> Fingerprint:
        """Return path, size and time of the file, and how it is read."""
        marks = [*self.settings, *([] if self.encoding is None else [f"encoding {self.encoding}"])]
        return stamp([self.path], marks=marks)

    def decode(self, data: bytes, *, what: str) -> str:
        """Return the text of a stretch of it; raises BadSampleError."""
        try:
            return _decode(data, encoding=None, what=what)
        except BadSampleError:
            if self.encoding is None or b"\0" in data:
                raise
            raise BadSampleError(not_in_encoding(what, encoding=self.encoding)) from None

    def _utf8_copy(self) -> Path:
        """Write it as UTF-8 into the cache, once; what is no text stays what UTF-8 refuses."""
        assert self.encoding is not None
        name = sha256(f"{self.encoding} {stamp([self.path])}".encode()).hexdigest()
        kept = cache_folder() / "texts" / f"{name}{self.path.suffix}"
        if not kept.is_file():
            decoder = codecs.getincrementaldecoder(self.encoding)(_BAD_BYTES)
            with whole_file(kept) as building, building.open("wb") as copy, self.path.open("rb") as file:
                while chunk := file.read(_CHUNK_BYTES):
                    copy.write(decoder.decode(chunk).encode("utf-8", "surrogatepass"))
                copy.write(decoder.decode(b"", final=True).encode("utf-8", "surrogatepass"))
        return kept


def text_lines(file: BinaryIO) -> Iterator[bytes]:
    """Go through the lines of a file with their ends: \\n, \\r\\n or \\r, as Python's universal newlines."""
    for line in file:
        if b"\r" in line:
            yield from line.splitlines(keepends=True)
        else:
            yield line
