"""Turn a row of any usual format into images and dialogs.

In:  a row as a dict, from whatever file it came.
Out: Content: what the row says of its images (not yet looked for), its dialogs, its name.

    content = content_of_row({"image": "a.jpg", "question": "What is it?", "answer": "A cat."})

The formats, known by their keys (the first that fits):
    dialogs                     [[{prompt, answer}, ...], ...]                     visgraft's own
    messages                    [{role, content: text or typed parts}, ...]        TRL, chat
    conversations               [{from: human | gpt, value}, ...]                  LLaVA
    texts                       [{user, assistant}, ...]                           The Cauldron, FineVision
    prompt, completion          texts or messages                                  TRL
    qas                         [{question, answer}, ...]                          Visual Genome
    instruction, outputs        with inputs and image_base64_str                   M3IT
    question | prompt, answer   an answer or several                               VQA
    text | caption | captions   one or several                                     captions
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from visgraft.data.readers.rows import Row
from visgraft.data.sample import Turn, turn_from_row
from visgraft.errors import BadSampleError

IMAGE_KEYS = ("images", "image", "image_base64_str", "file_names", "file_name", "video")
_ID_KEYS = ("id", "key", "__key__", "image_id", "question_id")
_CAPTIONS = ("text", "caption", "captions", "txt")
_USER = ("user", "human")
_ASSISTANT = ("assistant", "gpt", "model")
_PLACEHOLDERS = ("<image>\n", "\n<image>", "<image>", "<video>\n", "\n<video>", "<video>")


@dataclass(frozen=True, slots=True)
class Content:
    """What a row holds: images as the row names them, dialogs, and its own name if it has one."""

    images: Sequence[Any]
    dialogs: Sequence[Sequence[Turn]]
    id: str | None = None


def content_of_row(
    row: Row, *, row_format: str | None = None, prompt: str = "", columns: Mapping[str, str] | None = None
) -> Content:
    """Read a row in the first format that fits, or in the one that is named.

    row_format: a name of ROW_FORMATS. prompt: the text in front of a caption. columns: {key of the format: column of
    the row}.
    Raises BadSampleError where no format fits or a part of the row is of another kind.
    """
    if columns:
        row = {**row, **{key: _column(row, column) for key, column in columns.items()}}
    images = images_of_row(row)
    dialogs = _read_format(row, images, row_format=row_format, prompt=prompt)
    if not dialogs:
        raise BadSampleError("row has no texts")
    name = next((row[key] for key in _ID_KEYS if isinstance(row.get(key), (str, int))), None)
    return Content(images, dialogs, None if name is None else str(name))


def _read_format(row: Row, images: list[Any], *, row_format: str | None, prompt: str) -> list[list[Turn]]:
    for keys, read, _ in ROW_FORMATS.values() if row_format is None else [ROW_FORMATS[row_format]]:
        missing = [key for key in keys if row.get(key) is None]
        if not missing:
            return read(row, images)
        if row_format is not None:
            raise BadSampleError(f"row lacks {' or '.join(missing)}")
    if not any(key in row for key in _CAPTIONS):
        raise BadSampleError("row has no text, question and answer, dialogs or messages")
    return _captions(row, prompt=prompt)


def _column(row: Row, column: str) -> Any:
    if column not in row:
        raise BadSampleError(f"column {column} is missing")
    return row[column]


def images_of_row(row: Row) -> list[Any]:
    """Return what a row says of its images, without those that stand in its messages."""
    value = next((row[key] for key in IMAGE_KEYS if row.get(key) is not None), None)
    if value is None:
        return []
    return list(value) if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else [value]


def _dialogs(row: Row, images: list[Any]) -> list[list[Turn]]:
    return [[_turn(turn) for turn in _listed(dialog, "dialog is not a list of turns")] for dialog in row["dialogs"]]


def _turn(turn: Any) -> Turn:
    if not isinstance(turn, Mapping) or "answer" not in turn:
        raise BadSampleError("turn lacks prompt or answer")
    prompt = turn.get("prompt", turn.get("question", ""))
    references, instruction = turn.get("references") or (), turn.get("instruction") or ""
    return turn_from_row(prompt, turn["answer"], references=references, instruction=instruction)


def _messages(row: Row, images: list[Any]) -> list[list[Turn]]:
    return [turns_of_messages(_chat(row["messages"], images), images)]


def _conversations(row: Row, images: list[Any]) -> list[list[Turn]]:
    said = []
    for message in _listed(row["conversations"], "conversations are not a list"):
        if not isinstance(message, Mapping):
            raise BadSampleError("message is not an object")
        said.append((message.get("from", message.get("role")), message.get("value", message.get("content"))))
    return [turns_of_messages(said, images)]


def _chat(messages: Any, images: list[Any]) -> list[tuple[Any, Any]]:
    """Return (role, text) of every message; images that stand in the messages are appended to those given."""
    said = []
    for message in _listed(messages, "messages are not a list"):
        if not isinstance(message, Mapping):
            raise BadSampleError("message is not an object")
        content = message.get("content")
        if isinstance(content, Sequence) and not isinstance(content, str):
            content = "".join(_part(part, images) for part in content)
        said.append((message.get("role"), content))
    return said


def _part(part: Any, images: list[Any]) -> str:
    match part:
        case {"type": "text", "text": str() as text}:
            return text
        case {"type": "image_url", "image_url": {"url": url}} | {"type": "image_url", "image_url": str() as url}:
            images.append(url)
        case {"type": "image" | "video", **rest}:
            held = next((rest[key] for key in ("image", "video", "url", "path") if rest.get(key) is not None), None)
            if held is None and rest.get("base64") is not None:
                held = {"base64": rest["base64"]}
            if held is not None:
                images.append(held)
            # else it stands for the next of the row's own images
        case _:
            raise BadSampleError("message has a part that is neither text nor image")
    return ""


def turns_of_messages(said: Sequence[tuple[Any, Any]], images: Sequence[Any]) -> list[Turn]:
    """Pair (role, text) as turns; an opening system message becomes the first turn's instruction.

    `<image>` may stand anywhere; it is taken out, as images always come first.
    Raises BadSampleError where user and assistant do not take turns, or other images are named than there are.
    """
    instruction = ""
    if said and said[0][0] == "system":
        instruction, said = said[0][1], said[1:]
    roles = [role for role, _ in said]
    is_paired = all(role in (_ASSISTANT if place % 2 else _USER) for place, role in enumerate(roles))
    if not roles or len(roles) % 2 or not is_paired:
        raise BadSampleError("roles are not user and assistant in turn")
    if any(not isinstance(text, str) for _, text in said):
        raise BadSampleError("message is not a string")
    named = sum(text.count("<image>") + text.count("<video>") for _, text in said)
    if named > len(images):
        raise BadSampleError("text names more images than there are")
    texts = [_without_placeholders(text) for _, text in said]
    turns = [turn_from_row(prompt, answer) for prompt, answer in zip(texts[::2], texts[1::2], strict=True)]
    turns[0] = turn_from_row(turns[0].prompt, turns[0].answer, instruction=instruction)
    return turns


def _without_placeholders(text: str) -> str:
    for placeholder in _PLACEHOLDERS:
        text = text.replace(placeholder, "")
    return text


def _texts(row: Row, images: list[Any]) -> list[list[Turn]]:
    dialogs = []
    for entry in _listed(row["texts"], "texts are not a list"):
        if not isinstance(entry, Mapping) or "user" not in entry or "assistant" not in entry:
            raise BadSampleError("text lacks user or assistant")
        dialogs.append(turns_of_messages([("user", entry["user"]), ("assistant", entry["assistant"])], images))
    return dialogs


def _prompt_completion(row: Row, images: list[Any]) -> list[list[Turn]]:
    said: list[tuple[Any, Any]] = []
    for key, role in (("prompt", "user"), ("completion", "assistant")):
        said += [(role, row[key])] if isinstance(row[key], str) else _chat(row[key], images)
    return [turns_of_messages(said, images)]


def _m3it(row: Row, images: list[Any]) -> list[list[Turn]]:
    inputs = row.get("inputs")
    return [[turn_from_row("" if inputs is None else inputs, row["outputs"], instruction=row["instruction"])]]


def _question(row: Row, images: list[Any]) -> list[list[Turn]]:
    """Read a question; of several answers the most common is learned, and all are accepted when answers are scored."""
    prompt = row["question"] if row.get("question") is not None else row["prompt"]
    answer = row["answer"] if row.get("answer") is not None else row["answers"]
    references = row.get("references") or ()
    if isinstance(answer, Sequence) and not isinstance(answer, str):
        given = [entry.get("answer") if isinstance(entry, Mapping) else entry for entry in answer]
        if not given or any(not isinstance(text, str) for text in given):
            raise BadSampleError("answers are not a list of strings")
        answer, references = Counter(given).most_common(1)[0][0], given  # of equally many, the first
    more = {"references": references, "instruction": row.get("instruction") or "", "kind": row.get("kind")}
    return [[turn_from_row(prompt, answer, **more)]]


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


def _captions(row: Row, *, prompt: str) -> list[list[Turn]]:
    value = next(row[key] for key in _CAPTIONS if key in row)
    captions = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    references = row.get("references") or ()
    texts = [each.get("raw", each.get("caption")) if isinstance(each, Mapping) else each for each in captions]
    return [[turn_from_row(prompt, text, references=references)] for text in texts]


def _listed(value: Any, reason: str) -> Sequence[Any]:
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)) or not value:
        raise BadSampleError(reason)
    return value


class RowFormat(NamedTuple):
    """How a format is known and read.

    Attributes:
        keys: a row of it has all of these.
        read: makes dialogs of a row and its images; images that stand in messages are appended to those given.
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
}
