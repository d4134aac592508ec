"""Take away what Linux alone has, as a pytest plugin: the package must work without it, as on Windows or a Mac.

In: `pytest -p tests.elsewhere`. Out: no SIGUSR1, SIGHUP or alarm, no fcntl, no resource, no file below /proc or /sys,
for the code of the package, in the programs that tests start too; a test that itself asks for one of them is skipped.

    make test-elsewhere                  # all; ELSEWHERE="tests/training tests/test_folder_lock.py": these

It is no Windows: paths, threads and processes stay those of Linux. docs/compatibility.md says what was not run.
"""

from __future__ import annotations

import asyncio
import builtins
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

ASKED_FOR = "VISGRAFT_TESTS_ELSEWHERE"  # the environment variable by which programs that tests start know
SIGNALS = ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGALRM", "alarm", "pause")
MODULES = ("fcntl", "resource")
FOLDERS = ("/proc", "/sys")


def of_package(depth: int = 2) -> bool:
    """Say whether the call comes from a module of the package."""
    frame = sys._getframe(depth)
    for _ in range(12):  # through pathlib
        name = frame.f_globals.get("__name__", "")
        if name.split(".")[0] == "visgraft":
            return True
        if name.split(".")[0] not in ("pathlib", "genericpath", "posixpath", "os", "io", __name__):
            return False
        if frame.f_back is None:
            return False
        frame = frame.f_back
    return False


def take_away() -> None:
    """Take it away from the package; torch and others, which have builds of their own elsewhere, keep it."""
    importing = builtins.__import__

    def guarded(name: str, globals: Any = None, *rest: Any, **named: Any) -> Any:
        owner = (globals or {}).get("__name__", "")
        if name in MODULES and owner.split(".")[0] == "visgraft":
            raise ModuleNotFoundError(f"No module named {name!r}")
        return importing(name, globals, *rest, **named)

    builtins.__import__ = guarded
    asyncio.SelectorEventLoop.add_signal_handler = asyncio.AbstractEventLoop.add_signal_handler
    for name in SIGNALS:
        if hasattr(signal, name):
            delattr(signal, name)
    for name in ("stat", "open", "scandir", "readlink", "listdir"):
        setattr(os, name, without_folders(getattr(os, name)))
    builtins.open = without_folders(builtins.open)
    __import__("io").open = builtins.open


def without_folders(operation: Callable[..., Any]) -> Callable[..., Any]:
    """Let an operation find nothing below the folders, where the package asks."""

    def guarded(path: Any, *rest: Any, **named: Any) -> Any:
        text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else ""
        if isinstance(text, str) and text.startswith(FOLDERS) and of_package():
            raise FileNotFoundError(2, "No such file or directory", text)
        return operation(path, *rest, **named)

    return guarded


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> Iterator[Any]:
    """Skip a test whose own code asks for a signal that is not there; the package's asking for it is a failure."""
    if call.excinfo is not None and isinstance(call.excinfo.value, AttributeError):
        asks = call.excinfo.traceback[-1].frame.f_globals.get("__name__", "")
        if str(call.excinfo.value).startswith("module 'signal' has no") and not asks.startswith("visgraft"):
            try:
                pytest.skip(f"is about what is not there: {call.excinfo.value}")
            except BaseException:
                call.excinfo = pytest.ExceptionInfo.from_current()
    return (yield)


os.environ[ASKED_FOR] = "1"
take_away()
