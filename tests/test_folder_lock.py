"""One process at a time holds a folder: a dead holder's lock is taken over, a living one is refused by name."""

import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from visgraft import folder_lock
from visgraft.errors import CheckpointError
from visgraft.folder_lock import LOCK_FILE, FolderLock, Holder, clear_dead, find_holder, process_start, refuse_held


def quiet(_: str) -> None:
    """Take what is said."""


def write(folder: Path, holder: Holder) -> None:
    (folder / LOCK_FILE).write_text(json.dumps(asdict(holder)))


def holder_of(folder: Path) -> Holder:
    holder = find_holder(folder)
    assert holder is not None
    return holder


@pytest.fixture
def own(tmp_path: Path) -> Holder:
    """Who this process is in a lock."""
    (tmp_path / "elsewhere").mkdir()
    with FolderLock() as lock:
        lock.take(tmp_path / "elsewhere", say=quiet)
        return holder_of(tmp_path / "elsewhere")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in [("DEAD_AFTER_S", 0.6), ("LOOK_EVERY_S", 0.05), ("WRITTEN_WITHIN_S", 0.1)]:
        monkeypatch.setattr(folder_lock, name, seconds)


@contextmanager
def child(work: Callable[[], None]) -> Iterator[int]:
    """Run work in a fork, which lives until the block ends."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os.write(writing, b"1")
            time.sleep(60)
        finally:
            os._exit(0)
    assert os.read(reading, 1) == b"1"
    try:
        yield pid
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def test_a_held_folder_is_refused_with_pid_and_host_and_free_again_when_it_is_released(tmp_path: Path) -> None:
    message = rf"process {os.getpid()} on {platform.node()} is training this run; wait until it ends"
    with FolderLock() as lock:
        lock.take(tmp_path, say=quiet)
        with pytest.raises(CheckpointError, match=message):
            FolderLock().take(tmp_path, say=quiet)
        with pytest.raises(CheckpointError, match=message):
            refuse_held(tmp_path)
    assert [*tmp_path.iterdir()] == []
    refuse_held(tmp_path)


def test_who_holds_a_folder_says_what_it_does_there(tmp_path: Path) -> None:
    with FolderLock() as lock:
        lock.take(tmp_path, say=quiet, work="evaluating models into it")
        with pytest.raises(CheckpointError, match=rf"process {os.getpid()} on \S+ is evaluating models into it; wait"):
            FolderLock().take(tmp_path, say=quiet)


def test_another_living_process_is_refused_and_a_killed_one_taken_over(tmp_path: Path) -> None:
    def take() -> None:
        FolderLock().take(tmp_path, say=quiet)

    with child(take) as pid, pytest.raises(CheckpointError, match=rf"process {pid} on"):
        FolderLock().take(tmp_path, say=quiet)
    assert (tmp_path / LOCK_FILE).exists()
    assert find_holder(tmp_path) is None
    with FolderLock() as lock:
        lock.take(tmp_path, say=quiet)
        assert holder_of(tmp_path).pid == os.getpid()


def test_a_process_that_ended_and_was_not_waited_for_is_gone() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert process_start(pid) is None
    os.waitpid(pid, 0)


def test_the_number_of_a_dead_process_that_another_has_today_is_taken_over(tmp_path: Path, own: Holder) -> None:
    write(tmp_path, replace(own, started="1", key="old"))
    with FolderLock() as lock:
        lock.take(tmp_path, say=quiet)
        assert holder_of(tmp_path).key not in ("old", own.key)


@pytest.mark.usefixtures("quick")
def test_a_lock_of_another_machine_is_taken_over_when_no_one_touches_it(tmp_path: Path, own: Holder) -> None:
    write(tmp_path, replace(own, pid=7, host="far", machine="far"))
    os.utime(tmp_path / LOCK_FILE, (2e9, 2e9))  # its clock says nothing
    said: list[str] = []
    started = time.monotonic()
    refuse_held(tmp_path)  # whether it lives takes time to find out
    with FolderLock() as lock:
        lock.take(tmp_path, say=said.append)
    assert 0.6 <= time.monotonic() - started < 5
    [told] = said
    assert told.endswith("process 7 on far was here; waiting up to 1 seconds to see whether it is alive")


@pytest.mark.usefixtures("quick")
def test_a_lock_of_another_machine_that_is_touched_is_refused(
    tmp_path: Path, own: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_lock, "DEAD_AFTER_S", 30.0)
    write(tmp_path, replace(own, pid=7, host="far", machine="far"))
    timer = threading.Timer(0.3, lambda: os.utime(tmp_path / LOCK_FILE))
    timer.start()
    with pytest.raises(CheckpointError, match="process 7 on far is training this run"):
        FolderLock().take(tmp_path, say=quiet)
    timer.join()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("written", ["", '{"pid": 17, "ho'])
def test_a_lock_whose_process_was_killed_as_it_wrote_it_is_taken_over_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    monkeypatch.setattr(folder_lock, "DEAD_AFTER_S", 30.0)
    (tmp_path / LOCK_FILE).write_text(written)
    with FolderLock() as lock:
        started = time.monotonic()
        lock.take(tmp_path, say=quiet)
        assert time.monotonic() - started < 5
        assert holder_of(tmp_path).pid == os.getpid()


def test_a_process_that_writes_its_lock_so_slowly_that_it_is_taken_over_does_not_hold_it(
    tmp_path: Path, own: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(own, key="other")
    monkeypatch.setattr(folder_lock, "this_process", lambda _: replace(own, key="slow"))

    def overtake(*_: object) -> dict[str, object]:
        (tmp_path / LOCK_FILE).unlink()
        write(tmp_path, other)
        return asdict(own)

    monkeypatch.setattr(folder_lock, "asdict", overtake)
    with pytest.raises(CheckpointError, match="is training this run"):
        FolderLock().take(tmp_path, say=quiet)
    assert holder_of(tmp_path).key == "other"


def test_a_holder_touches_its_lock_and_hears_when_it_lost_it(
    tmp_path: Path, own: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_lock, "TOUCH_EVERY_S", 0.02)
    path = tmp_path / LOCK_FILE
    with FolderLock() as lock:
        lock.take(tmp_path, say=quiet)
        os.utime(path, (0, 0))
        wait_until(lambda: path.stat().st_mtime > 0)
        path.unlink()
        wait_until(path.exists)  # a user removed it
        assert not lock.is_lost
        write(tmp_path, replace(own, pid=7))
        wait_until(lambda: lock.is_lost)
    assert holder_of_file(path).pid == 7  # it is not ours to remove


def holder_of_file(path: Path) -> Holder:
    return Holder(**json.loads(path.read_text()))


def wait_until(is_so: Callable[[], object]) -> None:
    end = time.monotonic() + 10.0
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_of_many_that_find_a_dead_lock_one_gets_it(tmp_path: Path, own: Holder) -> None:
    write(tmp_path, replace(own, started="1"))
    got: list[bool] = []

    def take() -> None:
        try:
            FolderLock().take(tmp_path, say=quiet)
            got.append(True)
        except CheckpointError:
            got.append(False)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == [False] * 7 + [True]
    assert {path.name for path in tmp_path.iterdir()} == {LOCK_FILE, "elsewhere"}


def test_a_fork_of_the_holder_leaves_the_lock_alone(tmp_path: Path) -> None:
    with FolderLock() as lock:
        lock.take(tmp_path, say=quiet)
        with child(lock.release):
            assert (tmp_path / LOCK_FILE).exists()


def test_only_the_lock_of_a_dead_process_of_this_machine_is_cleared(tmp_path: Path, own: Holder) -> None:
    clear_dead(tmp_path)  # where there is none
    for holder in (own, replace(own, machine="far")):
        write(tmp_path, holder)
        clear_dead(tmp_path)
        assert holder_of_file(tmp_path / LOCK_FILE) == holder
    write(tmp_path, replace(own, started="1"))
    clear_dead(tmp_path)
    assert not (tmp_path / LOCK_FILE).exists()
