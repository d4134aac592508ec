"""What clients may send, as pydantic reads it: each parameter's type and range; all else is refused by name.

In: the bytes of a body. Out: a `ChatRequest` or a `ScoreRequest`, or a `Failure` that names the parameter.

    asked = read_body(ChatRequest, b'{"model": "my-run", "messages": [{"role": "user", "content": "Hello"}]}')
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from visgraft.serving.failures import Failure, bad_request

MAX_STOPS = 4
MAX_BIASES = 1000
MAX_TOP_LOGPROBS = 20
# Bounds of the form alone, so that a body of many million wrong things is refused at the first of them.
_MOST_NAMES, MOST_MESSAGES, _MOST_PARTS, _MOST_CANDIDATES = 64, 2000, 1000, 2000
# Parameters of OpenAI's that would change an answer and that this server does not follow.
NOT_SUPPORTED = (
    *("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call", "audio", "prediction", "metadata"),
    *("reasoning_effort", "verbosity", "web_search_options", "moderation", "prompt_cache_retention"),
)


class Strict(BaseModel):
    """No other names, no conversions, no numbers that are none; null is as good as left out."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        if len(values) > _MOST_NAMES:
            raise ValueError(f"got {len(values):,} names in one object, allowed are {_MOST_NAMES}")
        return {name: value for name, value in values.items() if value is not None}


class TextPart(Strict):
    """Some text of a message."""

    type: Literal["text"]
    text: str


class ImageUrl(Strict):
    """Where an image is: a data: URL, or a web address where the server allows its host."""

    url: Annotated[str, Field(min_length=1)]
    detail: Literal["auto"] | None = None


class ImagePart(Strict):
    """An image of a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


def _content_kind(value: Any) -> str:
    return "text" if isinstance(value, str) else "parts"


def _part_kind(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)
    return kind if isinstance(kind, str) else None


Part = Annotated[Annotated[TextPart, Tag("text")] | Annotated[ImagePart, Tag("image_url")], Discriminator(_part_kind)]
Parts = Annotated[list[Part], Tag("parts"), Field(fail_fast=True, min_length=1, max_length=_MOST_PARTS)]
Content = Annotated[Annotated[str, Tag("text")] | Parts, Discriminator(_content_kind)]
Stop = Annotated[
    Annotated[str, Tag("text"), Field(min_length=1)]
    | Annotated[list[Annotated[str, Field(min_length=1)]], Tag("parts"), Field(fail_fast=True, max_length=MAX_STOPS)],
    Discriminator(_content_kind),
]


class Message(Strict):
    """What one side said; images are what the user shows."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content


class StreamOptions(Strict):
    """What else a stream tells."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


def _few(values: Any) -> Any:
    if isinstance(values, Mapping) and len(values) > MAX_BIASES:
        raise ValueError(f"got {len(values):,} tokens, allowed are {MAX_BIASES}")
    return values


Biases = Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], BeforeValidator(_few)]


class ResponseFormat(Strict):
    """Text, and nothing else."""

    type: Literal["text"]


class _Asking(Strict):
    """What every request names: a model, and a chat that the user ends."""

    model: Annotated[str, Field(description="One of those that /v1/models lists.")]
    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=MOST_MESSAGES)]


class ChatRequest(_Asking):
    """The body of `POST /v1/chat/completions`."""

    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, description="0, or left out: the likeliest token.")] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Biases | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    modalities: Annotated[list[Literal["text"]], Field(fail_fast=True, min_length=1, max_length=1)] | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Literal[False] | None = None
    user: Annotated[str, Field(description="A label of the client's own.")] | None = None
    safety_identifier: Annotated[str, Field(description="A label of the client's own.")] | None = None
    prompt_cache_key: Annotated[str, Field(description="A label of the client's own.")] | None = None


class ScoreRequest(_Asking):
    """The body of `POST /v1/score`."""

    candidates: Annotated[
        list[Annotated[str, Field(min_length=1)]], Field(fail_fast=True, min_length=1, max_length=_MOST_CANDIDATES)
    ]
    normalise: Literal["sum", "token", "character"] | None = None


Body = TypeVar("Body", bound=Strict)


def read_body(kind: type[Body], body: bytes) -> Body:
    """Read a body.

    Raises:
        Failure: 400, with the first thing that is wrong.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise _failure(kind, error) from None


def _failure(kind: type[BaseModel], error: ValidationError) -> Failure:
    """Say the first error in one line, without what the client sent where that is long."""
    first = error.errors(include_url=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        return bad_request(f"the body is no JSON that can be read: {first['msg'].removeprefix('Invalid JSON: ')}")
    place = [*first["loc"]]
    param = ".".join(str(each) for each in _readable(place)) or None
    if first["type"] == "extra_forbidden":
        return _unknown(kind, str(place[-1]), param or str(place[-1]), is_top=len(place) == 1)
    if first["type"] == "missing":
        return bad_request(f"{param}: missing, and needed", param=param)
    got = _short(first.get("input"))
    message = first["msg"].removeprefix("Value error, ").replace(" found using _part_kind()", "")
    if first["type"] == "union_tag_not_found":
        message = "need an object whose type is text or image_url"
    message = message[:1].lower() + message[1:]
    return bad_request(f"{param or 'body'}: {got}{message}", param=param)


def _readable(place: list[int | str]) -> list[int | str]:
    """Leave out of a place what no client wrote: names of kinds, behind a content or a part's number."""
    kept: list[int | str] = []
    for index, each in enumerate(place):
        before = place[index - 1] if index else None
        of_union = before in ("content", "stop") and each in ("text", "parts")
        of_part = isinstance(before, int) and "content" in place[:index] and each in ("text", "image_url")
        if not of_union and not of_part:
            kept.append(each)
    return kept


def _unknown(kind: type[BaseModel], name: str, param: str, *, is_top: bool) -> Failure:
    if is_top and name in NOT_SUPPORTED:
        return bad_request(
            f"{param}: this server does not follow it, and refuses rather than ignores; leave it out",
            param=param,
            code="unsupported_parameter",
        )
    near = get_close_matches(name, kind.model_fields, n=1) if is_top else []
    hint = f"did you mean {near[0]}?" if near else "leave it out; /openapi.json lists what there is"
    return bad_request(f"{_cut(param)}: no such parameter; {hint}", param=_cut(param), code="unknown_parameter")


def _short(value: Any) -> str:
    """Show a value that is short; nothing for one that is long, or may hold an image."""
    if isinstance(value, (bool, int, float, str)) and len(str(value)) <= 60:
        return f"got {json.dumps(value)}, "
    return ""


def _cut(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."
