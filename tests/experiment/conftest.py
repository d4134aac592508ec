"""One thread, and no waiting between two looks at what runs.

In: nothing. Out: fixtures that apply by themselves. Usage: none
"""

from collections.abc import Iterator

import pytest
import torch

from visgraft.experiment import running


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(running, "POLL_S", 0.01)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
