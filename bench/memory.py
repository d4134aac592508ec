"""The most memory that reading 100,000 rows takes: open, gather by image, go through an epoch in shuffled order.

    python bench/memory.py                           # writes bench/results/memory.json
    python bench/memory.py --rows 2000
    python bench/memory.py --steps 10000             # writes bench/results/memory_of_steps.json

Rows are M3IT's, images inlined in base64 (about 6 kB each), five texts an image, as JSON Lines and as parquet; and
LLaVA's, one JSON list. Each is read in a process of its own, whose largest resident set is what counts.

With `--steps`: the resident set of a process that trains a tiny pair in bf16 on the CPU for so many steps, each of
other shapes, with the caches of kernels as they come (1,024 kernels each) and as visgraft bounds them.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from time import monotonic, process_time
from typing import Any

import numpy as np
from harness import console, machine, positive, write
from PIL import Image

from visgraft.config import SourceSettings
from visgraft.data.readers.tables import write_parquet
from visgraft.data.sources import open_sources
from visgraft.model.precision import KERNEL_CACHES

ROOT = Path(__file__).resolve().parent.parent
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


def train_many(num_steps: int) -> dict[str, Any]:
    """Train a tiny pair and say how much is resident at the beginning, at the end, and ten times on the way."""
    sys.path.insert(0, str(ROOT))  # for the tiny pair and data of the tests
    from tests.training.tiny import tiny_recipe
    from visgraft.config import load_recipe
    from visgraft.training.loop import train_step
    from visgraft.training.progress import make_progress
    from visgraft.training.setup import open_session
    from visgraft.training.steps import load_steps

    sizes = {"num_images": 400, "text_tokens_per_step": 600, "epochs": 1e6, "micro_batch_positions": 400}
    resident = []
    with tempfile.TemporaryDirectory() as scratch, make_progress(show=False) as progress:
        recipe = load_recipe(tiny_recipe(Path(scratch), precision="bf16", num_workers=1, **sizes))
        session = open_session(recipe, folder=Path(scratch) / "run", progress=progress)
        steps = load_steps(session.planner, session.state.position, epochs=1e6, settings=session.loader)
        start = process_time()  # as others may use the machine
        for number in range(num_steps):
            train_step(session, steps)
            if number % max(1, num_steps // 10) == 0 or number == num_steps - 1:
                resident.append({"step": number + 1, "resident_bytes": resident_now()})
        seconds = process_time() - start
        del steps
    return {"resident": resident, "steps_per_cpu_s": round(num_steps / seconds, 2)}


def resident_now() -> int:
    """Return the resident set of this process."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))


def measure_steps(num_steps: int, *, output: Path) -> None:
    """Train with unbounded and with bounded caches of kernels, each in a process of its own."""
    measured = {}
    for name, capacity in {"as they come": dict.fromkeys(KERNEL_CACHES, "1024"), "bounded": {}}.items():
        command = [sys.executable, __file__, "--train", str(num_steps)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **capacity}
        out = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
        measured[name] = json.loads(out.splitlines()[-1])
        first, *_, last = (at["resident_bytes"] / 1024**2 for at in measured[name]["resident"])
        console.print(f"{name}: {first:.0f} MiB behind the first step, {last:.0f} MiB behind the last")
    result = {"what": "resident set of a process that trains in bf16 on a CPU", "steps": num_steps, "caches": measured}
    write({**result, "machine": machine()}, path=output)


def main() -> None:
    """Measure each format, or many steps, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--steps", type=positive, help="measure so many training steps instead of reading")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--read", help=argparse.SUPPRESS)
    parser.add_argument("--train", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    results = Path(__file__).parent / "results"
    if arguments.train:
        print(json.dumps(train_many(arguments.train)))
        return
    if arguments.steps:
        measure_steps(arguments.steps, output=arguments.output or results / "memory_of_steps.json")
        return
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
    write({**result, "machine": machine()}, path=arguments.output or results / "memory.json")


if __name__ == "__main__":
    main()
