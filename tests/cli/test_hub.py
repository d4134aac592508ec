"""Whether the Hub is asked for, and what is done where it does not answer."""

import http.server
import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from visgraft.cli import hub
from visgraft.config import load_recipe


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A process that has not met the Hub's library yet."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "")  # so that it is put back, whatever a test does
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.delitem(sys.modules, "huggingface_hub", raising=False)
    return monkeypatch


@pytest.fixture
def server() -> Iterator[str]:
    """A server that answers every HEAD with 404, as the Hub may."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_a_hub_that_answers_is_used(fresh: pytest.MonkeyPatch, server: str) -> None:
    fresh.setenv("HF_ENDPOINT", server)
    fresh.setenv("no_proxy", "127.0.0.1")
    hub.go_offline_without_network(["openai/clip"])
    assert "HF_HUB_OFFLINE" not in os.environ


def test_without_an_answer_the_cache_is_used_at_once(fresh: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        fresh.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        fresh.setenv("no_proxy", "127.0.0.1")
        hub.go_offline_without_network(["openai/clip"])
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_the_hub_is_not_asked_for_without_need(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail() -> bool:
        raise AssertionError("asked")

    fresh.setattr(hub, "_can_reach_hub", fail)
    hub.go_offline_without_network(["starter:vision", str(tmp_path), "./here", "~/there", "/no/such"])
    fresh.setenv("HF_HUB_OFFLINE", "0")  # a person's own word
    hub.go_offline_without_network(["openai/clip"])
    with pytest.raises(AssertionError, match="asked"):
        fresh.delenv("HF_HUB_OFFLINE")
        hub.go_offline_without_network(["openai/clip"])


def test_the_names_of_a_recipe_and_of_a_model_are_what_loading_reads(tmp_path: Path) -> None:
    recipe = load_recipe({"model": {"vision": "a/b", "language": "c/d"}})
    assert hub.names_of_recipe(recipe) == ["a/b", "c/d"]
    parts = {"vision": {"name": "a/b", "stored": "none"}, "language": {"name": "c/d", "stored": "all"}}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"parts": parts}))
    assert hub.names_of_model(str(tmp_path)) == ["a/b"]
    assert hub.names_of_recipe(load_recipe({"model": {"start_from": str(tmp_path)}})) == ["a/b"]
    assert hub.names_of_model("someone/model") == ["someone/model"]
