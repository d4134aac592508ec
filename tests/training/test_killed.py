"""A run that is killed at a file operation and goes on is the run that was never killed; what kills it is tested too.

`make test-kill` kills three hundred runs of nine kinds; here it is one kind, at some of its file operations.
"""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.training.file_operations import FileOperations
from tests.training.kill_many import alike, points
from tests.training.killed_run import Kill, differences, fork, wait_for
from tests.warm_python import warm_python
from visgraft.atomic import append_record, write_whole

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_run_killed_at_any_file_operation_ends_as_if_it_never_was(tmp_path: Path) -> None:
    killed = subprocess.run(
        [*warm_python(), "-m", "tests.training.kill_many", "--every", "19", "--only", "map-style"],
        cwd=ROOT, timeout=400, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert killed.returncode == 0, killed.stdout + killed.stderr
    [line] = [line for line in killed.stdout.splitlines() if line.startswith("| map-style")]
    num_operations, num_kills, num_equal, *others = (int(cell) for cell in line.strip("| ").split("|")[1:])
    assert num_operations > 150
    assert num_kills == num_equal > 12
    assert others == [0, 0]


def work(folder: Path, *, kill: Kill, seen: Path) -> list[int]:
    """Write two files in a process that may be killed."""

    def write() -> None:
        operations = FileOperations([folder], kill_at=kill.at, torn=kill.torn).install()
        write_whole(folder / "whole.txt", "0123456789")
        append_record(folder / "log.jsonl", {"step": 1})
        seen.write_text(json.dumps(operations.seen))

    return wait_for([fork(write, folder.with_name("said.txt"))], kill)


def test_a_process_ends_in_front_of_any_operation_and_in_the_middle_of_a_write(tmp_path: Path) -> None:
    folder, seen = tmp_path / "run", tmp_path / "seen.json"
    folder.mkdir()
    assert work(folder, kill=Kill(), seen=seen) == [0]
    operations = json.loads(seen.read_text())
    names = [operation.split()[0] for operation in operations]
    assert "replace" in names and "fsync" in names
    log = next(number for number, name in enumerate(operations) if "log.jsonl" in name and name.startswith("write *"))
    whole = (folder / "log.jsonl").read_text()
    assert work(folder, kill=Kill(at=log), seen=seen) == [-signal.SIGKILL]
    assert (folder / "log.jsonl").read_text() == whole
    assert work(folder, kill=Kill(at=log, torn=True), seen=seen) == [-signal.SIGKILL]
    assert (folder / "log.jsonl").read_text() == whole + whole[: len(whole) // 2]
    (folder / "whole.txt").unlink()
    assert work(folder, kill=Kill(at=names.index("replace")), seen=seen) == [-signal.SIGKILL]
    assert not (folder / "whole.txt").exists()


def test_a_process_that_hangs_is_ended_and_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.training.killed_run.PATIENCE_S", 0.1)
    with pytest.raises(TimeoutError, match="1 of 1 processes hang"):
        wait_for([fork(signal.pause, tmp_path / "said.txt")], Kill())


def test_the_many_pieces_of_one_file_are_one_thing_to_choose_from() -> None:
    assert alike([]) == []
    written = ["open a", "write * a", "write * a", "write * a", "fsync a", "write * a"]
    assert alike(written) == [range(1), range(1, 4), range(4, 5), range(5, 6)]
    chosen = [(kill.at, kill.torn) for kill in points(written, every=1)]
    assert chosen == [(0, False), (1, False), (2, True), (4, False), (5, False), (5, True)]


def test_what_differs_between_two_runs_is_named() -> None:
    expected = {"metrics.jsonl": [1, 2], "model": "folder", "model/model.safetensors": "a"}
    found = {"metrics.jsonl": [1, 2, 2], "model": "folder", ".recipe.yaml.new": "b"}
    assert differences(expected, expected) == []
    assert differences(found, expected) == [
        "model/model.safetensors is missing",
        ".recipe.yaml.new is left over",
        "metrics.jsonl differs",
    ]
