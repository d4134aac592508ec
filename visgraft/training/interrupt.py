"""Ctrl-C in the middle of a run: the step is finished and saved; a second Ctrl-C stops at once.

In: the signal. Out: an answer to "is the run to stop?", and the exception that says how to go on.
Usage: `with interrupts(say=print) as is_interrupted: ...`
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """A run was stopped between two steps and saved; `folder` is what resumes it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"stopped and saved; go on with `visgraft train --resume {folder}`")
        self.folder = folder


@contextmanager
def interrupts(*, say: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into True from the function that is yielded; the second is an ordinary one."""
    interrupted = threading.Event()

    def note(_: int, __: FrameType | None) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        say("stopping after this step, then saving; Ctrl-C again stops at once")

    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield interrupted.is_set
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield interrupted.is_set
    finally:
        signal.signal(signal.SIGINT, before)
