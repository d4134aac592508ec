"""What the Hub reads of the environment holds in a real process: cache, offline mode, token; a gate names its page."""

import http.server
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.cli.conftest import Visgraft

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """A stand-in for the Hub that shuts its gate to everybody, and remembers who knocked."""

    address: str
    tokens: list[str | None] = field(default_factory=list)


@pytest.fixture
def gated() -> Iterator[Hub]:
    hub = Hub("")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hub.tokens.append(self.headers.get("Authorization"))
            self.send_response(403)
            self.send_header("X-Error-Code", "GatedRepo")
            self.send_header("X-Error-Message", "Access to this model is restricted")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815 (the server looks it up by this name)

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        hub.address = f"http://127.0.0.1:{running.server_port}"
        yield hub
        running.shutdown()


def show(recipe: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    # A whole new interpreter each: the Hub's client reads its settings as it is imported.
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    command = [sys.executable, "-m", "visgraft", "show", str(recipe)]
    return subprocess.run(command, capture_output=True, text=True, env={**kept, **environment})


def recipe_of(folder: Path, vision: str, language: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(f"model: {{vision: {vision}, language: {language}}}\n")
    return path


@pytest.mark.slow
def test_hf_home_and_offline_mode_are_honoured(visgraft: Visgraft, folder: Path, tmp_path: Path) -> None:
    for name in ("tiny-clip", "tiny-llama"):
        cached = tmp_path / "home" / "hub" / f"models--someone--{name}"
        shutil.copytree(folder / name, cached / "snapshots" / COMMIT)
        (cached / "refs").mkdir()
        (cached / "refs" / "main").write_text(COMMIT)
    recipe = recipe_of(tmp_path, "someone/tiny-clip", "someone/tiny-llama")
    shown = show(recipe, HF_HOME=str(tmp_path / "home"), HF_HUB_OFFLINE="1")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "someone/tiny-llama" in shown.stdout
    missing = visgraft("show", recipe)  # this process has another home, and is offline too
    assert (missing.status, missing.out) == (2, "")
    assert missing.err == (
        "error: someone/tiny-clip: not found on the Hugging Face Hub, in its local cache or as a folder (the Hub was "
        "not asked: there is no network, or HF_HUB_OFFLINE is set); check the spelling and the network, run `hf auth "
        "login` if it is private, or give a local folder\n"
    )


@pytest.mark.slow
def test_a_gated_model_is_asked_for_with_the_token_and_its_page_is_named(tmp_path: Path, gated: Hub) -> None:
    recipe = recipe_of(tmp_path, "someone/gated", "someone/tiny-llama")
    settings = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": gated.address, "HF_TOKEN": "hf_mine", "no_proxy": "127.0.0.1"}
    shown = show(recipe, **settings)
    assert (shown.returncode, shown.stdout) == (2, "")
    assert shown.stderr == (
        "error: someone/gated is gated: accept its licence at https://huggingface.co/someone/gated, then run `hf auth "
        "login`\n"
    )
    assert "Bearer hf_mine" in gated.tokens
