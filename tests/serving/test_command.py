"""`visgraft serve` as people meet it: what it prints, what it refuses, how it ends."""

import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.inference.asked import picture
from tests.serving.asked import CLIENT, Pair, ask, error_of, post, text_of, user
from tests.warm_python import warm_python
from visgraft import Sample, Turn
from visgraft.cli import main
from visgraft.inference import answer


@pytest.fixture(scope="module")
def folder(serving_pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder called `tiny`."""
    folder = tmp_path_factory.mktemp("command") / "tiny"
    for part in serving_pair:
        part.save_pretrained(folder)
    return folder


@contextmanager
def started(*args: object) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run the command; gives the address that it prints when it is ready."""
    command = [*warm_python(), "-m", "visgraft", "serve", *map(str, args), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        found = re.fullmatch(r"serving on (http://[\w.:\[\]]+)\n", line)
        assert found, line + process.stderr.read()
        yield found[1], process
    finally:
        process.terminate()
        process.communicate(timeout=60)


@pytest.mark.slow
def test_a_server_says_where_it_is_answers_and_ends_with_what_runs(folder: Path, serving_pair: Pair) -> None:
    with started(folder, "--precision", "fp32") as (url, process):
        sample = Sample(images=[picture(0)], dialogs=[[Turn("What is it?", "")]])
        wanted = answer(*serving_pair, [sample], max_new_tokens=12)[0]
        assert text_of(ask(url, [user("What is it?", picture(0))], max_tokens=12)) == wanted
        body = {"model": "tiny", "messages": [user("Hello")], "max_tokens": 100, "logit_bias": {"2": -100}, "n": 8}
        answers: list[int] = []
        asking = threading.Thread(target=lambda: answers.append(post(url, body).status_code))
        asking.start()
        while 'visgraft_slots_used{model="tiny"} 0.0' in CLIENT.get(f"{url}/metrics").text:
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        while CLIENT.get(f"{url}/ready").status_code == 200:
            time.sleep(0.005)
        refused = post(url, body)
        asking.join()
        assert answers == [200]
        assert refused.status_code == 503 and error_of(refused)["code"] == "shutting_down"
        assert process.wait(timeout=30) == 0
        assert process.stderr is not None
        log = process.stderr.read()
    assert "Traceback" not in log and "POST chat 200" in log and "are being finished" in log
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])))


@pytest.mark.slow
def test_ctrl_c_ends_a_server_and_twice_at_once(folder: Path) -> None:
    with started(f"a={folder}", f"b={folder}", "--max-new-tokens", "100000") as (url, process):
        assert [each["id"] for each in CLIENT.get(f"{url}/v1/models").json()["data"]] == ["a", "b"]
        body = {"model": "a", "messages": [user("Hello")], "max_tokens": 110, "logit_bias": {"2": -100}, "n": 8}
        port = int(url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as connection:
            data = json.dumps(body).encode()
            head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
            time.sleep(0.05)
            for _ in range(2):
                process.send_signal(signal.SIGINT)
                time.sleep(0.02)
            assert process.wait(timeout=30) == 130
            assert process.stderr is not None and "Traceback" not in process.stderr.read()


REFUSED = [
    (["{folder}", "--host", "0.0.0.0"], "--host 0.0.0.0: everybody who reaches this address could use the models"),
    (["{folder}", "--host", "no.such.host.invalid", "--api-key-file", "{keys}"], "there is no such address here"),
    (["{folder}", "--host", "8.8.8.8", "--api-key-file", "{keys}"], "name an address of this machine"),
    (["{folder}", "--api-key-file", "{folder}/none"], "none: No such file or directory; write one key a line"),
    (["{folder}", "--api-key-file", "{folder}"], "Is a directory; write one key a line"),
    (["{folder}", "--port", "{port}"], "--port {port}: taken already; name another one, or 0 for a free one"),
    (["{folder}", "--port", "70000"], "--port"),
    (["{folder}", "{folder}"], "this model is called tiny, and another one too; name it yourself: some-name="),
    (["={folder}"], "this model has no name"),
    (["no/such/model", "--port", "0"], "no/such/model"),
    (["{folder}", "--max-queue", "0"], "--max-queue"),
    (["{folder}", "--cors-origin", "example.org"], "need scheme and host alone, such as https://example.org"),
    (["{folder}", "--runs", "{folder}/none"], "there is no such folder"),
    (["{folder}", "--evaluations", "{folder}/none"], "there is no such folder"),
    (["{folder}", "--votes", "{folder}"], "this is a folder; name a file, such as votes.jsonl"),
    ([], "Missing argument"),
]  # fmt: skip


@pytest.mark.parametrize(("args", "message"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_served_is_told_in_a_line(
    folder: Path, tmp_path: Path, args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("a-key-of-the-test\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        names = {"folder": folder, "keys": keys, "port": taken.getsockname()[1]}
        status = main(["serve", *(arg.format(**names) for arg in args)])
        told = capsys.readouterr()
    assert status == 2 and told.out == ""
    assert message.format(**names) in told.err and told.err.startswith("error:") and "Traceback" not in told.err


def test_an_unreadable_key_file_is_told(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("a-key-of-the-test\n")
    keys.chmod(0)
    if os.access(keys, os.R_OK):
        pytest.skip("root may read everything")
    assert main(["serve", str(folder), "--api-key-file", str(keys)]) == 2
    assert "Permission denied" in capsys.readouterr().err


def test_a_run_is_called_by_its_folder(folder: Path, tmp_path: Path) -> None:
    from visgraft.cli.serve import _names

    run = tmp_path / "my-run"
    (run / "model").mkdir(parents=True)
    (run / "recipe.yaml").write_text("{}")
    assert _names([str(run / "model"), str(folder), "org/name", f"x={folder}"]) == {
        "my-run": str(run / "model"),
        "tiny": str(folder),
        "org/name": "org/name",
        "x": str(folder),
    }


def test_the_address_that_it_listens_at_is_a_name_of_the_server() -> None:
    from visgraft.cli.serve import _host_names

    assert _host_names("127.0.0.5", ["Proxy.example"]) == (
        "localhost",
        "127.0.0.1",
        "[::1]",
        "127.0.0.5",
        "proxy.example",
    )
    assert _host_names("::1", []) == ("localhost", "127.0.0.1", "[::1]")
