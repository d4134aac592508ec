"""Answered questions: what a line of `answers.jsonl` holds, and files of such lines that others wrote.

In: an `answers.jsonl`. A line needs `answer` and `references`; `image` or `id` says which lines are about one image.
Out: `Answered`, in the order of the lines.

    for name, answered in read_answers(Path("answers.jsonl")): print(name, answered[0].answer)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visgraft.errors import DataError
from visgraft.parsing import parse_json


@dataclass(frozen=True, slots=True)
class Answered:
    """One question with its answer.

    Attributes:
        id: of the question, unique among those of one model; empty where a file gives none.
        image: what names its images; empty where there is none.
        prompt: what was asked.
        references: the accepted answers.
        answer: what the model said.
        kind: of question, where the data name one.
        tokens: of the answer, its end included; None where it is not known.
        stopped: whether the answer came to an end of its own; None where it is not known.
        no_answer: why the model could not answer, so that an empty answer counts; empty where it could.
    """

    id: str
    image: str
    prompt: str
    references: tuple[str, ...]
    answer: str
    kind: str = ""
    tokens: int | None = None
    stopped: bool | None = None
    no_answer: str = ""


def image_groups(answered: Sequence[Answered]) -> list[str]:
    """Name for each question the image it is about; one without an image stands alone, under its id."""
    return [each.image or f"id {each.id}" if each.image or each.id else f"line {n}" for n, each in enumerate(answered)]


def read_answers(path: Path) -> dict[str, list[Answered]]:
    """Read a file of answers: those of one model, under the file's name, or of each `model` that its lines name.

    Raises:
        DataError: it cannot be read, holds no line, or a line is not what it should be.
    """
    by_model: dict[str | None, list[Answered]] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # not splitlines: a text may hold U+2028
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file in UTF-8, need JSON Lines") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            values = parse_json(line)
        except ValueError as error:
            raise DataError(f"{where} is not JSON ({error}); mend or remove it") from error
        answered = answered_of_record(values, where=where)
        by_model.setdefault(values.get("model"), []).append(answered)
        if len(by_model) > 1 and None in by_model:
            raise DataError(f"{where}: model: some lines name one and some do not; name it in all of them, or in none")
    if not by_model:
        raise DataError(f"{path}: holds no answers; a line needs `answer` and `references`")
    if len(by_model) == 1:
        return {path.name: next(iter(by_model.values()))}
    return {str(model): answered for model, answered in by_model.items()}


def answered_of_record(values: Any, *, where: str) -> Answered:
    """Read what a line says; `where` it stands. Raises DataError: it is not what a line should be."""
    if not isinstance(values, Mapping):
        raise DataError(f"{where} is no JSON object; need one with `answer` and `references`")
    answer, references = values.get("answer"), values.get("references")
    if not isinstance(answer, str):
        raise DataError(f"{where}: answer: got {_short(answer)}, need a text")
    if not isinstance(references, list) or not references or not all(isinstance(text, str) for text in references):
        raise DataError(f"{where}: references: got {_short(references)}, need a list of at least one text")
    image, name, prompt, kind = (values.get(key) for key in ("image", "id", "prompt", "kind"))
    for key, value in (("image", image), ("id", name)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, (str, int))):
            raise DataError(f"{where}: {key}: got {_short(value)}, need a text or a number")
    if not isinstance(values.get("model"), str | None):
        raise DataError(f"{where}: model: got {_short(values['model'])}, need a text")
    stopped, tokens, no_answer = (values.get(key) for key in ("stopped", "tokens", "no_answer"))
    return Answered(
        id="" if name is None else str(name),
        image="" if image is None else str(image),
        prompt=prompt if isinstance(prompt, str) else "",
        references=tuple(references),
        answer=answer,
        kind=kind if isinstance(kind, str) else "",
        tokens=tokens if isinstance(tokens, int) else None,
        stopped=stopped if isinstance(stopped, bool) else None,
        no_answer=no_answer if isinstance(no_answer, str) else "",
    )


def _short(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
