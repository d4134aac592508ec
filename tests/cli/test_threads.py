"""Threads wait for one another awake for a short while only, unless the user has said how they wait."""

import os
import subprocess
import sys

import pytest

from visgraft.cli.threads import SPIN_COUNT, share_cores


def test_threads_are_told_to_sleep_soon() -> None:
    environment: dict[str, str] = {}
    share_cores(environment)
    assert environment == {"GOMP_SPINCOUNT": SPIN_COUNT}


@pytest.mark.parametrize("own", [{"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "5"}])
def test_what_the_user_has_set_stays(own: dict[str, str]) -> None:
    environment = dict(own)
    share_cores(environment)
    assert environment == own


def test_the_program_says_so_before_torch_is_there() -> None:
    told = "import os, sys\nfrom visgraft.cli import main\nmain(['--version'])\n"
    told += "print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    unset = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    out = subprocess.run([sys.executable, "-c", told], env=unset, capture_output=True, text=True, check=True).stdout
    assert out.split()[-2:] == [SPIN_COUNT, "False"]
