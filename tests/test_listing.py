"""What another process takes away while a folder is looked through is not there, and no error."""

from __future__ import annotations

import ast
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from visgraft import listing as module
from visgraft.annotate.claims import is_anything_held
from visgraft.atomic import read_records
from visgraft.cli.cache import _size
from visgraft.compare.collect import find_runs
from visgraft.data.images.feature_cache import FeatureCache
from visgraft.errors import CheckpointError
from visgraft.evaluation.running import REQUEST, choose_folder
from visgraft.inference.identity import model_checksum
from visgraft.listing import changed_at, content_of, listing
from visgraft.runs import Run
from visgraft.serving.page.evaluations import EvaluationsView
from visgraft.serving.page.runs import RunsView

PACKAGE = Path(module.__file__).parent
SHARED = ("runs.py", "folder_lock.py", "compare", "serving", "annotate", "experiment", "evaluation")
OF_ONE_PROCESS = {  # files of the package, and the user's images
    "serving/page/__init__.py",
    "evaluation/benchmarks.py",
    "annotate/collection.py",
}


def names(found: Any, folder: Path) -> list[str]:
    return [each.path.relative_to(folder).as_posix() for each in found]


def test_patterns_are_those_of_glob(tmp_path: Path) -> None:
    for name in ("a.json", ".b.new", "one/a.json", "one/two/a.json", "one/two/.c.new"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    for pattern in ("*", "*.json", "*/*.json", "*/*/a.json", "**/*", "**/*.json", "**/.*.new", "missing/*"):
        wanted = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.glob(pattern))
        assert sorted(names(listing(tmp_path, pattern), tmp_path)) == wanted
    assert listing(tmp_path / "nowhere") == listing(tmp_path / "a.json") == []
    assert {found.path.name: (found.is_file, found.is_folder) for found in listing(tmp_path)} == {
        ".b.new": (True, False), "a.json": (True, False), "one": (False, True)}  # fmt: skip


def test_one_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    assert (changed_at(path), content_of(path), list(read_records(path))) == (0.0, None, [])
    path.write_bytes(b"abc")
    assert (changed_at(path), content_of(path, start=1)) == (path.stat().st_mtime, b"bc")


def test_folders_that_come_and_go_while_they_are_looked_through(tmp_path: Path) -> None:
    is_over = threading.Event()

    def work() -> None:
        while not is_over.is_set():
            for number in range(20):
                (tmp_path / f"{number}" / "deep").mkdir(parents=True)
                (tmp_path / f"{number}" / "deep" / "file").touch()
            for number in range(20):
                shutil.rmtree(tmp_path / f"{number}")

    worker = threading.Thread(target=work)
    worker.start()
    try:
        end, counts = time.monotonic() + 20, set()
        while len(counts) < 5 and time.monotonic() < end:
            counts.add(len(listing(tmp_path, "**/*")))
    finally:
        is_over.set()
        worker.join()
    assert len(counts) == 5


@contextmanager
def taken_away(monkeypatch: pytest.MonkeyPatch, path: Path) -> Iterator[None]:
    """Let a file or folder go away as soon as it was listed."""
    scandir = os.scandir

    @contextmanager
    def listed(folder: Any) -> Iterator[Any]:
        with scandir(folder) as opened:
            entries = list(opened)
        if folder == path.parent and path.exists():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        yield entries

    with monkeypatch.context() as patched:
        patched.setattr(module.os, "scandir", listed)
        yield
    assert not path.exists()


def run_folder(folder: Path) -> Path:
    (folder / "checkpoints" / "step-1").mkdir(parents=True)
    (folder / "recipe.yaml").write_text("model: {vision: a, language: b}\n")
    (folder / "sample_prompts").mkdir()
    (folder / "sample_prompts" / "0.jpg").write_bytes(b"x")
    return folder


@pytest.mark.parametrize("gone", ["runs/a", "runs/a/recipe.yaml", "runs/a/sample_prompts/0.jpg"])
def test_runs_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: str) -> None:
    folder = tmp_path / "runs"
    run_folder(folder / "a")
    run_folder(folder / "b")
    view = RunsView(folder)
    with taken_away(monkeypatch, tmp_path / gone):
        if gone.endswith("jpg"):
            assert view.pictures("a") == {}
        else:
            assert [found.folder.name for found in find_runs([folder])] == ["b"]
    assert {told["name"] for told in view.listing()} == ({"a", "b"} if gone.endswith("jpg") else {"b"})


def test_checkpoints_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(run_folder(tmp_path / "run"))
    (run.folder / "checkpoints" / "step-2").mkdir()
    with taken_away(monkeypatch, run.folder / "checkpoints" / "step-1"):
        assert list(run.checkpoints()) == [2]


def test_the_evaluations_of_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "scores.json").write_text('{"models": []}')
    for gone in (tmp_path / "a" / "scores.json", tmp_path / "b"):
        view = EvaluationsView(tmp_path)
        with taken_away(monkeypatch, gone):
            assert len(view.listing()) == (gone.name == "scores.json")


def test_an_evaluation_that_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "2020-name").mkdir()
    (tmp_path / "2020-name" / REQUEST).write_text("{}")
    assert choose_folder({}, parent=tmp_path, name="name") == tmp_path / "2020-name"
    with taken_away(monkeypatch, tmp_path / "2020-name"):
        assert choose_folder({}, parent=tmp_path, name="name") != tmp_path / "2020-name"


def test_claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.json").write_text('{"pid": 1}')
    with taken_away(monkeypatch, tmp_path / "a.json"):
        assert not is_anything_held(tmp_path)


@pytest.mark.parametrize("end", ["index", "features"])
def test_a_cache_of_features_that_is_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    def opened() -> FeatureCache:
        return FeatureCache(tmp_path / "cache", shape=(1, 2), dtype=torch.float32)

    with opened().writer() as add:
        add(b"v" * 16, torch.ones(1, 2))
    cache = opened()
    [path] = (tmp_path / "cache").glob(f"*.{end}")
    with taken_away(monkeypatch, path):
        assert len(opened()) == 0
    shutil.rmtree(tmp_path / "cache")
    assert cache.get(b"v" * 16) is None
    assert (cache.size_bytes, _size([tmp_path / "cache"])) == (0, (0, 0))


def test_a_model_that_another_takes_the_place_of_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")
    found = listing(tmp_path, "**/*")
    (tmp_path / "config.json").unlink()
    monkeypatch.setattr("visgraft.inference.identity.listing", lambda *_: found)
    with pytest.raises(CheckpointError, match=r"config\.json: went away while the model was read: another process"):
        model_checksum(tmp_path)


def test_what_others_write_to_is_listed_here_alone() -> None:
    """`Path.glob`, `iterdir` and `os.walk` raise where a folder goes away under them."""
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if name.split("/")[0] not in SHARED or name in OF_ONE_PROCESS:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in ("glob", "rglob", "iterdir", "walk"):
                wrong.append(f"{name}:{node.lineno}")
    assert wrong == []
