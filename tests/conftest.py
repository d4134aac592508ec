"""What every test may ask for: tiny recipes; one thread; no network.

In: nothing. Out: fixtures; a list of the tests that should be marked slow. Usage: `def test_something(recipe_values)`
"""

from __future__ import annotations

import os
import signal

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before any Hugging Face import: a test never waits for the network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["OMP_NUM_THREADS"] = "1"  # before torch: on tiny tensors a second thread only waits, and sums differ with it

for name, handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
    number = getattr(signal, name, signal.SIGINT)  # `-p tests.elsewhere` takes some away
    if signal.getsignal(number) is signal.SIG_IGN:  # in the background, under nohup; what tests start inherits it
        signal.signal(number, handler)

SLOW_S = 5.0


@pytest.fixture
def recipe_values() -> dict[str, object]:
    """The smallest recipe that loads, as a dict of the test's own."""
    return {"model": {"vision": "some/vision", "language": "some/language"}}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List what `make test-fast` should leave out; it fails nothing, since a busy machine makes any test slow."""
    reports = terminalreporter.stats.get("passed", [])
    slow = [report for report in reports if report.duration > SLOW_S and not {"slow", "long"} & set(report.keywords)]
    if slow:
        terminalreporter.section(f"more than {SLOW_S:.0f} s, and not marked slow")
        for report in sorted(slow, key=lambda report: -report.duration):
            terminalreporter.line(f"{report.duration:6.1f} s  {report.nodeid}")
