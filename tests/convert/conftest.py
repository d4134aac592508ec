"""One thread for tiny models: more only wait for each other.

In: nothing. Out: a fixture that every test here uses. Usage: none, pytest finds it.
"""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Run the tests of this folder on one thread, those of others as they were."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
