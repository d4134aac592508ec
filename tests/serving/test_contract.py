"""Requests made of the server's own description, and of real bodies with real images, never get a 500.

The short form asks some hundred times; `make test-serve` (VISGRAFT_SERVE_MINUTES=10) goes on for as long as it is told.
"""

import copy
import json
import os
import random
import time
from typing import Any

import httpx
import hypothesis
import pytest
import schemathesis
from hypothesis import strategies
from schemathesis import checks

from tests.inference.asked import picture
from tests.serving.asked import CLIENT, Pair, ask, data_url, encoded, said, served, text_of, user
from visgraft.serving import Limits

MINUTES = float(os.environ.get("VISGRAFT_SERVE_MINUTES", "0"))
ODD: list[Any] = [None, True, False, 0, -1, 1, 2, 1.5, 1e-9, 1e308, "", "x", "\x00", "\ud83d", [], {}, ["a"], {"a": 1},
                  2**63, "<image>", "<|im_end|>", "\u202e日本🙂", "a" * 2000, [None], [[[]]], [1, "a"]]  # fmt: skip
PARAMETERS: dict[str, list[Any]] = {
    "max_tokens": [1, 3, 12],
    "temperature": [0, 0.7, 2],
    "top_p": [0, 0.5, 1],
    "seed": [0, -3, 2**62],
    "stop": ["a", ["e", "\n"]],
    "n": [1, 3],
    "logprobs": [True, False],
    "top_logprobs": [0, 5],
    "presence_penalty": [-2, 1.5],
    "frequency_penalty": [0.5, 2],
    "logit_bias": [{"5": 100, "70": -100}],
    "stream": [True, False],
    "stream_options": [{"include_usage": True}],
}


def images(draw: random.Random) -> str:
    """An image, whole or damaged."""
    data = encoded(picture(draw.randrange(4)), draw.choice(["PNG", "JPEG", "GIF", "BMP", "WEBP"]))
    damage = draw.random()
    if damage < 0.2:
        data = data[: draw.randrange(len(data))]
    elif damage < 0.4:
        changed = bytearray(data)
        for _ in range(draw.randrange(1, 20)):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        data = bytes(changed)
    url = data_url(data)
    return url if damage < 0.95 else url[: draw.randrange(len(url))]


def real_body(draw: random.Random) -> dict[str, Any]:
    """A body as clients send it, and in half of all cases with something odd in some place."""
    messages = []
    for _ in range(draw.choice([0, 0, 1, 2])):
        messages += [
            user(draw.choice(["What is it?", "", "Why?"]), *[images(draw)] * draw.choice([0, 1])),
            said("A cat."),
        ]
    messages.append(user("And now?", *[images(draw) for _ in range(draw.choice([0, 1, 1, 2]))]))
    body: dict[str, Any] = {"model": "tiny", "messages": messages, "max_tokens": 4}
    for name in draw.sample([*PARAMETERS], draw.randrange(5)):
        body[name] = draw.choice(PARAMETERS[name])
    if draw.random() < 0.1:
        body = {"model": "tiny", "messages": messages, "candidates": ["red", "a green one"]}
    for _ in range(draw.choice([0, 0, 1, 2])):
        _spoil(body, draw)
    return body


def _spoil(body: dict[str, Any], draw: random.Random) -> None:
    """Put something odd somewhere."""
    place: Any = body
    while True:
        key = draw.choice([*place]) if isinstance(place, dict) and place else None
        if isinstance(place, list) and place:
            key = draw.randrange(len(place))
        if key is None:
            return
        if not isinstance(place[key], (dict, list)) or not place[key] or draw.random() < 0.2:
            if draw.random() < 0.15:
                del place[key]
            else:
                place[key] = copy.deepcopy(draw.choice(ODD))
            return
        place = place[key]


def check(response: httpx.Response, body: Any) -> None:
    """No mistake of the server, and whatever is refused is refused in OpenAI's form."""
    assert response.status_code not in (500, 502) and response.status_code < 505, (response.text, body)
    if response.status_code >= 400:
        assert response.json().keys() == {"error"} and response.json()["error"]["message"], body


def send(url: str, body: Any) -> httpx.Response:
    path = "/v1/score" if isinstance(body, dict) and "candidates" in body else "/v1/chat/completions"
    data = json.dumps(body).encode("utf-8", "surrogatepass")
    return CLIENT.post(url + path, content=data, headers={"content-type": "application/json"})


def made_of_the_description(url: str, *, num_examples: int) -> None:
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    for result in schema.get_all_operations():
        operation = result.ok()

        @hypothesis.settings(
            max_examples=num_examples, deadline=None, database=None, suppress_health_check=[*hypothesis.HealthCheck]
        )
        @hypothesis.given(case=operation.as_strategy(), is_known=strategies.booleans())
        def asked(case: schemathesis.Case, is_known: bool) -> None:
            if isinstance(case.body, dict) and is_known and "model" in case.body:
                case.body["model"] = "tiny"
            response = case.call(base_url=url)
            case.validate_response(
                response,
                checks=[
                    checks.not_a_server_error,
                    schemathesis.specs.openapi.checks.status_code_conformance,
                    schemathesis.specs.openapi.checks.content_type_conformance,
                    schemathesis.specs.openapi.checks.response_schema_conformance,
                ],
            )

        asked()


@pytest.mark.slow
def test_requests_made_of_the_description_never_meet_a_mistake_of_the_server(serving_pair: Pair) -> None:
    with served(serving_pair, limits=Limits(max_new_tokens=12, default_new_tokens=4)) as (url, _):
        wanted = text_of(ask(url, [user("What is it?", picture(0))], max_tokens=8))
        end = time.monotonic() + 60 * MINUTES
        rounds = 0
        while rounds == 0 or time.monotonic() < end:
            made_of_the_description(url, num_examples=100 if MINUTES else 5)
            seed = rounds if MINUTES else 0
            draw = random.Random(seed)
            for _ in range(500 if MINUTES else 60):
                body = real_body(draw)
                check(send(url, body), body)
            rounds += 1
            assert text_of(ask(url, [user("What is it?", picture(0))], max_tokens=8)) == wanted


def test_the_description_has_an_example_that_is_answered(url: str) -> None:
    document = CLIENT.get(f"{url}/openapi.json").json()
    for path in ("/v1/chat/completions", "/v1/score"):
        content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        for example in content["examples"].values():
            response = CLIENT.post(url + path, json=example["value"])
            assert response.status_code == 200, response.text
