"""The first signal asks, a second Ctrl-C insists; what was ignored stays ignored; what takes too long is told so."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from visgraft.training import interrupt
from visgraft.training.interrupt import STOP_SIGNALS, Interrupted, exit_status, interrupts


def press(number: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


def wait_until(is_so: Callable[[], object]) -> None:
    end = time.monotonic() + 10.0
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def ignored() -> Iterator[int]:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    yield signal.SIGHUP
    signal.signal(signal.SIGHUP, before)


def test_the_first_ctrl_c_is_told_and_the_second_is_ordinary() -> None:
    said: list[str] = []
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interrupts(say=said.append) as signals:
        assert signals.number == 0
        press()
        assert signals.number == signal.SIGINT
        wait_until(lambda: said)
        assert said == ["stopping after this step, then saving; Ctrl-C again stops at once"]
        press()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("number", [number for number in STOP_SIGNALS if number != signal.SIGINT])
def test_what_schedulers_send_is_told_once_however_often_it_comes(number: int) -> None:
    said: list[str] = []
    with interrupts(say=said.append) as signals:
        for _ in range(3):
            press(number)
        assert signals.number == number
        wait_until(lambda: said)
    name = signal.Signals(number).name
    assert said == [f"stopping after this step, then saving ({name}); Ctrl-C stops at once"]
    assert signal.getsignal(number) is signal.SIG_DFL


def test_a_signal_that_was_ignored_as_the_program_started_stays_ignored(ignored: int) -> None:
    with interrupts(say=print) as signals:
        press(ignored)
        press(signal.SIGUSR1)
        assert signals.number == signal.SIGUSR1
    assert signal.getsignal(ignored) is signal.SIG_IGN


def test_in_another_thread_signals_are_left_alone() -> None:
    before, answers = signal.getsignal(signal.SIGINT), []

    def run() -> None:
        with interrupts(say=print) as signals:
            answers.append((signals.number, signal.getsignal(signal.SIGINT) is before))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert answers == [(0, True)]


def test_a_signal_is_heard_while_the_main_thread_computes_and_told_when_it_is_too_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(interrupt, "SAVED_WITHIN_S", 0.3)
    told = threading.Event()
    with interrupts(say=lambda text: None) as signals:
        signals.too_late = lambda number: told.set()
        signals.seconds_to_save = lambda: 0.1
        press(signal.SIGTERM)
        assert told.wait(10.0)


def test_nothing_is_too_late_once_all_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupt, "SAVED_WITHIN_S", 0.2)
    said: list[str] = []
    with interrupts(say=said.append) as signals:
        signals.too_late = lambda number: said.append("too late")
        press(signal.SIGTERM)
        wait_until(lambda: said)
        signals.settle()
        time.sleep(0.4)
    assert len(said) == 1


@pytest.mark.skipif(not hasattr(signal, "alarm"), reason="nothing ends it here but its main process")
def test_a_worker_process_outlives_what_is_sent_to_all_and_ends_in_the_end() -> None:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        interrupt.WORKER_GRACE_S = 1
        interrupt.leave_signals_to_the_main_process()
        os.write(writing, b"1")
        while True:
            time.sleep(0.01)
    os.read(reading, 1)
    for number in STOP_SIGNALS:
        os.kill(pid, number)
    time.sleep(0.3)
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGALRM


def test_the_exit_status_is_that_of_shells(tmp_path: Path) -> None:
    assert [exit_status(Interrupted(tmp_path, number=n)) for n in (signal.SIGINT, signal.SIGTERM)] == [130, 143]
    assert exit_status(KeyboardInterrupt()) == 130


def test_what_to_type_can_be_pasted() -> None:
    text = str(interrupt.Interrupted(Path("/home/me/my run")))
    assert text == "stopped and saved; go on with `visgraft train --resume '/home/me/my run'`"
