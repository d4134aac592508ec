"""Fetch images of the web, where a recipe allows it.

In:  an http(s) address. Out: a StoredImage that downloads it when it is opened, once, into the cache.

    image = open_image(RemoteImage("https://example.org/cat.jpg"))
"""

from __future__ import annotations

import urllib.error
import urllib.request
from dataclasses import dataclass
from hashlib import sha256
from http.client import HTTPException

from visgraft.atomic import write_whole
from visgraft.disk_cache import cache_folder
from visgraft.errors import BadSampleError

_TIMEOUT_S = 20
_MAX_BYTES = 100_000_000
_AGENT = "Mozilla/5.0 (compatible; visgraft)"  # some servers give a bare Python client nothing


@dataclass(frozen=True, slots=True)
class RemoteImage:
    """An image of the web; see StoredImage."""

    url: str

    def read(self) -> bytes:
        """Return the encoded file; raises BadSampleError where it cannot be had."""
        kept = cache_folder() / "images" / sha256(self.url.encode()).hexdigest()
        if kept.is_file():
            return kept.read_bytes()
        data = self._download()
        write_whole(kept, data)
        return data

    def _download(self) -> bytes:
        request = urllib.request.Request(self.url, headers={"User-Agent": _AGENT})
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
                data: bytes = answer.read(_MAX_BYTES + 1)
        except (urllib.error.URLError, HTTPException, OSError, ValueError):
            raise BadSampleError("image could not be downloaded") from None
        if len(data) > _MAX_BYTES:
            raise BadSampleError("image file is too large")
        return data
