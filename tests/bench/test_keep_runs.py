"""What is kept of an experiment's runs: the small files, without where they lay."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def keep(experiment: Path, output: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "bench/keep_runs.py", str(experiment), "--output", str(output)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_small_files_of_finished_runs_are_kept_and_metrics_trimmed(tmp_path: Path) -> None:
    finished, begun = tmp_path / "a" / "lora-seed0", tmp_path / "a" / "head-seed0"
    for run in (finished, begun):
        (run / "model").mkdir(parents=True)
        (run / "recipe.yaml").write_text("train: {language: lora}\noutput: /somewhere/else\n")
        record = {"step": 1, "loss": 0.123456789, "learning_rate": {"language": 1e-3}, "seconds": 1}
        (run / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    (finished / "summary.json").write_text("{}")
    (tmp_path / "a" / "experiment.yaml").write_text("name: a\n")
    assert keep(tmp_path / "a", tmp_path / "kept").returncode == 0
    names = sorted(path.relative_to(tmp_path / "kept").as_posix() for path in (tmp_path / "kept").rglob("*.*"))
    run = "lora-seed0"
    assert names == ["experiment.yaml", *(f"{run}/{name}" for name in ("metrics.jsonl", "recipe.yaml", "summary.json"))]
    kept = tmp_path / "kept" / run
    assert json.loads((kept / "metrics.jsonl").read_text()) == {"step": 1, "loss": 0.12346, "seconds": 1}
    assert (kept / "recipe.yaml").read_text() == "train:\n  language: lora\n"


def test_a_folder_without_finished_runs_is_bad_input(tmp_path: Path) -> None:
    result = keep(tmp_path, tmp_path / "kept")
    assert result.returncode == 2
    assert "no finished run in it" in " ".join(result.stderr.split())
