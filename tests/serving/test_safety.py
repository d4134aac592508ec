"""What a client must not get: files, inner addresses, other people's caches, traces, the server itself."""

import base64
import json
import logging
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.data.images.test_remote import give, serving
from tests.inference.asked import picture
from tests.serving.asked import CLIENT, Pair, ask, data_url, encoded, error_of, post, served, text_of, user
from visgraft.data.images import remote
from visgraft.errors import ConfigError
from visgraft.serving import Limits, read_api_keys
from visgraft.serving.settings import ApiKey, digest_of

KEYS = tuple(ApiKey(digest_of(key), name) for key, name in (("a-long-key", "first"), ("another-key", "second")))
TIGHT = Limits(
    max_body_bytes=60_000, max_images=2, max_pixels=3000, max_turns=3, max_characters=500, body_timeout_s=0.5
)


@pytest.fixture(scope="module")
def tight(serving_pair: Pair) -> Iterator[str]:
    with served(serving_pair, limits=TIGHT) as (url, _):
        yield url


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is opened or connected to while the test runs, beside the test's own requests."""
    names: list[str] = []
    for kind, name in ((Path, "open"), (Path, "stat"), (Image, "open")):
        real = getattr(kind, name)

        def noting(value: Any, *args: Any, real: Any = real, **settings: Any) -> Any:
            if isinstance(value, (str, Path)):
                names.append(str(value))
            return real(value, *args, **settings)

        monkeypatch.setattr(kind, name, noting)
    monkeypatch.setattr(remote, "download", lambda url, **_: names.append(url))
    return names


NAMED = [
    "/etc/passwd", "../../etc/passwd", "~/.ssh/id_rsa", "C:\\secrets.png", "cat.png", "file:///etc/passwd",
    "FILE:/etc/passwd", "file://localhost/etc/hosts", "gopher://127.0.0.1/", "ftp://example.org/cat.png",
    "http://127.0.0.1/cat.png", "http://[::1]/", "http://0x7f000001/", "http://2130706433/", "http://017700000001/",
    "http://localhost:22/", "https://169.254.169.254/latest/meta-data/", "HTTP://EXAMPLE.ORG/a.png", " /etc/passwd",
    "data:text/plain;base64,aGVsbG8=", "data:image/png,abc", "data:image/png;base64,*", "data:",
    "data:image/svg+xml;base64,PHN2Zy8+",
    "\x00", "javascript:alert(1)", "blob:x", "s3://bucket/cat.png", "//etc/passwd",
    base64.b64encode(encoded(Image.new("RGB", (64, 64)))).decode(),
]  # fmt: skip


@pytest.mark.parametrize("named", NAMED)
def test_nothing_but_images_in_data_urls_is_opened(tight: str, named: str, opened: list[str]) -> None:
    response = post(tight, {"model": "tiny", "messages": [user("What is it?", named)]})
    error = error_of(response)
    assert response.status_code == 400 and error["param"] == "messages.0.content.0.image_url.url"
    assert "/etc" not in error["message"] and "root" not in error["message"]
    assert opened == []


def png_of(width: int, height: int) -> bytes:
    """A file of a few hundred bytes that claims to be of any size."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(1000)))]
    packed = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


BAD_IMAGES = [
    (b"", "image is empty"),
    (b"hello", "not an image of a kind that is read: PNG, JPEG, WebP, GIF and BMP"),
    (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image of a kind"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n", "not an image of a kind"),
    (encoded(picture(0), "TIFF"), "not an image of a kind"),
    (encoded(picture(0))[:200], "image is truncated"),
    (b"\xff\xd8\xff" + bytes(50), "not an image"),
    (png_of(60_000, 60_000), "image has too many pixels"),
    (png_of(100, 100), "image has too many pixels (left for it are 3,000"),
    (png_of(0, 5), ""),
    (encoded(picture(0), "GIF", save_all=True, append_images=[picture(1)]), "animated"),
]


@pytest.mark.parametrize(("data", "reason"), BAD_IMAGES, ids=range(len(BAD_IMAGES)))
def test_bad_images_are_refused_with_the_reason(tight: str, data: bytes, reason: str) -> None:
    response = post(tight, {"model": "tiny", "messages": [user("What is it?", data_url(data))]})
    error = error_of(response)
    assert response.status_code == 400 and reason in error["message"], error
    assert error["param"] == "messages.0.content.0.image_url.url" and error["code"] in ("invalid_image", None)


LARGE: list[tuple[list[dict[str, Any]], int, str]] = [
    ([user("a" * 501)], 400, "got 501 characters, allowed are 500"),
    ([user("a", *[picture(0)] * 3)], 400, "got 3 images, allowed are 2"),
    ([user("a", Image.new("RGB", (50, 40)), Image.new("RGB", (50, 40)))], 400, "left for it are 1,000"),
    (
        [user("a"), {"role": "assistant", "content": "b"}] * 3 + [user("a")],
        400,
        "got 4 turns of the user, allowed are 3",
    ),
    ([user("a", "data:image/png;base64," + "A" * 70_000)], 413, "the body is larger than"),
]


@pytest.mark.parametrize(("messages", "status", "reason"), LARGE, ids=["text", "images", "pixels", "turns", "body"])
def test_every_limit_has_its_own_error(tight: str, messages: list[dict[str, Any]], status: int, reason: str) -> None:
    response = post(tight, {"model": "tiny", "messages": messages})
    assert response.status_code == status and reason in error_of(response)["message"]


MANY: list[tuple[dict[str, Any], str]] = [
    ({"messages": [user("a"), {"role": "assistant", "content": "b"}] * 10_000 + [user("a")]}, "at most 2000 items"),
    ({"messages": [1] * 1_000_000}, "messages.0"),
    ({"messages": [{"role": "user", "content": [1] * 1_000_000}]}, "messages.0.content.0"),
    ({f"name{number}": 1 for number in range(200_000)}, "names in one object, allowed are 64"),
    ({"logit_bias": {str(number): "x" for number in range(200_000)}}, "got 200,000 tokens, allowed are 1000"),
    ({"stop": [1] * 1_000_000}, "stop.0"),
]


@pytest.mark.parametrize(("change", "message"), MANY, ids=range(len(MANY)))
def test_a_million_wrong_things_are_refused_at_the_first(url: str, change: dict[str, Any], message: str) -> None:
    body = json.dumps({"model": "tiny", "messages": [user("a")], **change}).encode()
    began = time.monotonic()
    response = post(url, None, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400 and message in error_of(response)["message"]
    assert time.monotonic() - began < 5


def test_a_body_without_a_length_has_the_same_limit(tight: str) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 1000

    response = post(tight, None, content=pieces(), headers={"content-type": "application/json"})
    assert response.status_code == 413 and error_of(response)["code"] == "body_too_large"


def test_a_body_that_drips_is_given_up(tight: str) -> None:
    port = int(tight.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: 1000\r\n\r\n{{".encode())
        connection.settimeout(5)
        assert b" 408 " in connection.recv(1000)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None])
def test_other_content_types_are_refused(url: str, kind: str | None) -> None:
    # a page of another site may send these without asking the server first
    body = json.dumps({"model": "tiny", "messages": [user("a")]}).encode()
    response = post(url, None, content=body, headers={} if kind is None else {"content-type": kind})
    assert response.status_code == 415 and error_of(response)["code"] == "wrong_content_type"


def test_other_addresses_and_methods_are_told_in_the_same_form(url: str) -> None:
    assert error_of(CLIENT.get(f"{url}/v1/embeddings"))["message"] == "there is nothing at this address"
    assert CLIENT.get(f"{url}/v1/chat/completions").status_code == 405
    assert CLIENT.get(f"{url}/docs").status_code == CLIENT.get(f"{url}/static/../../etc/passwd").status_code == 404


# --- Who may come in


@pytest.fixture(scope="module")
def locked(serving_pair: Pair) -> Iterator[str]:
    with served(serving_pair, api_keys=KEYS) as (url, _):
        yield url


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer wrong", "Basic a-long-key", "a-long-key", "Bearer a-long-key2"]
)
def test_without_a_key_nobody_comes_in(locked: str, header: str | None) -> None:
    headers = {} if header is None else {"authorization": header}
    body = {"model": "tiny", "messages": [user("a")]}
    for response in (
        post(locked, body, headers=headers),
        CLIENT.get(f"{locked}/v1/models", headers=headers),
        CLIENT.get(f"{locked}/metrics", headers=headers),
        CLIENT.get(f"{locked}/openapi.json", headers=headers),
        CLIENT.get(f"{locked}/anything", headers=headers),
    ):
        assert response.status_code == 401 and error_of(response)["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"] == "Bearer"
    assert CLIENT.get(f"{locked}/health").status_code == CLIENT.get(f"{locked}/ready").status_code == 200


@pytest.mark.parametrize("key", ["a-long-key", "another-key"])
def test_every_key_comes_in(locked: str, key: str) -> None:
    body = {"model": "tiny", "messages": [user("a")], "max_tokens": 1}
    assert post(locked, body, headers={"authorization": f"Bearer {key}"}).status_code == 200


def test_what_one_key_has_asked_is_not_known_to_another(serving_pair: Pair) -> None:
    with served(serving_pair, api_keys=KEYS) as (url, service):
        cache = service.models["tiny"].engine.prefix_cache

        def cached(key: str, *messages: dict[str, Any]) -> int:
            body = {"model": "tiny", "messages": list(messages), "max_tokens": 2}
            found = post(url, body, headers={"authorization": f"Bearer {key}"}).json()
            return int(found["usage"]["prompt_tokens_details"]["cached_tokens"])

        question, other = user("What is it?", picture(0)), user("Why?", picture(0))
        assert cached("a-long-key", question) == 0 and cached("a-long-key", other) == 5
        assert cached("another-key", question) == 0  # neither the image nor the chat
        assert cached("another-key", other) == 5
        assert len(cache) == 2 and cached("a-long-key", question) > 5  # the chat itself


def test_a_name_that_points_here_from_elsewhere_is_refused(serving_pair: Pair) -> None:
    with served(serving_pair, host_names=("localhost", "127.0.0.1", "[::1]")) as (url, _):
        port = url.rpartition(":")[2]
        for name in (f"localhost:{port}", "127.0.0.1", f"LOCALHOST:{port}", f"[::1]:{port}"):
            assert CLIENT.get(f"{url}/v1/models", headers={"host": name}).status_code == 200
        for name in ("evil.example", f"evil.example:{port}", "localhost.evil.example", "[::2]", "127.0.0.1.nip.io"):
            response = CLIENT.get(f"{url}/v1/models", headers={"host": name})
            assert response.status_code == 403 and error_of(response)["code"] == "host_not_allowed"


def test_pages_of_other_origins_are_let_in_only_where_named(serving_pair: Pair, url: str) -> None:
    origin = {"origin": "https://example.org"}
    asking = {**origin, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    assert "access-control-allow-origin" not in CLIENT.get(f"{url}/health", headers=origin).headers
    assert CLIENT.options(f"{url}/v1/chat/completions", headers=asking).status_code == 405
    with served(serving_pair, cors_origins=("https://example.org",), api_keys=KEYS) as (open_url, _):
        response = CLIENT.options(f"{open_url}/v1/chat/completions", headers=asking)
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == "https://example.org"
        other = CLIENT.get(f"{open_url}/health", headers={"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "holds no key"), ("# only a comment\n\n", "holds no key"), ("short\n", "line 1 is no key"),
     ("good-long-key\nwith a blank\n", "line 2 is no key"), ("schlüssel-schlüssel", "line 1 is no key"),
     (None, "No such file")],
)  # fmt: skip
def test_a_key_file_that_holds_none_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "keys.txt"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_api_keys(path)


def test_a_key_file_holds_a_key_a_line(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    path.write_text("# ours\n first-long-key \n\nsecond-long-key\nfirst-long-key\n")
    keys = read_api_keys(path)
    assert [key.digest for key in keys] == [digest_of("first-long-key"), digest_of("second-long-key")]
    assert all("long" not in key.name for key in keys)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="no text file"):
        read_api_keys(path)


# --- Images of the web


@pytest.fixture
def web(serving_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server that may fetch from one host; `example.org` and this machine's own address count as public here."""
    real = socket.getaddrinfo

    def pretend(host: str, port: int, *args: Any, **settings: Any) -> Any:
        return real("127.0.0.1" if host.endswith("example.org") else host, port, *args, **settings)

    monkeypatch.setattr(socket, "getaddrinfo", pretend)
    monkeypatch.setattr(remote, "_is_public", lambda address: address == "127.0.0.1")
    hosts = ("pictures.example.org:*", "*.allowed.example.org:*")
    with served(serving_pair, image_hosts=hosts, limits=Limits(max_body_bytes=5000, fetch_timeout_s=0.7)) as (url, _):
        yield url


def fetched(url: str, address: str) -> httpx.Response:
    return post(url, {"model": "tiny", "messages": [user("What is it?", address)], "max_tokens": 6})


def test_an_image_of_an_allowed_host_is_what_it_shows(web: str) -> None:
    inlined = text_of(ask(web, [user("What is it?", picture(0))], max_tokens=6))
    with serving(give(encoded(picture(0)))) as (address, asked):
        port = address.rpartition(":")[2]
        for host in ("pictures.example.org", "a.b.allowed.example.org", "PICTURES.example.org"):
            assert text_of(fetched(web, f"http://{host}:{port}/cat.png").json()) == inlined
        both = user("What is it?", *[f"http://pictures.example.org:{port}/same.png"] * 2)
        ask(web, [both], max_tokens=1)
    assert asked == ["/cat.png"] * 3 + ["/same.png"]  # kept nowhere, but fetched once for one request


@pytest.mark.parametrize("host", ["example.org", "other.example.org", "127.0.0.1", "localhost", "2130706433",
                                  "0x7f000001", "[::1]", "allowed.example.org", "pictures.example.org@127.0.0.1",
                                  "127.0.0.1\\@pictures.example.org", "pictures.example.org.evil.example"])  # fmt: skip
def test_other_hosts_are_not_asked(web: str, host: str) -> None:
    with serving(give(encoded(picture(0)))) as (address, asked):
        response = fetched(web, f"http://{host}:{address.rpartition(':')[2]}/cat.png")
    assert response.status_code == 400 and asked == []
    assert error_of(response)["code"] == "invalid_image_url"


def test_redirects_lead_to_allowed_hosts_alone(web: str) -> None:
    with serving(give(encoded(picture(0)))) as (inner, asked):
        for target in (inner, inner.replace("127.0.0.1", "other.example.org"), "file:///etc/passwd", "gopher://x/"):
            with serving(give(b"", status=302, Location=f"{target}/secret.png")) as (outer, _):
                response = fetched(web, outer.replace("127.0.0.1", "pictures.example.org"))
            assert response.status_code == 400 and asked == [], target
        target = inner.replace("127.0.0.1", "pictures.example.org")
        with serving(give(b"", status=302, Location=f"{target}/cat.png")) as (outer, _):
            assert fetched(web, outer.replace("127.0.0.1", "pictures.example.org")).status_code == 200


def test_an_allowed_name_with_a_private_address_is_not_asked(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_is_public", lambda address: False)
    with serving(give(encoded(picture(0)))) as (address, asked):
        response = fetched(web, address.replace("127.0.0.1", "pictures.example.org"))
    assert asked == [] and error_of(response)["message"].endswith("image is at a private address")


def test_a_name_is_resolved_once(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    resolved, real = [], socket.getaddrinfo

    def counting(host: str, *args: Any, **settings: Any) -> Any:
        resolved.extend([host] if "example" in host else [])
        return real(host, *args, **settings)

    monkeypatch.setattr(socket, "getaddrinfo", counting)
    with serving(give(encoded(picture(0)))) as (address, _):
        assert fetched(web, address.replace("127.0.0.1", "pictures.example.org")).status_code == 200
    assert resolved == ["pictures.example.org"]


def test_what_is_too_large_or_too_slow_is_given_up(web: str) -> None:
    def drip(handler: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(40):
            handler.wfile.write(b"x")
            time.sleep(0.1)

    for answer, reason in (
        (give(bytes(6000)), "too large"),
        (drip, "took too long"),
        (give(b"", status=404), "HTTP 404"),
    ):
        with serving(answer) as (address, _):
            response = fetched(web, address.replace("127.0.0.1", "pictures.example.org"))
        assert response.status_code == 400 and reason in error_of(response)["message"]


def test_ports_other_than_the_webs_must_be_named(serving_pair: Pair) -> None:
    connections = remote._Connections((), hosts=["a.org", "b.org:8080", "*:443"], deadline=0, may_use_proxy=False)
    allowed = [("a.org", 80), ("a.org", 443), ("b.org", 8080), ("c.org", 443)]
    assert all(connections._may_ask(*each) for each in allowed)
    assert not any(connections._may_ask(*each) for each in [("a.org", 22), ("b.org", 80), ("c.org", 80)])


# --- What is told and logged


def test_a_mistake_of_the_server_is_told_without_its_trace(
    serving_pair: Pair, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(serving_pair) as (url, service):

        def fail(*_: Any, **__: Any) -> None:
            raise RuntimeError("secret path /srv/models")

        monkeypatch.setattr(service.models["tiny"], "prompt_of", fail)
        with caplog.at_level(logging.INFO, logger="visgraft.serving"):
            response = post(url, {"model": "tiny", "messages": [user("Hi")]})
        error = error_of(response)
        assert response.status_code == 500 and "secret" not in response.text and "Traceback" not in response.text
        assert response.headers["x-request-id"] in error["message"] and error["type"] == "server_error"
        assert "secret path" in caplog.text and response.headers["x-request-id"] in caplog.text
        monkeypatch.undo()
        assert post(url, {"model": "tiny", "messages": [user("Hi")], "max_tokens": 1}).status_code == 200


@pytest.mark.parametrize("log_content", [False, True])
def test_the_log_holds_texts_only_where_asked(
    serving_pair: Pair, caplog: pytest.LogCaptureFixture, log_content: bool
) -> None:
    with (
        served(serving_pair, api_keys=KEYS, log_content=log_content) as (url, _),
        caplog.at_level(logging.INFO, logger="visgraft.serving"),
    ):
        body = {"model": "tiny", "messages": [user("a private question", picture(0))], "max_tokens": 4}
        said = text_of(post(url, body, headers={"authorization": "Bearer a-long-key"}).json())
        assert post(url, {**body, "model": "x\ny"}, headers={"authorization": "Bearer a-long-key"}).status_code == 404
        time.sleep(0.1)
    assert ("a private question" in caplog.text) is (json.dumps(said)[1:-1] in caplog.text) is log_content
    assert "POST chat 200" in caplog.text and "model=tiny key=first" in caplog.text and "tokens=4" in caplog.text
    assert "iVBOR" not in caplog.text and "a-long-key" not in caplog.text and "x\ny" not in caplog.text


def test_a_client_that_leaves_while_it_sends_is_no_mistake_of_the_server(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    port = int(url.rpartition(":")[2])
    with caplog.at_level(logging.INFO, logger="visgraft.serving"):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: 1000\r\n\r\n{{".encode())
        end = time.monotonic() + 5
        while "gone=True" not in caplog.text and time.monotonic() < end:
            time.sleep(0.01)
    assert "gone=True" in caplog.text and "Traceback" not in caplog.text


def test_candidates_that_would_keep_others_waiting_are_refused(url: str) -> None:
    body = {"model": "tiny", "messages": [user("Hello")], "candidates": ["a" * 5001, "b" * 5001]}
    response = post(url, body, path="/v1/score")
    assert response.status_code == 400 and "got 10,002 characters in all" in error_of(response)["message"]


def test_positions_of_a_request_are_bounded(serving_pair: Pair) -> None:
    with served(serving_pair, max_positions=40) as (url, _):
        response = post(url, {"model": "tiny", "messages": [user("a long question " * 5)]})
        assert response.status_code == 400 and "max_positions: 40 leaves no room" in error_of(response)["message"]
