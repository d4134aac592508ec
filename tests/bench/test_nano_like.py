"""The short script that stands in another environment: torch alone, real training, and no process left behind."""

import ast
import importlib
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCH = Path(__file__).resolve().parents[2] / "bench"
LENGTHS = [[12, 18, 10], [15]]


@pytest.fixture
def nano_like(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("nano_like")


def test_it_imports_torch_and_nothing_else() -> None:
    nodes = list(ast.walk(ast.parse((BENCH / "nano_like.py").read_text())))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    assert {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) == {"torch"}


def test_logits_are_made_at_every_position_and_pads_carry_no_loss(nano_like: ModuleType) -> None:
    model = nano_like.VisionLanguage(nano_like.TINY)
    ids, targets, pixels = nano_like.make_rows(LENGTHS, nano_like.TINY)
    num_image = nano_like.TINY.num_image_tokens
    assert ids.shape == (4, 18) and targets.shape == (4, num_image + 18)
    assert [row.tolist() for row in targets[3, :num_image].split(num_image)] == [[nano_like.IGNORED] * num_image]
    assert targets[3, num_image:].tolist() == [*ids[3, 1:15].tolist(), *[nano_like.IGNORED] * 4]
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(ids, pixels)
        assert logits.shape == (*targets.shape, nano_like.TINY.vocabulary)
        other = torch.where(ids == nano_like.PAD_ID, 7, ids)
        assert torch.equal(model(other, pixels)[targets >= 0], logits[targets >= 0])
        assert not torch.equal(model(ids, pixels.flip(0))[targets >= 0], logits[targets >= 0])


@pytest.mark.slow
def test_it_learns_and_ends_with_the_pipe(nano_like: ModuleType) -> None:
    with nano_like.Nano(LENGTHS, tiny=True) as step:
        losses = []
        for _ in range(8):
            step()
            losses.append(step.loss)
    assert step.facts["torch"] == torch.__version__
    assert losses[0] == pytest.approx(math.log(300), abs=0.3)  # the chance of one token in the vocabulary
    assert losses[-1] < losses[0]
    assert step.process.returncode == 0


@pytest.mark.slow
def test_it_ends_when_its_parent_is_killed() -> None:
    program = (
        "import time; from nano_like import Nano\n"
        f"step = Nano({LENGTHS}, tiny=True); print(step.process.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=BENCH)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert is_running(child)
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    patience = time.monotonic() + 30
    while is_running(child) and time.monotonic() < patience:
        time.sleep(0.1)
    assert not is_running(child)


def test_an_environment_without_torch_is_told(nano_like: ModuleType, tmp_path: Path) -> None:
    python = tmp_path / "python"
    for program in ("exit 3", "read line; exit 3"):  # ends before it is asked, or when it is
        python.write_text(f"#!/bin/sh\n{program}\n")
        python.chmod(0o755)
        with pytest.raises(RuntimeError, match=r"python ended with status 3; what it said .* It needs torch"):
            nano_like.Nano(LENGTHS, python=str(python), tiny=True)


def is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    if not Path("/proc/self/stat").exists():
        return os.system(f"ps -p {pid} > /dev/null") == 0
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"  # a zombie waits only to be counted
    except FileNotFoundError:
        return False
