"""Files and folders are whole or not there, and nothing in the package writes past that."""

import ast
import os
from pathlib import Path

import pytest

from visgraft.atomic import append_record, whole_file, whole_folder, write_json, write_whole

PACKAGE = Path(__file__).resolve().parent.parent / "visgraft"
#: file -> why it may write by itself
PAST_IT = {
    "atomic.py": "is it",
    "disk_cache.py": "into the file that whole_file gives",
    "data/images/feature_cache.py": "goes on writing for minutes; put_in_place names the file",
    "estimate/trial.py": "asks the kernel to count again",
    "training/state.py": "into the folder that whole_folder gives, summing what it writes",
}


def test_a_folder_is_replaced_at_once_and_kept_when_writing_fails(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for content in ("old", "new"):
        with whole_folder(target) as folder:
            (folder / "file").write_text(content)
    assert (target / "file").read_text() == "new"
    with pytest.raises(ValueError, match="no"), whole_folder(target) as folder:
        raise ValueError("no")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (target / "file").read_text() == "new"


def test_a_folder_whose_replacement_was_killed_half_way_comes_back(tmp_path: Path) -> None:
    (tmp_path / ".model.old").mkdir()
    (tmp_path / ".model.old" / "file").write_text("old")
    with pytest.raises(ValueError, match="no"), whole_folder(tmp_path / "model"):
        raise ValueError("no")
    assert (tmp_path / "model" / "file").read_text() == "old"


@pytest.mark.parametrize("content", ["two", b"two"])
def test_a_file_is_replaced_at_once_and_its_folder_made(content: str | bytes, tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    write_whole(path, "one")
    write_whole(path, content)
    assert path.read_text() == "two"
    assert list(path.parent.iterdir()) == [path]


def test_a_file_stays_as_it_was_when_writing_fails(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.txt", "old")
    with pytest.raises(KeyboardInterrupt), whole_file(tmp_path / "a.txt") as building:
        building.write_text("ha")
        raise KeyboardInterrupt
    assert (tmp_path / "a.txt").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_what_a_link_points_to_is_written(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.txt", "old")
    (tmp_path / "link").symlink_to(tmp_path / "a.txt")
    write_whole(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "a.txt").read_text() == "new"


def test_a_device_is_written_and_not_replaced() -> None:
    write_whole(Path(os.devnull), "gone")
    assert not Path(os.devnull).is_file()


def test_a_number_that_is_not_finite_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []
    append_record(tmp_path / "a.jsonl", {"loss": float("nan")})
    assert (tmp_path / "a.jsonl").read_text() == '{"loss": null}\n'


def test_nothing_writes_past_it() -> None:
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _writes(node)
    }
    assert found == set(PAST_IT)


def _writes(call: ast.Call) -> bool:
    """Say whether a call of a method opens a file to write, or replaces one."""
    assert isinstance(call.func, ast.Attribute)
    if call.func.attr == "open":
        modes = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
        return any(isinstance(mode, str) and mode[:1] in ("w", "a", "x") and len(mode) <= 3 for mode in modes)
    return call.func.attr in ("write_text", "write_bytes", "fsync")
