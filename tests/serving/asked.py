"""Requests as clients write them, and a server that runs in a thread of the test's own process.

In: texts and pictures. Out: messages, bodies, responses. Usage: `with running(service) as url: ask(url, [user("Hi")])`
"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import httpx
from PIL import Image

from visgraft import Processor, VisionLanguageModel
from visgraft.serving import ServeSettings, Service, open_port
from visgraft.serving.running import address_of, make_server

Pair = tuple[VisionLanguageModel, Processor]
CLIENT = httpx.Client(timeout=60, trust_env=False, limits=httpx.Limits(max_connections=200))


@contextmanager
def running(service: Service) -> Iterator[str]:
    """Serve in a thread; gives the address."""
    opened, server = open_port("127.0.0.1", 0), make_server(service)
    thread = threading.Thread(target=server.run, args=([opened],), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield address_of(opened)
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def served(pair: Pair, **settings: Any) -> Iterator[tuple[str, Service]]:
    """Serve a pair under the name `tiny`."""
    service = Service({"tiny": pair}, ServeSettings(**settings))
    with running(service) as url:
        yield url, service


def encoded(image: Image.Image, kind: str = "PNG", **settings: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def data_url(image: Image.Image | bytes, kind: str = "PNG") -> str:
    data = image if isinstance(image, bytes) else encoded(image, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data).decode()}"


def user(text: str, *images: Image.Image | str) -> dict[str, Any]:
    urls = [image if isinstance(image, str) else data_url(image) for image in images]
    if not urls:
        return {"role": "user", "content": text}
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def post(url: str, body: Any, *, path: str = "/v1/chat/completions", **given: Any) -> httpx.Response:
    return CLIENT.post(url + path, json=body, **given)


def ask(url: str, messages: list[dict[str, Any]], **parameters: Any) -> dict[str, Any]:
    """Ask for a whole answer."""
    response = post(url, {"model": "tiny", "messages": messages, **parameters})
    assert response.status_code == 200, response.text
    value: dict[str, Any] = response.json()
    return value


def chunks(url: str, messages: list[dict[str, Any]], **parameters: Any) -> list[dict[str, Any]]:
    """Ask for an answer piece by piece; gives the chunks."""
    body = {"model": "tiny", "messages": messages, "stream": True, **parameters}
    with CLIENT.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
        assert response.status_code == 200, response.read()
        events = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]]


def text_of(found: dict[str, Any] | list[dict[str, Any]], index: int = 0) -> str:
    """The text of a choice, streamed or not."""
    if isinstance(found, dict):
        return str(found["choices"][index]["message"]["content"])
    choices = [choice for chunk in found for choice in chunk["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content", "") for choice in choices)


def error_of(response: httpx.Response) -> dict[str, Any]:
    """OpenAI's error object, and nothing beside it."""
    value = response.json()
    assert value.keys() == {"error"} and value["error"].keys() == {"message", "type", "param", "code"}, value
    error: dict[str, Any] = value["error"]
    return error
