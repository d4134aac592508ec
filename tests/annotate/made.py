"""A tiny model whose answers differ, images, tars, and what a folder of answers holds; all made on the spot.

In: an empty folder. Out: files in it. Usage: `request = request_of(folder, output="labels")`
"""

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.tiny import randomise
from tests.training.tiny import save_data, save_parts
from visgraft import Processor, VisionLanguageModel
from visgraft.annotate import Request, Standing, annotate
from visgraft.annotate.folder import Output

PROMPTS = ("What is it?", "")


def save_model(folder: Path, *, seed: int = 0) -> Path:
    """Save a whole tiny model, once."""
    target = folder / f"model-{seed}"
    if not target.exists():
        parts = save_parts(folder)
        model = VisionLanguageModel.from_parts(*parts)
        for number, part in enumerate((model.vision, model.projection, model.language)):
            randomise(part, seed=10 * seed + number)
        model.save_pretrained(target)
        Processor.from_parts(*parts).save_pretrained(target)
    return target


def save_photos(folder: Path, *, number: int, bad: int = 1) -> Path:
    """Save images alone, the last ones broken."""
    photos = Path(save_data(folder, num_images=number, bad=bad))
    (photos / "metadata.jsonl").unlink()
    return photos


def write_tar(path: Path, samples: Mapping[str, Mapping[str, bytes]]) -> Path:
    """Write a tar of samples: {"000": {"png": ..., "txt": ...}}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, members in samples.items():
            for suffix, data in members.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def save_tars(folder: Path, photos: Path, *, number: int, per_tar: int) -> str:
    """Save images in tars, without texts; return a pattern."""
    images = [(photos / f"{index}.png").read_bytes() for index in range(number)]
    for shard, first in enumerate(range(0, number, per_tar)):
        members = {f"{index:03d}": {"png": images[index]} for index in range(first, min(first + per_tar, number))}
        write_tar(folder / f"part-{shard:03d}.tar", members)
    return str(folder / "*.tar")


def request_of(model: Path, data: object, output: Path, **settings: Any) -> Request:
    """Make a request in float32 on the CPU, of short answers and small units."""
    usual: dict[str, Any] = {"prompts": PROMPTS, "rows_per_unit": 3, "max_new_tokens": 4, "batch_size": 4}
    usual |= {"device": "cpu", "precision": "fp32"}
    return Request(model=str(model), data=str(data), output=str(output), **{**usual, **settings})


def label(request: Request, **changes: Any) -> Standing:
    """Label in this process, quietly."""
    return annotate(replace(request, **changes), say=lambda text: None, is_shown=False)


def rows_of(output: Path) -> list[dict[str, Any]]:
    """Read all rows of a folder, in order."""
    parts = Output(output, 1).parts()
    return [row for part in parts for row in pq.read_table(part).to_pylist()]


def same_rows(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> bool:
    """Say whether rows are equal, up to rounding of log-probabilities."""
    if [_without_score(row) for row in first] != [_without_score(row) for row in second]:
        return False
    pairs = zip(first, second, strict=True)
    return all(abs((a["log_probability"] or 0.0) - (b["log_probability"] or 0.0)) < 1e-3 for a, b in pairs)


def _without_score(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "log_probability"}


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write JSON Lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
