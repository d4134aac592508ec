"""Run lmms-eval, unmodified, on a local task with a model of visgraft, and compare its exact match with ours.

In: an environment that holds lmms-eval 0.7.3 (`make test-lmms-eval` makes one of its own). Out: exit status 0 where
both agree, for its simple and its chat way of asking.
Usage: `python tests/evaluation/compare_lmms_eval.py`
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
sys.path.append(str(ROOT / "bench"))  # behind packages that have names of its files
sys.modules["tests"] = types.ModuleType("tests")  # what lmms-eval brings along installs another package of this name
sys.modules["tests"].__path__ = [str(ROOT / "tests")]

from lmms_loop import NAME, write_task  # noqa: E402

from tests.training.tiny import save_data, tiny_recipe  # noqa: E402
from visgraft.evaluation.benchmarks import open_task  # noqa: E402
from visgraft.evaluation.running import Settings, evaluate_models  # noqa: E402
from visgraft.training.loop import train  # noqa: E402
from visgraft.training.progress import make_progress  # noqa: E402


def say(text: str) -> None:
    """Print a line."""
    sys.stderr.write(f"{text}\n")


def rows_of(data: Path) -> list[dict[str, Any]]:
    """Read the questions of a folder of images, as `write_task` takes them."""
    lines = [json.loads(line) for line in (data / "metadata.jsonl").read_text().splitlines()]
    return [
        {"image": (data / line["file_name"]).read_bytes(), "question": line["question"], "answer": line["answer"]}
        for line in lines
    ]


def ask_lmms_eval(run: Path, task: Path, *more: str) -> tuple[float, float]:
    """Let lmms-eval ask the model; return its exact match, and the seconds that it took."""
    output = task / f"out{len(more)}"
    arguments = ["--model", "visgraft", "--model_args", f"pretrained={run},precision=fp32,device=cpu"]
    arguments += ["--tasks", NAME, "--include_path", str(task), "--output_path", str(output), "--batch_size", "8"]
    begun = time.monotonic()
    subprocess.run([sys.executable, "-m", "lmms_eval", *arguments, *more], check=True, env={**os.environ})
    [path] = output.rglob("*results.json")
    return json.loads(path.read_text())["results"][NAME]["exact_match,none"], time.monotonic() - begun


def main() -> int:
    """Train a tiny model until it knows some answers, and compare."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["VISGRAFT_CACHE"] = str(folder / "cache")
        recipe = tiny_recipe(folder, language="full", head="full", learning_rate=3e-3, max_steps=120, epochs=500)
        run = train(recipe, folder=folder / "run", progress=make_progress())
        data = Path(save_data(folder / "asked", num_images=16, first=50))
        lines = [line for line in (data / "metadata.jsonl").read_text().splitlines() if "question" in line]
        (data / "metadata.jsonl").write_text("\n".join(lines) + "\n")
        (folder / "task").mkdir()
        rows = rows_of(data)
        write_task(folder / "task", rows, max_new_tokens=8)
        (folder / "test.yaml").write_text(f"data: {{test: [{{source: folder, path: {data}}}]}}")
        settings = Settings(metrics=["exact_match"], max_new_tokens=8, precision="fp32", device="cpu", control_limit=0)
        task = open_task(str(folder / "test.yaml"), say=say)
        ours = evaluate_models([str(run)], task, settings=settings, folder=folder / "ours", say=say)
        value = ours.models[0].scored.intervals["exact_match"]
        theirs = {
            "chat": ask_lmms_eval(run, folder / "task"),
            "simple": ask_lmms_eval(run, folder / "task", "--force_simple"),
        }
    say(f"exact match of {len(rows)} answers: ours {value.value} ({value.n}), lmms-eval's {theirs}")
    if not 0 < value.value < 1:
        say("the model knows all answers or none, so this compares nothing")
        return 1
    return 0 if all(abs(found - value.value) < 1e-9 for found, _ in theirs.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
