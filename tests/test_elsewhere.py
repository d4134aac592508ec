"""What Linux alone has may be missing: signals, modules and files that are read where they are there."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.warm_python import warm_python

ROOT = Path(__file__).parents[1]
TOUCHED = (  # what asks the system for more than files; `make test-elsewhere` runs all tests so
    "tests/test_folder_lock.py", "tests/training/test_interrupt.py", "tests/training/test_energy.py",
    "tests/annotate/test_claims.py",
)  # fmt: skip

PROBE = """
import signal, visgraft.training.interrupt as interrupt, visgraft.training.summary as summary, torch
from visgraft.folder_lock import process_start, this_process
from visgraft.estimate.trial import resident_bytes
import os
assert len(interrupt.STOP_SIGNALS) == 2 and not hasattr(signal, "alarm")
assert resident_bytes("VmRSS") is None
assert process_start(os.getpid()) == this_process("").started and "." in process_start(os.getpid())  # psutil's
assert summary.peak_memory_bytes(torch.device("cpu")) > 2**20
interrupt.leave_signals_to_the_main_process()
print("all without")
"""


def run(*arguments: str) -> str:
    environment = {**os.environ, "VISGRAFT_TESTS_ELSEWHERE": "1", "PYTHONPATH": str(ROOT)}
    command = [*warm_python(), *arguments]
    said = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )  # fmt: skip
    assert said.returncode == 0, said.stdout[-3000:] + said.stderr[-3000:]
    return said.stdout


def test_programs_that_tests_start_are_without_it_too() -> None:
    assert "all without" in run("-c", PROBE)


@pytest.mark.slow
def test_what_touches_the_system_passes_without_what_linux_alone_has() -> None:
    said = run(
        "-m", "pytest", "-q", "-p", "tests.elsewhere", "-p", "no:cacheprovider", "-m", "not long and not slow", *TOUCHED
    )
    assert "is about what is not there" in said and " passed" in said
