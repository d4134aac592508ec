"""Several machines, played on one: the Slurm script starts, stops and goes on; a node that dies is done without."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.training.killed_run import free_port
from tests.training.nodes import ENVIRONMENT, ROOT
from tests.training.tiny import tiny_recipe
from tests.warm_python import warm_python
from visgraft.config.shipped import shipped_recipes
from visgraft.runs import Run
from visgraft.training.loop import train
from visgraft.training.progress import TrainProgress

SLURM = shipped_recipes()["launch/slurm"]
SRUN = """
import os, signal, subprocess, sys
nodes = [
    subprocess.Popen(sys.argv[2:], env={**os.environ, "SLURM_NODEID": str(node)}) for node in range(2)
]
signal.signal(signal.SIGUSR1, lambda *_: [node.send_signal(signal.SIGUSR1) for node in nodes])
sys.exit(max(node.wait() for node in nodes))
"""


def put_program(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def slurm(folder: Path, **more: str) -> dict[str, str]:
    """Put programs into a folder that do what Slurm's do on two nodes; return the environment of a job."""
    folder.mkdir()
    put_program(folder, "srun", f"#!{sys.executable}{SRUN}")
    put_program(
        folder, "scontrol", f'#!/bin/bash\n[ "$1" = show ] && echo 127.0.0.1 || echo "$@" >> {folder}/requeued\n'
    )
    warm = " ".join(f"'{word}'" for word in warm_python())
    put_program(folder, "python", f'#!/bin/bash\nexec {warm} "$@"\n')
    put_program(folder, "torchrun", f'#!/bin/bash\nexec {warm} -m torch.distributed.run "$@"\n')
    job = {"SLURM_JOB_ID": str(free_port() - 20000), "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2"}
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, **ENVIRONMENT, **job, "GPUS": "1", "PYTHON_EXEC": str(folder / "python"), **more}
    return {**environment, "PATH": path}


@pytest.mark.long
def test_the_slurm_script_stops_two_nodes_in_time_and_the_requeued_job_goes_on(tmp_path: Path) -> None:
    recipe = tiny_recipe(
        tmp_path, text_tokens_per_step=100, max_steps=150, epochs=999, sample_every_steps=1000,
        validate_every_steps=1000,
    )  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    environment, run = slurm(tmp_path / "slurm"), tmp_path / "run"
    command = ["bash", str(SLURM), str(tmp_path / "recipe.yaml"), str(run)]
    job = subprocess.Popen(command, cwd=ROOT, env=environment)
    wait_for_steps(run, number=3, process=job)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(120) == 0
    requeued = tmp_path / "slurm" / "requeued"
    assert requeued.read_text() == f"requeue {environment['SLURM_JOB_ID']}\n"
    stopped = Run.open(run).steps()[-1]["step"]
    assert 3 <= stopped < 150 and list(Run.open(run).checkpoints())[-1] == stopped
    again = subprocess.run(command, cwd=ROOT, env={**environment, "SLURM_RESTART_COUNT": "1"}, timeout=300)
    assert again.returncode == 0
    assert [record["step"] for record in Run.open(run).steps()] == list(range(1, 151))
    assert Run.open(run).status() == "finished"
    assert requeued.read_text().count("\n") == 1


def wait_for_steps(run: Path, *, number: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() or (run / "metrics.jsonl").read_text().count('"loss"') < number:
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.05)


@pytest.mark.parametrize("status", [0, 3])
def test_a_job_that_ends_of_its_own_is_not_requeued_and_ends_as_it_did(tmp_path: Path, status: int) -> None:
    environment = slurm(tmp_path / "slurm")
    put_program(tmp_path / "slurm", "srun", f'#!/bin/bash\necho "$@" > {tmp_path}/asked\nexit {status}\n')
    ended = subprocess.run(["bash", str(SLURM), "recipe.yaml", "runs/mine"], env=environment, capture_output=True)
    assert ended.returncode == status, ended.stderr
    assert not (tmp_path / "slurm" / "requeued").exists()
    asked = (tmp_path / "asked").read_text()
    assert "--nnodes 2 --nproc-per-node 1 " in asked
    assert asked.endswith("-m visgraft train recipe.yaml -o runs/mine --resume-or-start\n")


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "fsdp2_zero2", "fsdp2_hybrid"])
def test_with_a_config_the_script_launches_accelerate_on_each_node(tmp_path: Path, name: str) -> None:
    config = shipped_recipes()[f"launch/{name}"]
    environment = slurm(tmp_path / "slurm", CONFIG=str(config))
    put_program(tmp_path / "slurm", "srun", f"#!{sys.executable}{SRUN}")
    put_program(tmp_path / "slurm", "accelerate", f'#!/bin/bash\necho "$@" > {tmp_path}/asked-$SLURM_NODEID\n')
    assert subprocess.run(["bash", str(SLURM), "recipe.yaml", "runs/mine"], env=environment).returncode == 0
    for node in range(2):
        asked = (tmp_path / f"asked-{node}").read_text()
        assert asked.startswith(
            f"launch --machine_rank {node} --config_file {config} --num_machines 2 --num_processes 2"
        )
        assert ("--parallelism_config_dp_replicate_size 2 --parallelism_config_dp_shard_size 1" in asked) == (
            name == "fsdp2_hybrid"
        )


@pytest.mark.long
def test_a_run_whose_node_dies_is_gone_on_with_by_the_other_and_is_bit_equal_where_steps_are_one_group(
    tmp_path: Path, quiet: TrainProgress
) -> None:
    recipe = tiny_recipe(
        tmp_path, vision="full", text_tokens_per_step=1, max_steps=24, epochs=9, checkpoint_every_steps=5,
        validate_every_steps=1000, sample_every_steps=1000,
    )  # fmt: skip
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    alone = train(recipe, folder=tmp_path / "alone", progress=quiet)
    shared = {**os.environ, **ENVIRONMENT, "WARM_PYTHON": "\n".join(warm_python())}
    command = [*warm_python(), "-m", "tests.training.node_that_dies", "launch", str(free_port())]
    nodes = [
        subprocess.Popen(
            [*command, str(tmp_path / "recipe.json"), str(tmp_path / "run")],
            cwd=ROOT, env={**shared, **more},
        )
        for more in ({"IS_HOST": "true"}, {"IS_HOST": "false", "DIES_AFTER": "13"})
    ]  # fmt: skip
    try:
        assert sorted(node.wait(240) for node in nodes) == [-signal.SIGKILL, 0]
    finally:
        for node in nodes:
            node.kill()
    assert sorted((tmp_path / "worlds.txt").read_text().splitlines()) == ["1 0", "2 0", "2 1"]
    whole, run = Run.open(alone), Run.open(tmp_path / "run")
    for record, other in zip(whole.steps(), run.steps(), strict=True):
        for key in ("step", "loss", "samples", "supervised_tokens", "epoch", "grad_norm"):
            assert record[key] == other[key]
    for path in sorted(whole.model_path.rglob("*.safetensors")):
        assert path.read_bytes() == (run.model_path / path.relative_to(whole.model_path)).read_bytes()
