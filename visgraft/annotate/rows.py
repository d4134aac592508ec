"""The rows that are written: what is asked about a sample, what came of it, and where its images are.

In: samples, answers. Out: rows of one schema, which `{source: parquet, path: OUT}` trains on and `datasets` opens.

    questions = questions_of(sample, prompts=("What is it?",))
    row = row_of(subject, questions[0], answer=answer)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from visgraft.data.grouping import sample_key
from visgraft.data.images.opening import FilePart, image_data, image_file_state, is_data_url, is_web_address
from visgraft.data.images.remote import RemoteImage
from visgraft.data.messages import asked, write_prompts
from visgraft.data.sample import ImageRef, Sample, Turn
from visgraft.errors import BadSampleError
from visgraft.inference import Answer

COLUMNS = {
    "id": "of the row, as its file calls it, else its number",
    "source": "which kind of data it is from, as a recipe names its sources",
    "key": "sum of what the images hold, the same for copies; null where they cannot be read",
    "images": "where each image lies (path; of one inside a tar its place in bytes), or the image file itself (bytes)",
    "prompt": "what was asked last; empty: a caption",
    "answer": "what the model said; null where there is an error",
    "stopped": "whether the answer came to an end of its own and was not cut at max_new_tokens",
    "tokens": "of the answer, its end included",
    "log_probability": "of the whole answer, its end included, in nats, as the model gives it",
    "error": "why there is no answer; null where there is one",
    "dialogs": "where turns came before the prompt: all of them, the answer last; else null",
    "shard": "the input shard",
    "row": "number of the row in that shard",
}
_TURN = pa.struct([("prompt", pa.string()), ("answer", pa.string())])
_KEPT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_PLACE = pa.struct([("bytes", pa.binary()), ("path", pa.string()), ("offset", pa.int64()), ("size_bytes", pa.int64())])
_TYPES: dict[str, pa.DataType] = {
    **dict.fromkeys(("id", "source", "key", "prompt", "answer", "error", "shard"), pa.string()),
    "stopped": pa.bool_(),
    "tokens": pa.int32(),
    "log_probability": pa.float64(),
    "dialogs": pa.list_(pa.list_(_TURN)),
    "row": pa.int64(),
}


def schema_of(*, keep_images: bool) -> pa.Schema:
    """Return the columns; where images are kept, with what makes the Hub's viewer show them."""
    types = {**_TYPES, "images": pa.list_(_KEPT if keep_images else _PLACE)}
    metadata = None
    if keep_images:
        text = {"dtype": "string", "_type": "Value"}
        turns = {"feature": {"feature": {"prompt": text, "answer": text}, "_type": "List"}, "_type": "List"}
        plain = {"stopped": "bool", "tokens": "int32", "log_probability": "float64", "row": "int64"}
        features: dict[str, Any] = {
            name: {"dtype": plain[name], "_type": "Value"} if name in plain else text for name in COLUMNS
        }
        features |= {"images": {"feature": {"_type": "Image"}, "_type": "List"}, "dialogs": turns}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema([(name, types[name]) for name in COLUMNS], metadata=metadata)


@dataclass(frozen=True)
class Subject:
    """What is asked about: a sample, or a row that cannot be read.

    Attributes:
        place: number of the row in its shard.
        facts: what every row about it says: id, source, shard, row, key, images.
        sample: its images, fetched, and what is asked; None where it is bad.
        questions: what is asked, in the order of the sample's dialogs.
        error: why it is bad.
    """

    place: int
    facts: Mapping[str, Any]
    sample: Sample | None
    questions: Sequence[Sequence[Turn]]
    error: str | None = None


def questions_of(sample: Sample, *, prompts: Sequence[str] | None) -> list[list[Turn]]:
    """List what is asked: each prompt, or each turn of the dialogs with those before it; the same one is asked once.

    Raises:
        BadSampleError: a prompt names more images than there are, or nothing is asked.
    """
    if prompts is not None:
        if not sample.images:
            raise BadSampleError("row has no image")
        return [[asked(prompt, num_images=len(sample.images))] for prompt in prompts]
    found: dict[Any, list[Turn]] = {}
    for dialog in sample.dialogs:
        for number, turn in enumerate(dialog):
            before = [replace(earlier, references=()) for earlier in dialog[:number]]
            key = (tuple((earlier.request, earlier.answer) for earlier in before), turn.request)
            found.setdefault(key, [*before, replace(turn, answer="", references=())])
    if not found:
        raise BadSampleError("row asks nothing")
    return list(found.values())


def subject_of(
    sample: Sample, *, place: int, source: str, shard: str, prompts: Sequence[str] | None, keep_images: bool
) -> Subject:
    """Fetch a sample's images, once, and make up what is asked about it; what is wrong with it is its error."""
    facts: dict[str, Any] = {"source": source, "shard": shard, "row": place, "key": None, "images": []}
    facts["id"] = str(place) if sample.id is None else sample.id
    fetched: list[bytes | Image.Image] = []
    error = None
    try:
        questions = questions_of(sample, prompts=prompts)
    except BadSampleError as bad:
        questions, error = _unasked(prompts), str(bad)
    for ref in sample.images:
        try:
            fetched.append(fetch(ref))
        except BadSampleError as bad:
            error = error or str(bad)
            facts["images"].append(_reference(ref, None, keep_images=False))
        else:
            facts["images"].append(_reference(ref, fetched[-1], keep_images=keep_images))
    if error is not None:
        return Subject(place, facts, None, questions, error)
    asked_of = Sample(images=fetched, dialogs=questions)
    if fetched:
        key = sample_key(asked_of, by_content=True)
        facts["key"] = None if key is None else key.hex()
    return Subject(place, facts, asked_of, questions)


def bad_subject(reason: str, *, place: int, source: str, shard: str, prompts: Sequence[str] | None) -> Subject:
    """Stand for a row that cannot be read."""
    facts = {"id": str(place), "source": source, "shard": shard, "row": place, "key": None, "images": []}
    return Subject(place, facts, None, _unasked(prompts), reason)


def _unasked(prompts: Sequence[str] | None) -> list[list[Turn]]:
    return [[Turn(prompt, "")] for prompt in prompts or ("",)]


def row_of(subject: Subject, question: Sequence[Turn], *, answer: Answer | None) -> dict[str, Any]:
    """Make the row of one answer; None: of a subject that is bad."""
    *before, last = question
    requests = [turn.request for turn in question]
    written = write_prompts(requests, num_images=len(subject.facts["images"]))
    error = subject.error if answer is None else None if answer.error is None else str(answer.error)
    row: dict[str, Any] = {**subject.facts, "prompt": written[-1] if not before else last.request, "error": error}
    row |= dict.fromkeys(("answer", "stopped", "tokens", "log_probability", "dialogs"))
    if answer is None or error is not None:
        return row
    said = [*(turn.answer for turn in before), answer.text]
    turns = [{"prompt": prompt, "answer": text} for prompt, text in zip(written, said, strict=True)]
    scores = answer.scores
    return {
        **row,
        "answer": answer.text,
        "stopped": answer.has_stopped,
        "tokens": len(answer.token_ids),
        "log_probability": None if scores is None else sum(score.log_probability for score in scores),
        "dialogs": [turns] if before else None,
    }


# --- Images


def fetch(ref: ImageRef) -> bytes | Image.Image:
    """Return the bytes of an image file, or the image itself where it is none (a frame of a video).

    Raises:
        BadSampleError: it is not there, or is empty.
    """
    data = image_data(ref)
    if isinstance(data, Path):
        image_file_state(data)
        try:
            data = data.read_bytes()
        except OSError:
            raise BadSampleError("image file may not be read") from None
    if isinstance(data, bytes) and not data:
        raise BadSampleError("image file is empty")
    return data


def _reference(ref: ImageRef, fetched: bytes | Image.Image | None, *, keep_images: bool) -> dict[str, Any]:
    """Say where an image lies; one that lies in no file of its own, and is none of a tar, is kept itself."""
    place: dict[str, Any] = {"bytes": None, "path": None}
    if isinstance(ref, Mapping) and isinstance(ref.get("path"), str | Path) and ref.get("bytes") is None:
        ref = ref["path"]
    if isinstance(ref, FilePart):
        place |= {"path": str(ref.path.absolute()), "offset": ref.offset, "size_bytes": ref.size_bytes}
    elif isinstance(ref, RemoteImage):
        place["path"] = ref.url
    elif isinstance(ref, Path) or (isinstance(ref, str) and not is_data_url(ref) and len(ref) < 4096):
        place["path"] = str(ref) if is_web_address(ref) else str(Path(ref).absolute())
    if fetched is None or (place["path"] is not None and not keep_images):
        return place
    return {"bytes": fetched if isinstance(fetched, bytes) else _as_png(fetched), "path": None}


def _as_png(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
