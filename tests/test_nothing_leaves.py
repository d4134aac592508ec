"""Nothing leaves the machine: with all but the loopback blocked, commands work on local folders; telemetry is off."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from tests.convert.made_llava import save_llava
from tests.training.tiny import save_data
from visgraft.telemetry import SWITCHES, switch_off

# Runs the commands that it is given, and writes down whoever wants to go beyond the machine itself.
BLOCKED = """
import json, os, signal, socket, sys, threading, time, urllib.request

log, commands, port, question = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3], sys.argv[4].encode()
HERE = ("127.0.0.1", "::1", "localhost", None, "", b"localhost", "0.0.0.0")

def refuse(what, place):
    with open(log, "a") as file:
        file.write(f"{what} {place}\\n")
    raise ConnectionRefusedError(f"{what} {place} is blocked")

def guarded(name, own):
    def connect(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in HERE:
            refuse(name, address)
        return own(self, address)
    return connect

class Guarded(socket.socket):
    connect = guarded("connect", socket.socket.connect)
    connect_ex = guarded("connect_ex", socket.socket.connect_ex)

look_up = socket.getaddrinfo
def getaddrinfo(host, *rest, **named):
    if host not in HERE:
        refuse("getaddrinfo", host)
    return look_up(host, *rest, **named)

socket.socket, socket.getaddrinfo = Guarded, getaddrinfo

def ask():
    for _ in range(600):
        time.sleep(0.1)
        try:
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/v1/chat/completions", question, {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=60) as response:
                print("SERVED", json.load(response)["choices"][0]["message"]["role"], flush=True)
            break
        except OSError:
            pass
    os.kill(os.getpid(), signal.SIGINT)

from visgraft.cli.program import main
for command in commands:
    if command[0] == "serve":
        threading.Thread(target=ask, daemon=True).start()
    status = main(command)
    print("DONE", command[0], status, flush=True)
"""


@pytest.mark.slow
def test_with_sockets_blocked_every_command_works_on_local_folders(tmp_path: Path) -> None:
    save_llava(tmp_path / "llava")
    data = save_data(tmp_path / "data", num_images=4)
    others = save_data(tmp_path / "others", num_images=2, first=100)
    Image.new("RGB", (32, 32), (200, 30, 30)).save(tmp_path / "red.png")
    recipe = {
        "model": {"start_from": str(tmp_path / "model")},
        "train": {"max_steps": 1, "text_tokens_per_step": 100, "precision": "fp32"},
        "data": {"train": [{"source": "folder", "path": data}], "test": [{"source": "folder", "path": others}]},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = str(taken.getsockname()[1])
    run = str(tmp_path / "run")
    commands = [
        ["import", str(tmp_path / "llava"), str(tmp_path / "model")],
        ["show", str(tmp_path / "recipe.yaml")],
        ["licences", str(tmp_path / "recipe.yaml")],
        ["train", str(tmp_path / "recipe.yaml"), "-o", run],
        ["ask", run, str(tmp_path / "red.png"), "What is it?"],
        [
            "evaluate",
            run,
            "--data",
            str(tmp_path / "recipe.yaml"),
            "--metrics",
            "exact_match",
            "-o",
            str(tmp_path / "e"),
        ],
        ["serve", run, "--host", "127.0.0.1", "--port", port],
    ]
    question = {"model": "run", "max_tokens": 2, "messages": [{"role": "user", "content": "What is it?"}]}
    kept = {key: value for key, value in os.environ.items() if key not in ("HF_HUB_OFFLINE", *SWITCHES)}
    script = tmp_path / "blocked.py"
    script.write_text(BLOCKED)
    log = tmp_path / "log"
    found = subprocess.run(
        [sys.executable, str(script), str(log), json.dumps(commands), port, json.dumps(question)],
        capture_output=True, text=True, check=False, env=kept, cwd=tmp_path, timeout=300,
    )  # fmt: skip
    assert not log.exists(), log.read_text()
    said = found.stdout + found.stderr
    for command in commands[:-1]:
        assert f"DONE {command[0]} 0" in found.stdout, said
    assert "SERVED assistant" in found.stdout, said
    assert f"licence: data.train.0 {data}: no card says its licence" in found.stderr, said


def test_telemetry_is_off_unless_the_user_has_set_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as constants

    for name in SWITCHES:
        assert name in os.environ  # the package is imported
        monkeypatch.delenv(name)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", False)
    switch_off()
    assert {name: os.environ[name] for name in SWITCHES} == SWITCHES
    assert constants.HF_HUB_DISABLE_TELEMETRY is True
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "0")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", False)
    switch_off()
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "0" and constants.HF_HUB_DISABLE_TELEMETRY is False
