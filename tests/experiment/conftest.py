"""No waiting between two looks at what runs.

In: nothing. Out: a fixture that applies by itself. Usage: none
"""

import pytest

from visgraft.experiment import running


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "POLL_S", 0.01)
