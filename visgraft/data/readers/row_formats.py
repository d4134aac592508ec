"""Turn a row of any usual format into images and dialogs: the one place that decides what a row means.

In:  a row as a dict, from whatever file it came.
Out: Content: what the row says of its images (not yet looked for), its dialogs, its name.

    content = content_of_row({"image": "a.jpg", "question": "What is it?", "answer": "A cat."})

The formats, known by their keys (the first that fits):
    dialogs                             [[{prompt, answer}, ...], ...]                     visgraft's own
    messages                            [{role, content: text or typed parts}, ...]        TRL, chat
    conversations                       [{from: human | gpt, value}, ...]                  LLaVA
    texts                               [{user, assistant}, ...]                           The Cauldron, FineVision
    prompt, completion                  texts or messages                                  TRL
    qas                                 [{question, answer}, ...]                          Visual Genome
    instruction, outputs                with inputs and image_base64_str                   M3IT
    question | prompt, answer | answers an answer or several                               VQA
    text | caption | captions           one or several, and an image                       captions

For every format: a null or NaN is a column that is not there; names are compared without case, `-` and spaces; the
image stands in the first column of IMAGE_KEYS that holds one; a list may be written as a text in JSON. A row
without an image, while another column looks like one, is bad: it would be learned from blindly.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import isnan
from typing import Any, NamedTuple

from visgraft.data.images.opening import looks_like_base64
from visgraft.data.messages import pair_turns, read_prompts, said_in_messages
from visgraft.data.readers.rows import Row
from visgraft.data.sample import Turn, turn_from_row
from visgraft.errors import BadSampleError
from visgraft.parsing import parse_json

# Where people put images, the surest first: what names an image by itself, then files of any kind, then addresses.
IMAGE_KEYS = (
    *("images", "image", "image_base64_str", "file_names", "file_name", "video", "videos", "image_paths", "image_path"),
    *(
        "image_files",
        "image_file",
        "image_filename",
        "image_names",
        "image_name",
        "imgs",
        "img",
        "img_paths",
        "img_path",
    ),
    *("img_file", "img_name", "pictures", "picture", "photos", "photo", "image_bytes", "img_bytes", "image_base64"),
    *("img_base64", "image_data", "jpg", "jpeg", "png", "webp", "filenames", "filename", "file_paths", "file_path"),
    *("filepaths", "filepath", "file", "frames", "base64", "path", "image_urls", "image_url", "img_url", "urls", "url"),
)
_ID_KEYS = ("id", "key", "__key__", "image_id", "question_id")
_NO_IMAGES = ("id", "key", "__key__", "question_id")  # a name may end as a file does
_CAPTIONS = ("text", "caption", "captions", "txt")
_LISTS = ("captions", "answers", "references")  # may be written in JSON
_IMAGE_NAME = re.compile(r"\.(jpe?g|png|webp|gif|bmp|tiff?|avif|jp2|ppm)([?#].*)?$", re.IGNORECASE)
_IMAGE_STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")
_LONGEST_NAME = 1024
_SHOWN_COLUMNS = 8


class _MissingColumnError(BadSampleError):
    """The row lacks something; its columns belong into the message."""


@dataclass(frozen=True, slots=True)
class Content:
    """What a row holds: images as the row names them, dialogs, and its own name if it has one."""

    images: Sequence[Any]
    dialogs: Sequence[Sequence[Turn]]
    id: str | None = None


def content_of_row(
    row: Row,
    *,
    row_format: str | None = None,
    prompt: str = "",
    columns: Mapping[str, str] | None = None,
    texts: bool = True,
) -> Content:
    """Read a row in the first format that fits, or in the one that is named.

    row_format: a name of ROW_FORMATS. prompt: the text in front of a caption. columns: {key of the format: column of
    the row}; what is named so comes before all else. texts: False = its images alone are wanted, whatever its texts.
    Raises BadSampleError where no format fits, a part of the row is of another kind, or it would be learned from
    without the image that it means.
    """
    given = row
    row = _with_columns(row, columns) if columns else _named(row)
    images = _images(row)
    unused = [] if images else image_like_columns(row)
    try:
        dialogs = _read_format(row, images, row_format=row_format, prompt=prompt, columns=columns or {})
    except BadSampleError as error:
        if texts and unused:
            raise _unused_column(given, unused[0]) from None
        if texts:
            where = f" (columns: {_shown(given)})" if isinstance(error, _MissingColumnError) else ""
            raise BadSampleError(f"{error}{where}") from None
        dialogs = []
    if unused and not images:
        raise _unused_column(given, unused[0])
    if texts and not dialogs:
        raise BadSampleError("row has no texts")
    if not texts and not images:
        raise BadSampleError(f"row has no image (columns: {_shown(given)})")
    name = next((row[key] for key in _ID_KEYS if isinstance(row.get(key), (str, int)) and row[key] is not True), None)
    return Content(images, dialogs if texts else [], None if name is None or name is False else str(name))


def images_of_row(row: Row) -> list[Any]:
    """Return what a row says of its images, without those that stand in its messages."""
    return _images(_named(row))


def has_caption(row: Row) -> bool:
    """Say whether a row has a column of captions."""
    return any(key in _CAPTIONS for key in _named(row))


def image_like_columns(row: Row) -> list[str]:
    """Return the columns of a row that look like images and that no format knows."""
    return [
        column
        for column, value in row.items()
        if _usual_name(column) not in IMAGE_KEYS and _usual_name(column) not in _NO_IMAGES and _looks_like_image(value)
    ]


# --- Names and nulls


def _named(row: Row) -> Row:
    """Return a row under the usual form of its names, without what is null; a name in its usual form comes first."""
    found: Row = {}
    for column, value in row.items():
        if _is_null(value):
            continue
        name = _usual_name(column)
        if name == column or name not in found:
            found[name] = value
    return found


def _is_null(value: Any) -> bool:
    return value is None or (isinstance(value, float) and isnan(value))


@lru_cache(maxsize=4096)
def _usual_name(column: str) -> str:
    return re.sub(r"[\s-]+", "_", column.strip().lower())


def _with_columns(row: Row, columns: Mapping[str, str]) -> Row:
    """Put columns in the place of the keys that they are; others that could be the same do not count."""
    missing = next((column for column in columns.values() if column not in row), None)
    if missing is not None:
        raise BadSampleError(f"column {missing} is missing (columns: {_shown(row)})")
    left = {key: value for key, value in row.items() if key not in columns.values()}
    for kind in (IMAGE_KEYS, _CAPTIONS):
        if any(key in kind for key in columns):
            left = {key: value for key, value in left.items() if _usual_name(key) not in kind}
    return _named({**left, **{key: row[column] for key, column in columns.items()}})


def _shown(row: Row) -> str:
    """Name the columns of a row, of very many the first."""
    names = [(column if column.isprintable() else ascii(column))[:40] for column in row]
    shown = [f"{name} (null)" if _is_null(value) else name for name, value in zip(names, row.values(), strict=True)]
    return ", ".join([*shown[:_SHOWN_COLUMNS], *(["..."] if len(shown) > _SHOWN_COLUMNS else [])]) or "none"


# --- Images


def _images(row: Row) -> list[Any]:
    weak: list[Any] = []  # an image column without an image in it, which is bad where there is no better one
    for key in IMAGE_KEYS:
        if key in row:
            values = _as_images(row[key])
            if any(value not in (None, "") for value in values):
                return values
            weak = weak or values
    return weak


def _as_images(value: Any) -> list[Any]:
    if isinstance(value, str) and value[:1] == "[" and value.rstrip()[-1:] == "]":
        value = _json_list(value) or value
    return list(value) if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else [value]


def _looks_like_image(value: Any) -> bool:
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        first = value[0] if value else None
        return isinstance(first, (str, bytes, Mapping)) and _looks_like_image(first)
    if isinstance(value, str):
        if value.startswith("data:image/") or looks_like_base64(value):
            return True
        return len(value) <= _LONGEST_NAME and "\n" not in value and _IMAGE_NAME.search(value.strip()) is not None
    if isinstance(value, bytes):
        return value.startswith(_IMAGE_STARTS)
    if isinstance(value, Mapping):
        return isinstance(value.get("bytes"), bytes) or (
            isinstance(value.get("path"), str) and _looks_like_image(value["path"])
        )
    return False


def _unused_column(row: Row, column: str) -> BadSampleError:
    shown = column if column.isprintable() else ascii(column)
    return BadSampleError(
        f"row has no image, but its column {shown[:40]} looks like one; set columns: {{image: {shown[:40]}}} "
        f"(columns: {_shown(row)})"
    )


# --- Formats


def _read_format(
    row: Row, images: list[Any], *, row_format: str | None, prompt: str, columns: Mapping[str, str]
) -> list[list[Turn]]:
    if row_format is not None:
        missing = [key for key in ROW_FORMATS[row_format].keys if key not in row]
        if missing:
            raise _MissingColumnError(f"row lacks {' or '.join(missing)}")
        return ROW_FORMATS[row_format].read(row, images)
    if not any(key in _CAPTIONS for key in columns):
        fitting = [entry for entry in ROW_FORMATS.values() if all(map(row.__contains__, entry.keys))]
        mapped = [entry for entry in fitting if any(key in columns for key in entry.keys)] if columns else []
        for entry in [*mapped, *fitting][:1]:  # what is mapped is meant, else the first that fits
            return entry.read(row, images)
    if not any(key in row for key in _CAPTIONS):
        raise _MissingColumnError("row has no text, question and answer, dialogs or messages")
    return _captions(row, images, prompt=prompt)


def _dialogs(row: Row, images: list[Any]) -> list[list[Turn]]:
    listed = _listed(row["dialogs"], "dialogs are not a list", may_be_empty=True)
    return [_dialog(_listed(dialog, "dialog is not a list of turns"), images) for dialog in listed]


def _dialog(turns: Sequence[Any], images: Sequence[Any]) -> list[Turn]:
    asked = []
    for turn in turns:
        if not isinstance(turn, Mapping) or "answer" not in turn:
            raise BadSampleError("turn lacks prompt or answer")
        asked.append(turn["prompt"] if turn.get("prompt") is not None else turn.get("question") or "")
    prompts = _prompts(asked, images)
    return [
        turn_from_row(
            prompt,
            turn["answer"],
            references=turn.get("references") or (),
            instruction=turn.get("instruction") or "",
        )
        for prompt, turn in zip(prompts, turns, strict=True)
    ]


def _prompts(asked: Sequence[Any], images: Sequence[Any]) -> list[str]:
    """Read what the user says; see `read_prompts`."""
    if not all(isinstance(text, str) for text in asked):
        raise BadSampleError("prompt is not a string")
    return read_prompts(asked, num_images=len(images))


def _chat(messages: Any, images: list[Any], reason: str) -> list[list[Turn]]:
    """Read a chat; images that stand in its messages are put among those given."""
    said, ordered = said_in_messages(_listed(messages, reason), images=images)
    images[:] = ordered
    return [_answered(said, images)]


def _answered(said: Sequence[tuple[str, Any]], images: Sequence[Any]) -> list[Turn]:
    turns = pair_turns(said, num_images=len(images))
    if len(said) % 2 == (said[0][0] not in ("system", "developer")):
        raise BadSampleError("roles are not user and assistant in turn")
    if not all(turn.answer for turn in turns):
        raise BadSampleError("answer is empty")
    return turns


def _messages(row: Row, images: list[Any]) -> list[list[Turn]]:
    return _chat(row["messages"], images, "messages are not a list")


def _conversations(row: Row, images: list[Any]) -> list[list[Turn]]:
    return _chat(row["conversations"], images, "conversations are not a list")


def _texts(row: Row, images: list[Any]) -> list[list[Turn]]:
    dialogs = []
    for entry in _listed(row["texts"], "texts are not a list"):
        if not isinstance(entry, Mapping) or "user" not in entry or "assistant" not in entry:
            raise BadSampleError("text lacks user or assistant")
        dialogs.append(_answered([("user", entry["user"]), ("assistant", entry["assistant"])], images))
    return dialogs


def _prompt_completion(row: Row, images: list[Any]) -> list[list[Turn]]:
    said: list[Any] = []
    for key, role in (("prompt", "user"), ("completion", "assistant")):
        value = row[key]
        if isinstance(value, str) and (value[:2] != "[{" or _json_list(value) is None):
            said.append({"role": role, "content": value})
        else:
            said += _listed(value, f"{key} is neither a text nor a list of messages")
    return _chat(said, images, "messages are not a list")


def _m3it(row: Row, images: list[Any]) -> list[list[Turn]]:
    [prompt] = _prompts([row.get("inputs", "")], images)
    return [[turn_from_row(prompt, row["outputs"], instruction=row["instruction"])]]


def _question(row: Row, images: list[Any]) -> list[list[Turn]]:
    """Read a question; of several answers the most common is learned, and all are accepted when answers are scored."""
    [prompt] = _prompts([row.get("question", row.get("prompt"))], images)
    answer = _with_list(row, "answer" if "answer" in row else "answers")
    answers = _with_list(row, "answers") if "answers" in row else ()
    references = _with_list(row, "references") if "references" in row else ()
    if isinstance(answer, Sequence) and not isinstance(answer, str):
        given = _given_answers(answer)
        answer = Counter(given).most_common(1)[0][0]  # of equally many, the first
        references = references or given
    elif answers and not references:
        references = [answers] if isinstance(answers, str) else _given_answers(answers)
    instruction, kind = row.get("instruction", ""), row.get("kind", "")
    return [[turn_from_row(prompt, answer, references=references, instruction=instruction, kind=kind)]]


def _qas(row: Row, images: list[Any]) -> list[list[Turn]]:
    """Read the questions of an image: a list of them or, as datasets keeps such lists, a dict of lists."""
    given = row["qas"]
    if isinstance(given, Mapping):
        given = [dict(zip(given, each, strict=False)) for each in zip(*given.values(), strict=False)]
    return [_question(each, images)[0] for each in _listed(given, "qas are not a list") if _is_question(each)]


def _is_question(entry: Any) -> bool:
    if not isinstance(entry, Mapping) or "question" not in entry or "answer" not in entry:
        raise BadSampleError("qas lack question or answer")
    return True


def _given_answers(answers: Any) -> list[str]:
    entries = answers if isinstance(answers, Sequence) else [answers]
    given = [entry.get("answer") if isinstance(entry, Mapping) else entry for entry in entries if entry is not None]
    texts = [text for text in given if isinstance(text, str)]
    if not texts or len(texts) < len(given):
        raise BadSampleError("answers are not a list of strings")
    return texts


def _captions(row: Row, images: list[Any], *, prompt: str) -> list[list[Turn]]:
    if not images:
        raise _MissingColumnError("caption has no image")
    there = [key for key in _CAPTIONS if key in row]
    value = _with_list(row, next((key for key in there if row[key] != ""), there[0]))
    captions = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    references = _with_list(row, "references") if "references" in row else ()
    texts = [each.get("raw", each.get("caption")) if isinstance(each, Mapping) else each for each in captions]
    dialogs = []
    for text in texts:
        if isinstance(text, str):
            [text] = read_prompts([text], num_images=len(images), is_caption=True)
        if text is not None:
            dialogs.append([turn_from_row(prompt, text, references=references)])
    return dialogs


# --- Lists


def _listed(value: Any, reason: str, *, may_be_empty: bool = False) -> Sequence[Any]:
    if isinstance(value, str):
        value = _json_list(value)
    if not isinstance(value, Sequence) or isinstance(value, bytes) or not (value or may_be_empty):
        raise BadSampleError(reason)
    return value


def _with_list(row: Row, key: str) -> Any:
    """Return a value that may be a list written as a text, as tables hold it. Raises BadSampleError."""
    value = row[key]
    if key not in _LISTS or not isinstance(value, str) or value.strip()[:1] != "[" or value.strip()[-1:] != "]":
        return value
    found = _json_list(value)
    if found is None:
        raise BadSampleError(f"{key} is a text in brackets that is no JSON list")
    return found


def _json_list(text: str) -> list[Any] | None:
    try:
        found = parse_json(text)
    except ValueError:
        return None
    return found if isinstance(found, list) else None


class RowFormat(NamedTuple):
    """How a format is known and read.

    Attributes:
        keys: a row of it has all of these.
        read: makes dialogs of a row and its images; images that stand in messages are put among those given.
        reader: the reader for files that hold nothing else.
    """

    keys: tuple[str, ...]
    read: Callable[[Row, list[Any]], list[list[Turn]]]
    reader: str = "parquet"


ROW_FORMATS = {
    "dialogs": RowFormat(("dialogs",), _dialogs),
    "messages": RowFormat(("messages",), _messages, reader="messages"),
    "llava": RowFormat(("conversations",), _conversations, reader="llava"),
    "texts": RowFormat(("texts",), _texts, reader="texts"),
    "prompt_completion": RowFormat(("prompt", "completion"), _prompt_completion, reader="prompt_completion"),
    "m3it": RowFormat(("instruction", "outputs"), _m3it),
    "qas": RowFormat(("qas",), _qas),
    "question": RowFormat(("question", "answer"), _question),
    "answers": RowFormat(("question", "answers"), _question),
    "prompt": RowFormat(("prompt", "answer"), _question),
    "prompt_answers": RowFormat(("prompt", "answers"), _question),
}
