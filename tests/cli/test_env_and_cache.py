"""What a report of a mistake holds, and what is kept between runs."""

import ast
import json
from pathlib import Path

import pytest

from tests.cli.conftest import Visgraft
from visgraft.disk_cache import KINDS
from visgraft.starter.assets import ASSETS

PACKAGE = Path(__file__).parents[2] / "visgraft"
FOLDERS = [folder for folders, _ in KINDS.values() for folder in folders]


def test_env_names_versions_devices_and_caches(visgraft: Visgraft, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISGRAFT_CACHE", "/nowhere/at/all")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    facts = json.loads(visgraft("env", "--json").out)
    assert facts["versions"]["torch"] and facts["versions"]["transformers"] and "ray" in facts["versions"]
    assert facts["devices"][0].startswith("cpu") and facts["threads"] >= 1
    assert facts["visgraft_cache"].startswith("/nowhere/at/all (")
    text = visgraft("env").out
    assert "transformers " in text and "VISGRAFT_CACHE /nowhere/at/all" in text and "hf_secret" not in text


def test_cache_shows_what_is_kept_and_clears_a_kind(
    visgraft: Visgraft, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VISGRAFT_CACHE", str(tmp_path))
    for name in ("vision/a", "answers", "mine"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").write_bytes(b"x" * 2000)
    kinds = json.loads(visgraft("cache", "--json").out)["kinds"]
    assert (kinds["vision"]["size_bytes"], kinds["vision"]["files"], kinds["scans"]["files"]) == (2000, 1, 0)
    assert "2.0 kB" in visgraft("cache").out
    assert visgraft("cache", "--clear", "vision").status == 0
    assert not (tmp_path / "vision").exists() and (tmp_path / "answers" / "file").is_file()
    visgraft("cache", "--clear", "all")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"], "what is not ours stays"


def test_cache_refuses_a_kind_that_is_not_there_and_a_link(
    visgraft: Visgraft, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VISGRAFT_CACHE", str(tmp_path / "cache"))
    assert (
        "error: --clear models: no such kind; need one of starter, downloads"
        in visgraft("cache", "--clear", "models").err
    )
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "vision").symlink_to(tmp_path / "elsewhere")
    outcome = visgraft("cache", "--clear", "vision")
    assert outcome.status == 2 and "is a link to somewhere else" in outcome.err
    assert (tmp_path / "elsewhere").is_dir()


def test_every_folder_of_the_cache_is_of_a_kind() -> None:
    used = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.BinOp) and isinstance(node.right, ast.Constant):
                left = ast.unparse(node.left)
                if isinstance(node.op, ast.Div) and "cache_folder()" in left and not left.endswith("'"):
                    used.add(node.right.value)
            if path.name == "disk_cache.py" and isinstance(node, ast.Call) and ast.unparse(node.func) == "_path":
                named = [word.value for word in node.keywords if word.arg == "folder"]
                used |= {each.value for each in named if isinstance(each, ast.Constant)} if named else {"scans"}
    assert {"answers", "vision", "scans", "facts"} <= used
    assert used <= set(FOLDERS)
    assert {asset.folder for asset in ASSETS.values()} <= set(FOLDERS)
