import socket
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from visgraft.config import DataSettings
from visgraft.data.images import remote
from visgraft.data.images.opening import image_key, open_image
from visgraft.data.images.remote import RemoteImage
from visgraft.errors import BadSampleError, ConfigError

LOCAL = ("127.0.0.1",)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VISGRAFT_CACHE", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8))


@pytest.fixture
def png(image):
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@contextmanager
def serving(answer):
    """Answer requests on this machine; gives the address and a list of the paths that were asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            answer(self)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def give(data, *, status=200, length=None, **headers):
    def answer(handler):
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(data) if length is None else length))
        handler.end_headers()
        handler.wfile.write(data)

    return answer


def reason(url, hosts=LOCAL):
    with pytest.raises(BadSampleError) as caught:
        open_image(RemoteImage(url, hosts))
    return str(caught.value)


def test_an_image_of_the_web_is_downloaded_once(image, png):
    with serving(give(png)) as (address, asked):
        for _ in range(2):
            assert np.array_equal(open_image(RemoteImage(f"{address}/a b/é.png?x=1", LOCAL)), image)
    assert asked == ["/a%20b/%C3%A9.png?x=1"]


def test_what_cannot_be_downloaded_is_bad(png, monkeypatch):
    with serving(give(b"", status=404)) as (address, _):
        assert reason(f"{address}/a.png") == "image could not be downloaded (HTTP 404)"
    assert reason(f"{address}/a.png") == "image could not be downloaded: the transfer failed"  # nobody there
    assert reason("http://[::1") == reason("http:///a.png") == "image could not be downloaded: the transfer failed"
    monkeypatch.setattr(remote, "_MAX_BYTES", 50)
    with serving(give(png)) as (address, _):
        assert reason(f"{address}/a.png") == "image file is too large"


def test_an_answer_that_is_cut_off_is_bad_and_asked_for_again(image, png):
    answers = [give(png[:-30], length=len(png)), give(png)]
    with serving(lambda handler: answers.pop(0)(handler)) as (address, asked):
        assert reason(f"{address}/a.png") == "image could not be downloaded: the transfer was cut off"
        assert np.array_equal(open_image(RemoteImage(f"{address}/a.png", LOCAL)), image)
    assert len(asked) == 2


@pytest.mark.parametrize("page", [b"<html>please log in</html>", b"", b"cut"])
def test_only_what_opens_as_an_image_is_kept(image, png, page):
    page = png[:-30] if page == b"cut" else page
    answers = [give(page), give(page), give(png), give(page)]
    with serving(lambda handler: answers.pop(0)(handler)) as (address, asked):
        for _ in range(2):
            assert reason(f"{address}/a.png") in ("not an image", "image file is empty", "image is truncated")
        for _ in range(2):
            assert np.array_equal(open_image(RemoteImage(f"{address}/a.png", LOCAL)), image)
    assert len(asked) == 3


@pytest.mark.parametrize("part", ["header", "body"])
def test_a_server_that_drips_is_not_waited_for_longer_than_the_deadline(png, part, monkeypatch):
    monkeypatch.setattr(remote, "_DEADLINE_S", 0.6)

    def drip(handler):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\nX: ")
        with suppress(OSError):  # nobody listens any more
            for byte in b"\r\n\r\n" + bytes(200) if part == "body" else b"y" * 200:
                handler.wfile.write(bytes([byte]))
                time.sleep(0.05)

    with serving(drip) as (address, _):
        started = time.monotonic()
        assert reason(f"{address}/a.png") == "image could not be downloaded: the transfer took too long"
        assert time.monotonic() - started < 5


PRIVATE = "image is at a private address and data.allow_private_hosts does not name its host"


def test_private_addresses_are_refused_unless_their_host_is_named(png, monkeypatch):
    with serving(give(png)) as (address, asked):
        port = address.rpartition(":")[2]
        for host in ("127.0.0.1", "localhost", "0.0.0.0", "127.1", "[::1]", "[::ffff:127.0.0.1]", "2130706433"):
            assert reason(f"http://{host}:{port}/a.png", ()) == PRIVATE, host
        assert asked == []
        assert open_image(RemoteImage(f"http://localhost:{port}/a.png", ("LOCALHOST",))).size == (8, 6)
        assert len(asked) == 1


@pytest.mark.parametrize(
    "address, is_public",
    [
        ("8.8.8.8", True), ("10.0.0.1", False), ("169.254.169.254", False), ("172.16.0.1", False),
        ("192.168.1.1", False), ("100.64.0.1", False), ("0.0.0.0", False),
        ("224.0.0.1", False), ("fe80::1%eth0", False), ("fd00::1", False),
        ("2001:4860:4860::8888", True), ("64:ff9b::7f00:1", False), ("64:ff9b::808:808", True),
        ("64:ff9b:1::808:808", False), ("::10.0.0.1", False), ("::1", False), ("::", False),
        ("::ffff:10.0.0.1", False), ("2002:7f00:1::", False),
    ],
)  # fmt: skip
def test_an_address_of_the_open_net_is_known_in_every_form(address, is_public):
    assert remote._is_public(address) is is_public


def test_neither_a_name_nor_a_redirect_leads_to_a_private_address(png, monkeypatch):
    resolve = socket.getaddrinfo

    def pretend(host, port, **settings):
        return resolve("127.0.0.1" if host == "pictures.example" else host, port, **settings)

    monkeypatch.setattr(socket, "getaddrinfo", pretend)
    with (
        serving(give(png)) as (inner, asked_inside),
        serving(give(b"", status=302, Location=f"{inner}/a.png")) as (
            outer,
            asked,
        ),
    ):
        port = outer.rpartition(":")[2]
        assert reason(f"http://pictures.example:{port}/a.png", ()) == PRIVATE
        assert reason(f"http://pictures.example:{port}/a.png", ("pictures.example",)) == PRIVATE
        assert (len(asked), asked_inside) == (1, [])
        both = ("pictures.example", "127.0.0.1")
        assert open_image(RemoteImage(f"http://pictures.example:{port}/a.png", both)).size == (8, 6)


def test_a_redirect_to_a_file_is_not_followed(tmp_path, png):
    (tmp_path / "secret.png").write_bytes(png)
    with serving(give(b"", status=302, Location=f"file://{tmp_path}/secret.png")) as (address, _):
        assert reason(f"{address}/a.png") == "image could not be downloaded (HTTP 302)"


def test_a_proxy_is_used_and_leads_to_no_private_address_either(png, monkeypatch):
    with serving(give(png)) as (address, asked):
        monkeypatch.setenv("http_proxy", address)
        assert open_image(RemoteImage("http://pictures.example/a.png")).size == (8, 6)
        assert asked == ["http://pictures.example/a.png"]
        assert reason("http://10.0.0.1/a.png", ()) == PRIVATE


def test_what_a_recipe_allows_does_not_change_which_image_it_is():
    one, two = RemoteImage("https://example.org/a.png"), RemoteImage("https://example.org/a.png", ("x",))
    assert image_key(one, by_content=False) == image_key(two, by_content=False)


def test_hosts_are_named_by_their_names_alone():
    assert DataSettings(allow_private_hosts=("images.corp", "10.0.0.7")).allow_private_hosts[1] == "10.0.0.7"
    with pytest.raises(ConfigError, match=r"data.allow_private_hosts: got 'http://10.0.0.7/', need names of hosts"):
        DataSettings(allow_private_hosts=("http://10.0.0.7/",))
