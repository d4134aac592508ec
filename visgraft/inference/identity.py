"""What an answer depends on, as short sums: the model, the data, the prompt, how it is decoded.

In: a model folder; settings. Out: texts that differ wherever an answer may; by them kept answers are known again.

    asked = tag_of(checksum=model_checksum(folder), data=questions.fingerprint, decoding={"max_new_tokens": 32})
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from visgraft.data.fingerprint import stamp
from visgraft.errors import CheckpointError
from visgraft.listing import listing
from visgraft.model.storage.restoring import read_config

_PIECE_BYTES = 2**22
_OF_NO_EFFECT = ("README.md", "training_args.bin")
_WEIGHTS = ("*.safetensors", "*.bin", "config.json")


def model_checksum(folder: Path) -> str:
    """Sum up a model folder: what its files hold, and of parts that lie elsewhere what is named and when it changed.

    Raises:
        CheckpointError: it is no model folder of visgraft, or another process is replacing it.
    """
    digest = blake2b(digest_size=12)
    for path, _ in (found for found in listing(folder, "**/*") if found.is_file):
        if path.name not in _OF_NO_EFFECT and not path.name.startswith("."):
            digest.update(f"{path.relative_to(folder).as_posix()} {_crc32(path)}\n".encode())
    for part, described in sorted(read_config(folder).parts.items()):
        name = described.get("name")
        if name is None or described.get("stored") == "all":
            continue
        elsewhere = Path(name).expanduser()
        files = sorted({found.path for kind in _WEIGHTS for found in listing(elsewhere, kind)})
        stamps = [(Path(file.path).name, file.size, file.time_ns) for file in stamp(files).files]
        digest.update(f"{part} {name} {described.get('revision')} {stamps}\n".encode())
    return digest.hexdigest()


def tag_of(**of: Any) -> str:
    """Sum up everything that answers depend on; the same values give the same tag on every machine."""
    return blake2b(json.dumps(of, sort_keys=True, default=_plain).encode(), digest_size=10).hexdigest()


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else str(value)


def _crc32(path: Path) -> int:
    total = 0
    try:
        with path.open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                total = zlib.crc32(piece, total)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path}: went away while the model was read: another process puts a model in its place; wait until it is "
            "done, and start again"
        ) from error
    return total
