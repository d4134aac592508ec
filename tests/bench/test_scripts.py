"""The scripts of bench/ run to their end on tiny shapes, so that they will run where there is something to measure."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run_tiny(script: str, folder: Path, *arguments: str) -> dict:
    output = folder / "result.json"
    subprocess.run(
        [sys.executable, f"bench/{script}.py", "--tiny", "--rounds", "1", "--output", str(output), *arguments],
        check=True,
        cwd=ROOT,
        timeout=500,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    return json.loads(output.read_text())


@pytest.mark.slow
def test_the_ladder_is_climbed_with_both_mixes(tmp_path: Path) -> None:
    result = run_tiny("ladder", tmp_path, "--images", "2")
    rungs = ["ancestor", "bf16", "supervised", "unpadded", "shared", "filled"]
    for mix, texts in (("captions", 10), ("vqa", 12)):
        measured = result["mixes"][mix]
        assert list(measured["variants"]) == rungs
        assert measured["texts"] == texts
        assert list(measured["to the rung before"]) == list(measured["in all"]) == rungs[1:]
    assert {"device", "date", "versions"} <= result["machine"].keys()


@pytest.mark.slow
def test_rows_are_measured_with_both_kernels(tmp_path: Path) -> None:
    shape = run_tiny("rows", tmp_path, "--shapes", "demo")["shapes"]["demo"]
    assert shape["padding"]["filled"] <= 0.05 < shape["padding"]["single"]
    assert {"filled / single, sdpa", "filled / single, eager", "eager / sdpa, filled"} <= shape["ratios"].keys()
