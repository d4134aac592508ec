"""The server's own description at /openapi.json: what its endpoints take, with an example that holds a real image.

In: the application. Out: its OpenAPI document, for client generators and for tests that make requests of it.

    describe(app, service)
"""

from __future__ import annotations

import base64
from io import BytesIO
from typing import Any

from fastapi import FastAPI
from PIL import Image
from pydantic.json_schema import models_json_schema

from visgraft.serving.bodies import ChatRequest, ScoreRequest
from visgraft.serving.service import Service

_BODIES: dict[str, type[ChatRequest] | type[ScoreRequest]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/score": ScoreRequest,
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "additionalProperties": False,
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "additionalProperties": False,
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def describe(app: FastAPI, service: Service) -> None:
    """Let the application describe its bodies, which it reads itself, and its errors."""
    written: dict[str, Any] = {}

    def document() -> dict[str, Any]:
        if not written:
            written.update(_document(FastAPI.openapi(app), service))
        return written

    app.openapi = document  # type: ignore[method-assign]


def _document(made: dict[str, Any], service: Service) -> dict[str, Any]:
    document = {key: value for key, value in made.items() if key != "components"}
    kinds: Any = [(kind, "validation") for kind in _BODIES.values()]
    _, schemas = models_json_schema(kinds, ref_template="#/components/schemas/{model}")
    document["components"] = {"schemas": {**schemas["$defs"], "Error": _ERROR}}
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)  # what FastAPI would say of bodies that it reads
            operation["responses"]["default"] = {"description": "What is wrong", "content": error}
        if path in _BODIES:
            kind = _BODIES[path]
            content = {
                "schema": {"$ref": f"#/components/schemas/{kind.__name__}"},
                "examples": {name: {"value": body} for name, body in _examples(kind, service).items()},
            }
            operations["post"]["requestBody"] = {"required": True, "content": {"application/json": content}}
    _describe_answers(document["paths"])
    if service.settings.api_keys:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def _describe_answers(paths: dict[str, Any]) -> None:
    chat = paths["/v1/chat/completions"]["post"]["responses"]["200"]
    whole = {"schema": {"type": "object", "required": ["id", "object", "created", "model", "choices", "usage"]}}
    chat["content"] = {"application/json": whole, "text/event-stream": {"schema": {"type": "string"}}}
    paths["/metrics"]["get"]["responses"]["200"]["content"] = {"text/plain": {"schema": {"type": "string"}}}


def _examples(kind: type[ChatRequest] | type[ScoreRequest], service: Service) -> dict[str, Any]:
    model = next(iter(service.models))
    buffer = BytesIO()
    Image.new("RGB", (32, 32), (200, 60, 40)).save(buffer, "PNG")
    image = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    content = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": image}}]
    asked = {"model": model, "messages": [{"role": "user", "content": content}]}
    if kind is ScoreRequest:
        return {"candidates": {**asked, "candidates": ["red", "green"]}}
    talk = [*asked["messages"], {"role": "assistant", "content": "A red square."}, {"role": "user", "content": "Why?"}]
    return {
        "question": {**asked, "max_tokens": 16},
        "stream": {**asked, "max_tokens": 16, "stream": True, "stream_options": {"include_usage": True}},
        "chat": {"model": model, "messages": talk, "max_tokens": 16, "temperature": 0.7, "seed": 1, "logprobs": True},
    }
