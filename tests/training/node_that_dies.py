"""A node among two, one of which dies in the middle of a run: a launcher, and the process that it starts.

In: a recipe's file and the run's folder. Out: the run, gone on with by the node that is left. The node with DIES_AFTER
is gone behind that step, its launcher too, without a word; where the nodes meet is kept by the other one (IS_HOST).
Usage: `python -m tests.training.node_that_dies launch PORT recipe.json runs/mine`
"""

import json
import os
import signal
import sys
from pathlib import Path

from torch.distributed.run import main as launch

from visgraft.training.loop import train
from visgraft.training.progress import make_progress

ELASTIC = ["--nnodes", "1:2", "--nproc_per_node", "1", "--max-restarts", "3"]
QUICK = "join_timeout=120,last_call_timeout=30,keep_alive_interval=1,keep_alive_max_attempt=3"


def work(recipe: Path, folder: Path) -> None:
    """Train, and perhaps die."""
    seen = folder.with_name("worlds.txt")
    with seen.open("a") as file:
        file.write(f"{os.environ['WORLD_SIZE']} {os.environ['RANK']}\n")

    def die(step: int) -> bool:
        if os.environ.get("DIES_AFTER") == str(step):
            os.kill(int(os.environ["LAUNCHER"]), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    given = json.loads(recipe.read_text())
    train(given, folder=folder, resume_or_start=True, progress=make_progress(show=False), stop=die)


if __name__ == "__main__":
    if sys.argv[1] == "launch":
        os.environ["LAUNCHER"] = str(os.getpid())
        meeting = f"{QUICK},is_host={os.environ['IS_HOST']}"
        where = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{sys.argv[2]}", "--rdzv-conf", meeting]
        server = os.environ["WARM_PYTHON"].split("\n")
        launch([*ELASTIC, *where, "--no-python", *server, "-m", "tests.training.node_that_dies", "work", *sys.argv[3:]])
    else:
        work(Path(sys.argv[2]), Path(sys.argv[3]))
