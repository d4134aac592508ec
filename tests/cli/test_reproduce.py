"""`visgraft reproduce` from the command line: the whole rehearsal, its check, and what is refused."""

import json
import signal
from pathlib import Path

import pytest

from tests.cli.conftest import Visgraft
from visgraft.cli import reproduce as command
from visgraft.experiment import running
from visgraft.experiment.running import ExperimentInterrupted


@pytest.mark.long
def test_a_rehearsal_of_the_whole_article_is_checked(
    visgraft: Visgraft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISGRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(running, "POLL_S", 0.01)
    monkeypatch.chdir(tmp_path)
    outcome = visgraft("reproduce", "--scale", "smoke")
    assert outcome.status == 0, outcome.err
    folder = tmp_path / "reproductions" / "smoke"
    assert outcome.out.splitlines()[-2:] == [
        str(folder / "report.html"), f"visgraft reproduce --verify {folder}"
    ]  # fmt: skip
    assert "experiment 3 of 3: m3it, the 26 tasks of the set `article`" in outcome.err
    record = json.loads((folder / "reproduction.json").read_text())
    assert {name: len(of["runs"]) for name, of in record["experiments"].items()} == {
        "modules": 9, "language": 3, "m3it": 1
    }  # fmt: skip
    assert {name: list(of["evaluations"]) for name, of in record["experiments"].items()} == {
        "modules": ["coco"], "language": ["coco"], "m3it": ["coco", "okvqa", "vqa-v2"]
    }  # fmt: skip
    checked = visgraft("reproduce", "--verify", folder)
    assert checked.status == 0, checked.out
    assert "all is as it was written" in checked.out
    summary = folder / "modules" / "head-seed0" / "summary.json"
    summary.write_text(summary.read_text().replace('"steps": 2', '"steps": 3'))
    checked = visgraft("reproduce", "--verify", folder)
    assert checked.status == 1
    assert "differs: modules/head-seed0/summary.json: steps: written 3, metrics.jsonl gives 2" in checked.out
    checked = visgraft("reproduce", "--verify", folder, "--json")
    assert checked.status == 1
    assert json.loads(checked.out)["differences"]


def test_a_check_takes_a_folder_and_nothing_else(visgraft: Visgraft, tmp_path: Path) -> None:
    outcome = visgraft("reproduce", "--verify", tmp_path, "--data", tmp_path)
    assert (outcome.status, outcome.err) == (
        2, "error: --verify: checks a folder as it is; leave --data, --output, --only and --set out\n"
    )  # fmt: skip
    outcome = visgraft("reproduce", "--verify", tmp_path)
    assert outcome.status == 2
    assert "holds no reproduction.json" in outcome.err


def test_without_a_gpu_nothing_is_begun_or_downloaded(
    visgraft: Visgraft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda check_available=False: None)
    asked: list[str] = []
    monkeypatch.setattr(command, "go_offline_without_network", asked.extend)
    outcome = visgraft("reproduce", "--data", tmp_path)
    assert outcome.status == 2
    assert outcome.err.startswith("error: --scale full: got a machine without a GPU that PyTorch sees")
    assert "meta-llama/Llama-2-7b-chat-hf" in asked
    assert list(tmp_path.iterdir()) == []


def test_a_call_that_is_stopped_says_how_it_goes_on(
    visgraft: Visgraft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(**_: object) -> None:
        raise ExperimentInterrupted(number=signal.SIGTERM)

    monkeypatch.setattr("visgraft.reproduce.running.reproduce", stop)
    outcome = visgraft("reproduce", "--scale", "smoke", "-o", tmp_path)
    assert outcome.status == 128 + signal.SIGTERM
    assert outcome.err.endswith("stopped; what was done is kept, and the same command goes on\n")
