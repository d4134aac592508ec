"""The count of files and functions counts what runs, in every thread, and nothing else."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))

from acts import ACTS, as_table, count_acts, summarise, watch  # noqa: E402

from tests.warm_python import warm_python  # noqa: E402
from visgraft.data.sample import Turn  # noqa: E402


@pytest.mark.slow
def test_a_step_runs_through_the_main_path_and_each_act_through_less_than_the_opening(tmp_path: Path) -> None:
    acts = count_acts(tmp_path)
    counts = summarise(acts)
    assert tuple(counts) == ACTS
    assert {"training/loop.py", "data/batch.py", "model/vlm.py", "model/sequence.py"} <= acts["a training step"].keys()
    assert acts["a loss"].keys() <= acts["a training step"].keys()
    assert not any(file.startswith(("data/", "training/")) for file in acts["a loss"])
    assert not any(file.startswith("training/") for file in acts["an answer"])
    assert all(1 < counts[act]["files"] < counts["opening a run"]["files"] for act in ACTS[1:])
    for act, found in acts.items():
        assert counts[act]["functions"] == sum(len(functions) for functions in found.values())


def test_what_another_thread_calls_is_counted() -> None:
    with watch() as found:
        thread = threading.Thread(target=lambda: Turn("what?", "a cat"))
        thread.start()
        thread.join()
    assert found == {"data/sample.py": ["Turn.__post_init__", "_is_unicode"]}
    assert sys.getprofile() is None


def test_the_table_sets_each_figure_beside_the_baseline() -> None:
    now = {"a loss": {"files": 9, "functions": 30}}
    assert as_table(now).splitlines()[-1] == "| a loss | 9 | 30 |"
    before = {"a loss": {"files": 12, "functions": 32, "by_file": {}}}
    assert as_table(now, before).splitlines()[-1] == "| a loss | 12 -> 9 | 32 -> 30 |"  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_script_prints_what_it_takes_as_a_baseline(tmp_path: Path) -> None:
    def run(*arguments: str) -> str:
        command = [*warm_python(), str(ROOT / "bench" / "acts.py"), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout

    (tmp_path / "acts.json").write_text(run("--json"))
    values = json.loads((tmp_path / "acts.json").read_text())
    assert values["a loss"]["by_file"]["model/vlm.py"]
    lines = run("--baseline", str(tmp_path / "acts.json")).splitlines()
    files = values["a loss"]["files"]
    assert f"| a loss | {files} -> {files} |" in "\n".join(lines)
