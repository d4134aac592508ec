"""A unit is one process's at a time; what a process that is gone has claimed, another one takes over."""

import os
import time
from pathlib import Path

import pytest

from visgraft import folder_lock
from visgraft.annotate import claims as claims_module
from visgraft.annotate.claims import Claims, is_anything_held


def in_a_fork(work: object, *, is_killed: bool) -> int:
    """Run work in another process, which then waits or is gone."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work()  # type: ignore[operator]
            os.write(writing, b"1")
            time.sleep(0 if is_killed else 60)
        finally:
            os._exit(0)
    assert os.read(reading, 1) == b"1"
    if is_killed:
        os.waitpid(pid, 0)
    return pid


def end(pid: int) -> None:
    os.kill(pid, 9)
    os.waitpid(pid, 0)


def claim(folder: Path, name: str) -> None:
    assert Claims(folder).take(name)


def test_a_claim_is_refused_to_others_until_it_is_released(tmp_path: Path) -> None:
    with Claims(tmp_path) as first, Claims(tmp_path) as second:
        assert first.take("a")
        assert not second.take("a")
        assert not first.take("a"), "nor twice to its holder"
        assert second.take("b")
        first.release("a")
        assert second.take("a")
    assert list(tmp_path.iterdir()) == []


def test_what_a_dead_process_claimed_is_taken_over_at_once_and_what_a_live_one_did_is_not(tmp_path: Path) -> None:
    in_a_fork(lambda: claim(tmp_path, "dead"), is_killed=True)
    pid = in_a_fork(lambda: claim(tmp_path, "alive"), is_killed=False)
    try:
        with Claims(tmp_path) as claims:
            assert claims.take("dead")
            assert not claims.take("alive")
    finally:
        end(pid)
    with Claims(tmp_path) as claims:
        assert claims.take("alive")


def test_of_another_machine_a_claim_that_no_one_touches_is_taken_over_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims_module, "DEAD_AFTER_S", 0.3)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(folder_lock, "_machine", lambda: "elsewhere")
        left = Claims(tmp_path)
        assert left.take("a")
    claims = Claims(tmp_path)
    assert not claims.take("a")
    time.sleep(0.2)
    os.utime(tmp_path / "a.json")  # it is alive
    assert not claims.take("a")
    time.sleep(0.2)
    assert not claims.take("a")
    time.sleep(0.2)
    assert claims.take("a")


def test_a_claim_that_was_half_written_when_its_process_was_killed_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims_module, "WRITTEN_WITHIN_S", 0.1)
    (tmp_path / "a.json").write_text('{"pid": 1')
    claims = Claims(tmp_path)
    assert not claims.take("a")
    time.sleep(0.2)
    assert claims.take("a")


def test_held_claims_are_touched_while_the_work_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims_module, "TOUCH_EVERY_S", 0.05)
    with Claims(tmp_path) as claims:
        claims.take("a")
        os.utime(tmp_path / "a.json", (0, 0))
        end_at = time.monotonic() + 10
        while (tmp_path / "a.json").stat().st_mtime == 0 and time.monotonic() < end_at:
            time.sleep(0.02)
        assert (tmp_path / "a.json").stat().st_mtime > 0


def test_at_the_end_claims_of_the_dead_do_not_count(tmp_path: Path) -> None:
    assert not is_anything_held(tmp_path / "nowhere")
    in_a_fork(lambda: claim(tmp_path, "dead"), is_killed=True)
    (tmp_path / "torn.json").write_text("{")
    os.utime(tmp_path / "torn.json", (0, 0))
    assert not is_anything_held(tmp_path)
    with Claims(tmp_path) as claims:
        assert claims.take("a")
        assert is_anything_held(tmp_path)
