"""Signals in the middle of a run: it stops between two batches and is saved; a second Ctrl-C stops at once.

In: Ctrl-C, SIGTERM, SIGHUP, SIGUSR1. Out: the number of the first that came, and the exceptions that say so.

    with interrupts(say=print) as signals:
        ...
        if signals.number:          # the first signal that came, 0: none
            ...

What was ignored as the program started stays ignored, as `nohup` wants it. Signals are heard by a thread, at once, also
while the main thread is in the middle of a long computation; `too_late` is what it does where a step takes too long.
"""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from types import FrameType
from typing import Any

# Those that exist on this system: Ctrl-C, and what schedulers and terminals send before they end a process.
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)
)
SAVED_WITHIN_S = 25.0  # from the first signal on: Slurm, Kubernetes and torchrun wait 30 seconds before they kill
WORKER_GRACE_S = 60  # how long a worker process outlives a signal that reaches it too: the run may still need it


class Interrupted(KeyboardInterrupt):
    """A run was stopped between two steps and saved; `folder` is what resumes it, `number` the signal that came."""

    def __init__(self, folder: Path, *, number: int = signal.SIGINT) -> None:
        super().__init__(f"stopped and saved; go on with `visgraft train --resume {quote(str(folder))}`")
        self.folder = folder
        self.number = number


class StopAsked(Exception):  # noqa: N818  # no error: the loop saves and raises Interrupted
    """All processes are to stop here: between two steps, two batches of a validation, two tokens of an answer."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def exit_status(error: BaseException) -> int:
    """Give the exit status of a run that a signal stopped, as shells have it: 130 Ctrl-C, 143 SIGTERM."""
    return 128 + int(getattr(error, "number", signal.SIGINT))


class Signals:
    """What has come so far.

    Attributes:
        number: of the first signal that came; 0: none.
        too_late: is called with that number, in the thread that hears signals, where a step takes too long to wait for.
        seconds_to_save: how long a save takes, which has to be over `SAVED_WITHIN_S` after the signal.
    """

    def __init__(self, *, say: Callable[[str], None] = lambda text: None) -> None:
        """Begin with none; `say` is given what the user is told."""
        self.number = 0
        self.too_late: Callable[[int], None] = lambda number: None
        self.seconds_to_save: Callable[[], float] = lambda: 0.0
        self._say = say
        self._is_handled = False
        self._deadline: float | None = None

    def handle(self, number: int, _: FrameType | None) -> None:
        """Take note, in the main thread, as soon as it comes to it; a second Ctrl-C is an ordinary one."""
        if self._is_handled and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._is_handled = True
        self.number = self.number or number

    def settle(self) -> None:
        """Hear that all is saved, so that nothing is too late any more."""
        self._deadline = None

    def listen(self, incoming: socket.socket) -> None:
        """Hear signals as they come, in a thread, until the other end is closed."""
        is_told = False
        while True:
            deadline = self._deadline
            incoming.settimeout(None if deadline is None else max(0.01, deadline - time.monotonic()))
            try:
                came = incoming.recv(64)
            except TimeoutError:
                if self._deadline is not None:
                    self._deadline = None
                    self.too_late(self.number)
                continue
            if not came:
                return
            heard = [number for number in came if number in STOP_SIGNALS]
            if heard and not is_told:
                is_told = True
                self.number = self.number or heard[0]
                self._deadline = time.monotonic() + max(0.0, SAVED_WITHIN_S - self.seconds_to_save())
                self._say(_what_happens_now(heard[0]))


def _what_happens_now(number: int) -> str:
    if number == signal.SIGINT:
        return "stopping after this step, then saving; Ctrl-C again stops at once"
    return f"stopping after this step, then saving ({signal.Signals(number).name}); Ctrl-C stops at once"


@contextmanager
def interrupts(*, say: Callable[[str], None]) -> Iterator[Signals]:
    """Let the first signal set `number` in what is yielded, and end nothing; a second Ctrl-C is an ordinary one."""
    signals = Signals(say=say)
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield signals
        return
    incoming, outgoing = socket.socketpair()
    outgoing.setblocking(False)
    listener = threading.Thread(target=signals.listen, args=(incoming,), name="signals", daemon=True)
    listener.start()
    wakes = signal.set_wakeup_fd(outgoing.fileno(), warn_on_full_buffer=False)
    before = catch_signals(signals.handle)
    try:
        yield signals
    finally:
        release_signals(before)
        signal.set_wakeup_fd(wakes)
        outgoing.shutdown(socket.SHUT_WR)  # worker processes hold copies of it, which closing alone would leave open
        listener.join()
        outgoing.close()
        incoming.close()


def catch_signals(handle: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Let a function handle every signal that stops, but none that is ignored; return who handled them before."""
    caught = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handle) for number in caught}


def release_signals(before: Mapping[int, Any]) -> None:
    """Let signals be handled as before; one that no Python function handled gets the system's default."""
    for number, handler in before.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


def leave_signals_to_the_main_process(_: int = 0) -> None:
    """Let a worker process outlive the signals that a terminal or a launcher sends to all processes at once.

    The main process tells its workers when they are no longer needed; one that it cannot tell ends after a while.
    """

    def end_later(_: int, __: FrameType | None) -> None:
        signal.alarm(WORKER_GRACE_S)

    signal.set_wakeup_fd(-1)  # a fork has that of the main process
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, end_later)
