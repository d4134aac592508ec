"""The most memory that reading 100,000 rows takes: open, gather by image, go through an epoch in shuffled order.

    python bench/memory.py                           # writes bench/results/memory.json
    python bench/memory.py --rows 2000

Rows are M3IT's, images inlined in base64 (about 6 kB each), five texts an image, as JSON Lines and as parquet; and
LLaVA's, one JSON list. Each is read in a process of its own, whose largest resident set is what counts.
"""

from __future__ import annotations

import argparse
import base64
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from harness import console, machine, write
from PIL import Image

from visgraft.config import SourceSettings
from visgraft.data.readers.tables import write_parquet
from visgraft.data.sources import open_sources

TEXTS_PER_IMAGE = 5
LIMIT_BYTES = int(1.5 * 1024**3)


def m3it_rows(number: int) -> Iterator[dict[str, Any]]:
    """Make rows of which five in a hundred share an image, not side by side."""
    rng = np.random.default_rng(0)
    num_images = max(1, number // TEXTS_PER_IMAGE)
    base = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for index in range(number):
        image = base.copy()
        image.putpixel((0, 0), tuple((index % num_images).to_bytes(3)))
        buffer = BytesIO()
        image.save(buffer, "PNG", compress_level=0)
        text = base64.b64encode(buffer.getvalue()[:6000]).decode()
        yield {
            "instruction": "Answer.",
            "inputs": f"What is {index}?",
            "outputs": f"{index}",
            "image_base64_str": [text],
        }


def write_files(folder: Path, *, number: int) -> dict[str, dict[str, Any]]:
    """Write the rows in each format and return the entries that read them."""
    with (folder / "train.jsonl").open("w") as file:
        for row in m3it_rows(number):
            file.write(json.dumps(row) + "\n")
    (folder / "parquet").mkdir()
    write_parquet(folder / "parquet" / "train.parquet", m3it_rows(number))
    with (folder / "llava.json").open("w") as file:
        for index in range(number):
            said = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat. " * 20}]
            row = {"id": str(index), "image": f"{index // TEXTS_PER_IMAGE}.jpg", "conversations": said * 3}
            row["conversations"] = [*said, *[{**turn, "value": "And this?"} for turn in said] * 2]
            file.write(("[" if index == 0 else ",\n") + json.dumps(row))
        file.write("]")
    return {
        "m3it jsonl": {"source": "parquet", "path": str(folder / "train.jsonl")},
        "m3it parquet": {"source": "parquet", "path": str(folder / "parquet")},
        "llava json": {"source": "llava", "path": str(folder / "llava.json")},
    }


def most_resident() -> int:
    """Return the largest resident set of this process so far (getrusage would include that of its parent)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def read_all(entry: dict[str, Any]) -> dict[str, Any]:
    """Read a source as training does and say what it took."""
    start = monotonic()
    sources = open_sources([SourceSettings(**entry)])
    opened_s = monotonic() - start
    before = most_resident()
    texts = sum(len(sources[index].dialogs) for index in sources.order(seed=0, epoch=0).tolist())
    return {
        "samples": len(sources),
        "texts": texts,
        "opened_s": round(opened_s, 1),
        "read_s": round(monotonic() - start - opened_s, 1),
        "opened_bytes": before,
        "most_bytes": most_resident(),
    }


def main() -> None:
    """Measure each format and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "memory.json")
    parser.add_argument("--read", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        print(json.dumps(read_all(json.loads(arguments.read))))
        return
    measured = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, entry in write_files(Path(scratch), number=arguments.rows).items():
            command = [sys.executable, __file__, "--read", json.dumps(entry)]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            measured[name] = json.loads(out.splitlines()[-1])
            console.print(f"{name}: {measured[name]['most_bytes'] / 1024**3:.2f} GiB")
    assert all(result["most_bytes"] < LIMIT_BYTES for result in measured.values()), "more than 1.5 GiB"
    result = {"what": "largest resident set of a process", "rows": arguments.rows, "formats": measured}
    write({**result, "machine": machine()}, path=arguments.output)


if __name__ == "__main__":
    main()
