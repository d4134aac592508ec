"""Facts that took long to find out are kept; a cache that is damaged or cannot be written to changes nothing."""

from pathlib import Path
from typing import Any

import pytest

from visgraft import disk_cache
from visgraft.disk_cache import keep_facts


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VISGRAFT_CACHE", str(tmp_path))
    monkeypatch.setattr(disk_cache, "_FACTS_WORTH_KEEPING_S", 0.0)
    return tmp_path / "facts"


def made(calls: list[str], name: str = "found") -> Any:
    def make() -> dict[str, Any]:
        calls.append(name)
        return {"width": 3, "grid": [2, 2]}

    return make


def test_facts_are_found_out_once_for_each_fingerprint(kept: Path) -> None:
    calls: list[str] = []
    for fingerprint in ("a", "a", "b"):
        assert keep_facts(made(calls), fingerprint=fingerprint) == {"width": 3, "grid": [2, 2]}
    assert len(calls) == len(list(kept.iterdir())) == 2


@pytest.mark.parametrize("content", ["", "{", "[1]", "\N{SNOWMAN}", "[" * 100_000])
def test_what_is_damaged_is_found_out_again(kept: Path, content: str) -> None:
    calls: list[str] = []
    keep_facts(made(calls), fingerprint="a")
    [path] = kept.iterdir()
    path.write_text(content, encoding="utf-16")
    assert keep_facts(made(calls), fingerprint="a")["width"] == 3
    assert len(calls) == 2
    keep_facts(made(calls), fingerprint="a")
    assert len(calls) == 2


def test_a_cache_that_takes_nothing_is_none(kept: Path) -> None:
    kept.write_text("a file where the folder would be")
    calls: list[str] = []
    for _ in range(2):
        assert keep_facts(made(calls), fingerprint="a")["width"] == 3
    assert len(calls) == 2


def test_what_is_quickly_found_out_is_not_kept(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_cache, "_FACTS_WORTH_KEEPING_S", 60.0)
    keep_facts(made([]), fingerprint="a")
    assert not kept.exists()
