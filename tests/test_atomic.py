"""Files and folders are whole or not there, and nothing in the package writes past that."""

import ast
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from tests.full_disk import Disk
from visgraft.atomic import append_record, read_records, whole_file, whole_folder, write_json, write_whole
from visgraft.errors import DiskError
from visgraft.sealed import Summed

PACKAGE = Path(__file__).resolve().parent.parent / "visgraft"
#: file -> why it may write by itself
PAST_IT = {
    "atomic.py": "is it",
    "data/readers/text_files.py": "into the file that whole_file gives",
    "disk_cache.py": "into the file that whole_file gives",
    "data/images/feature_cache.py": "goes on writing for minutes; put_in_place names the file",
    "evaluation/answer_log.py": "into the file that whole_file gives",
    "reproduce/look_alikes.py": "into the file that whole_file gives",
    "starter/emoji.py": "into the folder that is put in place when it is whole",
    "starter/packages.py": "into the folder out of which the checked file is put in place",
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


# --- What a disk refuses

WRITERS = {
    "write_whole": lambda path: write_whole(path, "new" * 1000),
    "write_json": lambda path: write_json(path, ["new"] * 1000),
    "append_record": lambda path: append_record(path, {"text": "new" * 1000}),
    "whole_folder": lambda path: _write_folder(path),
}
REFUSED = [
    ("open", errno.ENOSPC, "the disk is full"),  # out of inodes
    ("write", errno.ENOSPC, "the disk is full"),
    ("write", errno.EDQUOT, "the disk quota is used up"),
    ("write", errno.EFBIG, "files as large are not allowed here"),
    ("fsync", errno.ENOSPC, "the disk is full"),
    ("rename", errno.EROFS, "the disk is read-only"),
    ("open", errno.EROFS, "the disk is read-only"),
]
CASES = [
    (writer, *refused)
    for writer in WRITERS
    for refused in REFUSED
    if writer != "append_record" or refused[0] not in ("fsync", "rename")  # a log is not synced at each line
]


def _write_folder(path: Path) -> None:
    with whole_folder(path, num_bytes=3000) as folder:
        (folder / "inside").mkdir()
        write_whole(folder / "inside" / "file", "new" * 1000)


@pytest.mark.parametrize("is_there", [True, False])
@pytest.mark.parametrize(("writer", "call", "number", "reason"), CASES)
def test_what_a_disk_refuses_is_one_line_with_path_and_bytes_and_leaves_everything_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str, is_there: bool, call: str, number: int, reason: str
) -> None:
    path = tmp_path / "there"
    if is_there and writer == "whole_folder":
        path.mkdir()
        (path / "file").write_text("old")
    elif is_there:
        path.write_text('"old"\n')
    before = _contents(tmp_path)
    disk = Disk(monkeypatch)
    disk.refuse(call, number, after_bytes=1234)
    with pytest.raises(
        DiskError, match=rf"^{path}: cannot be written: {reason}; needs [0-9,]+ bytes.*then go on$"
    ) as told:
        WRITERS[writer](path)
    assert told.value.errno == number and "\n" not in str(told.value)
    disk.repair()
    assert disk.refused
    assert _contents(tmp_path) == before
    WRITERS[writer](path)  # after room was made it goes on
    assert _contents(tmp_path) != before


def test_how_many_bytes_are_needed_and_free_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Disk(monkeypatch).refuse("write", errno.ENOSPC, after_bytes=1234)  # what was told to be full stays so
    with pytest.raises(DiskError, match=r"full; needs 3,000 bytes, has room for [0-9,]+; make room, then go on"):
        write_whole(tmp_path / "a", "new" * 1000)
    with pytest.raises(DiskError, match="full; needs more than 1,234 bytes"), whole_file(tmp_path / "a") as building:
        building.write_text("new" * 1000)


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        Exception("No space left on device (os error 28)"),  # of tokenizers
    ],
)
def test_a_full_disk_is_known_in_whatever_library_met_it(tmp_path: Path, error: Exception) -> None:
    line = r"model: cannot be written: the disk is full; needs more than 3 bytes"
    with pytest.raises(DiskError, match=line), whole_folder(tmp_path / "model") as building:
        (building / "file").write_text("new")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_torch_says_of_a_full_disk_what_no_one_understands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Disk(monkeypatch).refuse("write", errno.ENOSPC, after_bytes=200)
    line = r"a\.pt: cannot be written: the disk is full"
    with pytest.raises(DiskError, match=line), whole_file(tmp_path / "a.pt") as building, building.open("wb") as file:
        torch.save(torch.zeros(1000), Summed(file))


def test_what_is_no_business_of_the_disk_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"^mistake$"), whole_file(tmp_path / "a"):
        raise RuntimeError("mistake")
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "a"):
        (tmp_path / "gone").read_text()


def test_a_folder_that_may_not_be_written_is_named_and_not_the_file_being_built(tmp_path: Path) -> None:
    line = rf"^{tmp_path / 'a'}: cannot be written: Permission denied$"
    with pytest.raises(DiskError, match=line), whole_file(tmp_path / "a") as building:
        raise PermissionError(errno.EACCES, "Permission denied", str(building))


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel for a real limit")
def test_a_limit_of_the_kernel_is_told_where_no_python_writes(tmp_path: Path) -> None:
    code = (
        "import resource, sys, torch; from pathlib import Path; from safetensors.torch import save_file\n"
        "from visgraft.atomic import whole_folder\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "with whole_folder(Path(sys.argv[1])) as folder: save_file({'a': torch.zeros(9000)}, folder / 'a.safetensors')"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(tmp_path / "model")], capture_output=True, text=True)
    assert ran.stderr.splitlines()[-1].startswith(
        f"visgraft.errors.DiskError: {tmp_path / 'model'}: cannot be written: files as large are not allowed here"
    ), ran.stderr
    assert list(tmp_path.iterdir()) == []


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


def test_a_text_that_is_no_unicode_is_written_as_json_writes_it(tmp_path: Path) -> None:
    name = "\ud83d caf\udcff.png"
    append_record(tmp_path / "log.jsonl", {"where": name})
    assert [record for _, record in read_records(tmp_path / "log.jsonl")] == [{"where": name}]
    write_whole(tmp_path / "a.txt", name)
    assert (tmp_path / "a.txt").read_text() == "\\ud83d caf\\udcff.png"
