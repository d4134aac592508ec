"""Under load: a bounded queue, free slots where clients have gone, deadlines, an end that drops nobody."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from tests.inference.asked import picture
from tests.serving.asked import CLIENT, Pair, ask, chunks, error_of, post, running, said, served, text_of, user
from visgraft.inference.active import Active
from visgraft.inference.engine import Engine
from visgraft.serving import Limits, ServeSettings, Service

LONG = {"model": "tiny", "messages": [user("Hello")], "max_tokens": 80, "logit_bias": {"2": -100}}


@contextmanager
def slowed(monkeypatch: pytest.MonkeyPatch, step_s: float = 0.05) -> Iterator[threading.Event]:
    """Let a step take a while, or until the event is set."""
    held, real = threading.Event(), Active.decode

    def decode(self: Active) -> None:
        held.wait(step_s)
        real(self)

    monkeypatch.setattr(Active, "decode", decode)
    try:
        yield held
    finally:
        held.set()


def until(is_true: Callable[[], Any], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def begun(url: str, body: dict[str, Any]) -> socket.socket:
    """Send a request and do not read its answer."""
    port = int(url.rpartition(":")[2])
    data = json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", port))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    return connection


def test_what_is_too_much_is_sent_away_with_a_time_to_come_back(
    serving_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(serving_pair, num_slots=2, max_waiting=2) as (url, service), slowed(monkeypatch) as go:
        engine = service.models["tiny"].engine
        connections = [begun(url, LONG) for _ in range(4)]
        until(lambda: engine.num_active == 2 and engine.num_waiting == 2)
        for body in (LONG, {**LONG, "stream": True}):
            response = post(url, body)
            assert response.status_code == 429 and error_of(response)["code"] == "queue_full"
            assert error_of(response)["type"] == "rate_limit_error" and int(response.headers["retry-after"]) >= 1
        assert CLIENT.get(f"{url}/health").status_code == 200
        assert 'visgraft_refused_total{reason="queue"} 2.0' in CLIENT.get(f"{url}/metrics").text
        connections.pop().close()
        until(lambda: engine.num_waiting == 1)
        go.set()
        assert all(b" 200 " in connection.recv(100) for connection in connections)
        assert post(url, LONG).status_code == 200


def test_several_choices_take_several_places(serving_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(serving_pair, num_slots=1, max_waiting=4) as (url, service), slowed(monkeypatch):
        first = begun(url, {**LONG, "max_tokens": 20})
        until(lambda: service.models["tiny"].engine.num_active == 1)
        assert post(url, {**LONG, "n": 5, "max_tokens": 1}).status_code == 429
        assert len(post(url, {**LONG, "n": 4, "max_tokens": 1}).json()["choices"]) == 4
        first.close()


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_slot_within_a_step(
    serving_pair: Pair, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    with served(serving_pair, num_slots=1) as (url, service), slowed(monkeypatch):
        engine = service.models["tiny"].engine
        gone = begun(url, {**LONG, "stream": stream})
        until(lambda: engine.num_active == 1)
        waiting = begun(url, {**LONG, "stream": stream})  # and one that gives up while it waits
        until(lambda: engine.num_waiting == 1)
        waiting.close()
        until(lambda: engine.num_waiting == 0, seconds=1)
        steps = []
        real = engine.step
        monkeypatch.setattr(engine, "step", lambda: (steps.append(1), real())[1])
        gone.close()
        until(lambda: service.num_running == 0)
        num_when_told = len(steps)
        until(lambda: engine.num_active == 0)
        assert len(steps) <= num_when_told + 2


def test_an_answer_that_takes_too_long_is_told_so(serving_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(serving_pair, limits=Limits(timeout_s=0.4)) as (url, service), slowed(monkeypatch):
        response = post(url, LONG)
        assert response.status_code == 504 and error_of(response)["code"] == "timeout"
        with CLIENT.stream("POST", f"{url}/v1/chat/completions", json={**LONG, "stream": True}) as streamed:
            events = [line for line in streamed.iter_lines() if line]
        assert streamed.status_code == 200 and len(events) > 3  # what was said, then why it ends
        assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "timeout"
        assert service.models["tiny"].engine.num_active == 0


def out_of_memory(*_: Any, **__: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("stream", [False, True])
def test_out_of_memory_is_told_to_that_request_and_the_server_lives_on(
    serving_pair: Pair, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    with served(serving_pair) as (url, service):
        with monkeypatch.context() as broken:
            broken.setattr(Active, "_run_rows", out_of_memory)
            response = post(url, {**LONG, "stream": stream})
            assert response.status_code == 503 and error_of(response)["code"] == "out_of_memory"
            assert "retry-after" in response.headers
        with monkeypatch.context() as broken:
            broken.setattr(service.models["tiny"], "prompt_of", _raise_memory)
            assert post(url, LONG).status_code == 503
        assert post(url, {**LONG, "stream": stream}).status_code == 200


def _raise_memory(*_: Any, **__: Any) -> None:
    raise MemoryError


def test_a_step_that_fails_fails_its_requests_and_no_later_ones(
    serving_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("a secret")

    with served(serving_pair) as (url, _):
        with monkeypatch.context() as patch:
            patch.setattr(Active, "_run_rows", broken)
            response = post(url, LONG)
            assert response.status_code == 500 and "secret" not in response.text
            body = {"model": "tiny", "messages": [user("Hello")], "candidates": ["a"]}
            patch.setattr("visgraft.serving.served.score_prompt", broken)
            assert post(url, body, path="/v1/score").status_code == 500
        assert post(url, LONG).status_code == 200


def test_scores_are_made_between_the_steps_of_others(serving_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(serving_pair) as (url, service), slowed(monkeypatch) as go, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(post, url, LONG)
        until(lambda: service.models["tiny"].engine.num_active == 1)
        body = {"model": "tiny", "messages": [user("Hello", picture(0))], "candidates": ["a", "b"]}
        assert post(url, body, path="/v1/score").status_code == 200
        assert not answer.done()
        go.set()
        assert answer.result().status_code == 200


def test_an_ending_server_finishes_what_runs_and_takes_no_more(
    serving_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service({"tiny": serving_pair}, ServeSettings())
    with running(service) as url, slowed(monkeypatch) as go, ThreadPoolExecutor(2) as pool:
        whole, streamed = (
            pool.submit(ask, url, LONG["messages"], max_tokens=30),
            pool.submit(chunks, url, LONG["messages"], max_tokens=30),
        )
        until(lambda: service.num_running == 2)
        assert CLIENT.get(f"{url}/ready").json() == {"status": "ready"}
        service.is_draining = True
        response = post(url, LONG)
        assert response.status_code == 503 and error_of(response)["code"] == "shutting_down"
        assert CLIENT.get(f"{url}/ready").status_code == 503
        assert CLIENT.get(f"{url}/health").status_code == 200
        go.set()
        assert text_of(whole.result()) == text_of(streamed.result())


def test_what_a_server_cuts_off_is_told_so(serving_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service({"tiny": serving_pair}, ServeSettings())
    with running(service) as url, slowed(monkeypatch), ThreadPoolExecutor(1) as pool:
        asked = pool.submit(post, url, LONG)
        engine: Engine = service.models["tiny"].engine
        until(lambda: engine.num_active == 1)
        engine.__exit__()
        assert asked.result().status_code == 503 and error_of(asked.result())["code"] == "shutting_down"
        assert post(url, LONG).status_code in (429, 503)


def test_an_image_and_earlier_turns_are_read_once(serving_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(serving_pair) as (url, service):
        tiny = service.models["tiny"]
        first = [user("What is it?", picture(0))]
        answer = ask(url, first, max_tokens=6)
        talk = [*first, said(text_of(answer)), user("Why?")]
        with monkeypatch.context() as blind:
            blind.setattr(tiny.engine.model, "image_prefix", None)  # no image is looked at again
            read: list[int] = []
            real = Active._run_rows

            def counting(self: Active, ids: Any, **given: Any) -> Any:
                read.append(max(map(len, ids)))
                return real(self, ids, **given)

            blind.setattr(Active, "_run_rows", counting)
            second = ask(url, talk, max_tokens=6)
            other = ask(url, [user("Something else?", picture(0))], max_tokens=2)
        cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert cached >= answer["usage"]["prompt_tokens"]  # all of the first turn
        assert max(read[:1]) <= second["usage"]["prompt_tokens"] - cached
        assert other["usage"]["prompt_tokens_details"]["cached_tokens"] == 5
        metrics = CLIENT.get(f"{url}/metrics").text
        assert 'visgraft_prefix_cache_hits_total{model="tiny"} 2.0' in metrics
        assert 'visgraft_prefix_cache_misses_total{model="tiny"} 1.0' in metrics
        assert 'visgraft_conversation_cache_hits_total{model="tiny"} 1.0' in metrics
        assert f'visgraft_prompt_tokens_total{{kind="cached",model="tiny"}} {cached + 5}.0' in metrics
        fresh = Service({"tiny": serving_pair}, ServeSettings(prefix_cache_bytes=0, conversation_cache_bytes=0))
        with running(fresh) as other_url:
            uncached = ask(other_url, talk, max_tokens=6)
            assert text_of(uncached) == text_of(second)
            assert uncached["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_what_is_kept_of_images_and_chats_is_bounded(serving_pair: Pair) -> None:
    with served(serving_pair, prefix_cache_bytes=30_000, conversation_cache_bytes=60_000) as (url, service):
        tiny = service.models["tiny"]
        for number in range(20):
            ask(url, [user("What is it?", picture(number))], max_tokens=3)
        assert 0 < tiny.engine.prefix_cache.size_bytes <= 30_000
        assert 0 < tiny.conversations.size_bytes <= 60_000
        kept = tiny.conversations._kept.values()
        assert tiny.conversations.size_bytes == sum(row.states.size_bytes for row in kept)
        assert f'visgraft_prefix_cache_bytes{{model="tiny"}} {float(tiny.engine.prefix_cache.size_bytes)}' in (
            CLIENT.get(f"{url}/metrics").text
        )


def test_metrics_count_requests_tokens_and_times(serving_pair: Pair) -> None:
    with served(serving_pair) as (url, _):
        ask(url, [user("Hello", picture(0))], max_tokens=3)
        chunks(url, [user("Hello")], max_tokens=2)
        post(url, {"model": "nobody", "messages": [user("Hello")]})
        text = CLIENT.get(f"{url}/metrics").text
    for line in (
        'visgraft_requests_total{endpoint="chat",model="tiny",status="200"} 2.0',
        'visgraft_requests_total{endpoint="chat",model="",status="404"} 1.0',
        'visgraft_answer_tokens_total{model="tiny"} 5.0',
        'visgraft_prompt_tokens_total{kind="image",model="tiny"} 5.0',
        'visgraft_first_token_seconds_count{model="tiny"} 2.0',
        'visgraft_request_seconds_count{endpoint="chat",model="tiny"} 2.0',
        'visgraft_slots{model="tiny"} 16.0',
        'visgraft_slots_used{model="tiny"} 0.0',
        'visgraft_queue{model="tiny"} 0.0',
    ):
        assert line in text, line


def test_two_models_are_served_apart(serving_pair: Pair) -> None:
    with running(Service({"a": serving_pair, "b": serving_pair}, ServeSettings())) as url:
        listed = CLIENT.get(f"{url}/v1/models").json()
        assert [each["id"] for each in listed["data"]] == ["a", "b"] and listed["object"] == "list"
        assert CLIENT.get(f"{url}/v1/models/b").json()["id"] == "b"
        assert error_of(CLIENT.get(f"{url}/v1/models/c"))["code"] == "model_not_found"
        texts = [text_of(post(url, {**LONG, "model": name, "max_tokens": 8}).json()) for name in ("a", "b")]
        assert texts[0] == texts[1]
