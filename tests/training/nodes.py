"""Two machines on one: two launchers that meet over the loopback, each with processes of its own.

In: a module of the tests and its arguments. Out: it has run in all processes of both.
Usage: `run_on_two_nodes("tests.training.one_of_several", folder)`
"""

import os
import subprocess
from pathlib import Path

from tests.training.killed_run import free_port
from tests.warm_python import warm_python

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "PET_LOCAL_ADDR": "127.0.0.1",  # this machine may not find itself by its name
}


def run_on_two_nodes(module: str, *arguments: str | Path, per_node: int = 1) -> None:
    """Run a module in `per_node` processes under each of two launchers."""
    where = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--rdzv-id", module]
    launcher = [*warm_python(), "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", str(per_node)]
    nodes = [
        subprocess.Popen(
            [*launcher, *where, "--no-python", *warm_python(), "-m", module, *map(str, arguments)],
            cwd=ROOT, env={**os.environ, **ENVIRONMENT},
        )
        for _ in range(2)
    ]  # fmt: skip
    try:
        statuses = [node.wait(500) for node in nodes]
    finally:
        for node in nodes:
            node.terminate()
    assert statuses == [0, 0]
