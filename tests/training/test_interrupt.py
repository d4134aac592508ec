"""The first Ctrl-C asks, the second insists."""

import os
import signal
import threading

import pytest

from visgraft.training.interrupt import interrupts


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_the_first_ctrl_c_is_told_and_the_second_is_ordinary() -> None:
    said: list[str] = []
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interrupts(say=said.append) as is_interrupted:
        assert not is_interrupted()
        press()
        assert is_interrupted()
        assert said == ["stopping after this step, then saving; Ctrl-C again stops at once"]
        press()
    assert signal.getsignal(signal.SIGINT) is before


def test_in_another_thread_signals_are_left_alone() -> None:
    before, answers = signal.getsignal(signal.SIGINT), []

    def run() -> None:
        with interrupts(say=print) as is_interrupted:
            answers.append((is_interrupted(), signal.getsignal(signal.SIGINT) is before))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert answers == [(False, True)]
