"""Write a recipe's data once as parquet shards: grouped, each image once, dialogs as lists.

In:  sources, a folder. Out: DIR/data/train-00000.parquet, ... which `datasets` and the Hub's viewer open and which
     `{source: parquet, path: DIR}` reads; DIR/quarantine.jsonl with what was bad.

    prepare(sources, Path("prepared"), split="train", fingerprint="...")

A shard is written under another name first, so that a shard that is there is whole; a second call goes on with the
first that is missing. Images are the files' own bytes; what is no file (a frame, a PIL image) becomes a PNG.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from visgraft.atomic import append_record, read_records, write_json
from visgraft.data.grouping import Grouped, sample_key
from visgraft.data.images.opening import image_data, open_image
from visgraft.data.messages import write_prompts
from visgraft.data.quarantine import BadSample, Quarantine
from visgraft.data.readers.tables import write_parquet
from visgraft.data.sample import Sample, Turn
from visgraft.data.sources import OpenSource, Sources
from visgraft.errors import BadSampleError, ConfigError
from visgraft.listing import listing
from visgraft.parsing import parse_json

SAMPLES_PER_SHARD = 2048
_STATE = "prepared.json"

_TEXT = {"dtype": "string", "_type": "Value"}
_TURN = {"prompt": _TEXT, "answer": _TEXT, "references": {"feature": _TEXT, "_type": "List"}, "instruction": _TEXT}
_FEATURES = {
    "images": {"feature": {"_type": "Image"}, "_type": "List"},
    "dialogs": {"feature": {"feature": _TURN, "_type": "List"}, "_type": "List"},
    "source": _TEXT,
    "id": _TEXT,
    "key": _TEXT,
}
_TURN_TYPE = pa.struct(
    [
        ("prompt", pa.string()),
        ("answer", pa.string()),
        ("references", pa.list_(pa.string())),
        ("instruction", pa.string()),
    ]
)
SCHEMA = pa.schema(
    [
        ("images", pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))),
        ("dialogs", pa.list_(pa.list_(_TURN_TYPE))),
        ("source", pa.string()),
        ("id", pa.string()),
        ("key", pa.string()),
    ],
    metadata={"huggingface": json.dumps({"info": {"features": _FEATURES}})},  # what makes the viewer show images
)


def prepare(
    sources: Sources,
    folder: Path,
    *,
    split: str,
    fingerprint: str,
    progress: Callable[[int], None] | None = None,
) -> list[Path]:
    """Write what is missing of a split and return all its shards.

    fingerprint: what the data depends on; a folder that was begun with another one is refused. progress: gets
    the number of samples as they are done, those of finished shards too.
    Raises ConfigError for a folder that holds something else, DataError for too many bad samples.
    """
    _begin(folder, split=split, fingerprint=fingerprint)
    deduplicated = _gather(sources)
    shards = []
    quarantine = _quarantine(folder, deduplicated)
    for number, first in enumerate(range(0, len(deduplicated), SAMPLES_PER_SHARD)):
        shard = folder / "data" / f"{split}-{number:05d}.parquet"
        indices = range(first, min(first + SAMPLES_PER_SHARD, len(deduplicated)))
        if not shard.is_file():
            write_parquet(shard, _rows(deduplicated, indices, quarantine), schema=SCHEMA)
        shards.append(shard)
        if progress is not None:
            progress(len(indices))
    return shards


def _begin(folder: Path, *, split: str, fingerprint: str) -> None:
    state_file = folder / _STATE
    hidden = [*listing(folder, ".*.new"), *listing(folder / "data", ".*.new")]
    unfinished = [found.path for found in hidden]  # of a call that was killed
    state: dict[str, str] = {}
    if state_file.is_file():
        try:
            state = parse_json(state_file.read_bytes())
        except ValueError as error:
            raise ConfigError(f"{state_file}: is not JSON ({error}); name a new folder") from error
    elif any(found.path not in unfinished for found in listing(folder)):
        raise ConfigError(f"{folder}: is not empty and was not begun by `data prepare`; name a new folder")
    if state.get(split, fingerprint) != fingerprint:
        raise ConfigError(
            f"{folder}: was begun with other data for {split} (another recipe, or files that changed since); "
            "name a new folder, or remove this one"
        )
    for path in unfinished:
        path.unlink(missing_ok=True)
    write_json(state_file, {**state, split: fingerprint})


def _gather(sources: Sources) -> Sources:
    """Bring together, source by source, what has images of equal content under different names."""
    opened = []
    for entry in sources.opened:
        samples = Grouped(Sources([entry], settings=sources.settings), by_content=True)
        opened.append(OpenSource(name=entry.name, samples=samples, length=len(samples)))
    return Sources(opened, settings=sources.settings, part=sources.part)


def _quarantine(folder: Path, sources: Sources) -> Quarantine:
    path = folder / "quarantine.jsonl"
    records = [BadSample(**record) for _, record in read_records(path)]
    known = [bad for bad in records if bad.part == sources.part]
    share = sources.settings.max_bad_fraction
    return Quarantine(num_samples=len(sources), max_bad_fraction=share, known=known, write=partial(append_record, path))


def _rows(sources: Sources, indices: range, quarantine: Quarantine) -> Iterator[dict[str, Any]]:
    for index in indices:
        try:
            yield _row(sources[index], max_pixels=sources.settings.max_pixels)
        except BadSampleError as error:
            quarantine.add(sources.bad_sample(index, str(error)))


def _row(sample: Sample, *, max_pixels: int) -> dict[str, Any]:
    if not sample.dialogs:
        raise BadSampleError("no dialog")
    images: list[bytes] = []
    for ref in sample.images:
        opened = open_image(ref, max_pixels=max_pixels)  # what cannot be opened does not go into a shard
        data = image_data(ref)
        data = _as_png(opened) if isinstance(data, Image.Image) else data
        images.append(data if isinstance(data, bytes) else data.read_bytes())
    key = sample_key(Sample(images, sample.dialogs), by_content=True)
    dialogs = [_turns(dialog, num_images=len(images)) for dialog in sample.dialogs]
    return {
        "images": [{"bytes": data, "path": None} for data in images],
        "dialogs": dialogs,
        "source": sample.source,
        "id": sample.id,
        "key": None if key is None else key.hex(),
    }


def _turns(dialog: Sequence[Turn], *, num_images: int) -> list[dict[str, Any]]:
    prompts = write_prompts([turn.prompt for turn in dialog], num_images=num_images)
    return [{**asdict(turn), "prompt": prompt} for turn, prompt in zip(dialog, prompts, strict=True)]


def _as_png(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
