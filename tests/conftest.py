"""What every test may ask for: tiny recipes; one thread; no network.

In: nothing. Out: fixtures. Usage: `def test_something(recipe_values): ...`
"""

import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before any Hugging Face import: a test never waits for the network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: a second thread only waits for the first


@pytest.fixture
def recipe_values() -> dict[str, object]:
    """The smallest recipe that loads, as a dict of the test's own."""
    return {"model": {"vision": "some/vision", "language": "some/language"}}
