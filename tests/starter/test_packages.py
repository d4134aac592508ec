"""npm's tarballs are fetched as npm would fetch them, without npm."""

import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from visgraft.errors import MissingAssetError
from visgraft.starter.packages import Package, fetch, unpack


def tarball() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        entry = tarfile.TarInfo("package/greeting.txt")
        entry.size = 5
        archive.addfile(entry, io.BytesIO(b"hello"))
    return buffer.getvalue()


CONTENT = tarball()
TINY = Package(
    name="tiny",
    version="1.0.0",
    file="tiny-1.0.0.tgz",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    megabytes=0.1,
    license="MIT",
    index="npm",
)


class Registry(BaseHTTPRequestHandler):
    """Has one file, for those who know the word."""

    def do_GET(self) -> None:
        known = self.path == "/npm/tiny/-/tiny-1.0.0.tgz" and self.headers["Authorization"] == "Bearer word"
        self.send_response(200 if known else 404)
        self.end_headers()
        self.wfile.write(CONTENT if known else b"")

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    for name in ("npm_config_registry", "NPM_CONFIG_REGISTRY"):
        monkeypatch.delenv(name, raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    address = f"127.0.0.1:{server.server_port}/npm"
    settings = tmp_path / "npmrc"
    settings.write_text(f"; mine\nregistry = http://{address}/\n//{address}/:_authToken=${{TINY_WORD}}\n")
    monkeypatch.setenv("NPM_CONFIG_USERCONFIG", str(settings))
    monkeypatch.setenv("TINY_WORD", "word")
    yield f"http://{address}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_tarball_comes_from_the_registry_that_npm_is_set_to_once(registry: str, tmp_path: Path) -> None:
    said: list[str] = []
    file = fetch(TINY, cache=tmp_path / "cache", say=said.append)
    assert (
        said == ["downloading tiny 1.0.0 (0.1 MB)"] and fetch(TINY, cache=tmp_path / "cache", say=said.append) == file
    )
    assert len(said) == 1
    unpack(file, tmp_path / "unpacked")
    assert (tmp_path / "unpacked/package/greeting.txt").read_text() == "hello"


def test_the_environment_stands_above_the_file(registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "npmrc").write_text("registry=http://127.0.0.1:9/nobody\n")
    monkeypatch.setenv("npm_config_registry", registry)
    with pytest.raises(MissingAssetError, match=r"tiny 1.0.0 could not be downloaded: HTTP Error 404"):
        fetch(TINY, cache=tmp_path / "cache")


def test_a_failed_download_says_both_ways_out_and_leaves_nothing(registry: str, tmp_path: Path) -> None:
    (tmp_path / "npmrc").write_text("registry=http://127.0.0.1:9/nobody\n")
    with pytest.raises(
        MissingAssetError, match=r"refused.*\n.*npm's settings.*, or put tiny-1.0.0.tgz into .* by hand"
    ):
        fetch(TINY, cache=tmp_path / "cache")
    assert list((tmp_path / "cache/downloads").iterdir()) == []


def test_another_file_than_expected_is_not_kept(registry: str, tmp_path: Path) -> None:
    other = Package(**{**vars(TINY), "sha256": "0" * 64})
    with pytest.raises(MissingAssetError, match="The package index served another file; do not use it"):
        fetch(other, cache=tmp_path / "cache")
    assert list((tmp_path / "cache/downloads").iterdir()) == []
