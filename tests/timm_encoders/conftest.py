"""Tests that need timm, run by `make test-timm` in an environment of its own; elsewhere they are left out.

In: nothing. Out: torchvision can be imported. Usage: pytest reads it before the tests of this folder
"""

from importlib.util import find_spec

if find_spec("timm") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    import tests.timm_encoders.torchvision_operators  # noqa: F401 (before anything that imports torchvision)
