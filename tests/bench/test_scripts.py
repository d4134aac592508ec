"""The scripts of bench/ run to their end on tiny shapes, so that they will run where there is something to measure."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.warm_python import warm_python

ROOT = Path(__file__).resolve().parents[2]


def run_tiny(script: str, folder: Path, *arguments: str) -> dict:
    output = folder / "result.json"
    subprocess.run(
        [*warm_python(), f"bench/{script}.py", "--tiny", "--rounds", "1", "--output", str(output), *arguments],
        check=True,
        cwd=ROOT,
        timeout=500,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    return json.loads(output.read_text())


@pytest.mark.slow
def test_the_ladder_is_climbed_with_both_mixes(tmp_path: Path) -> None:
    result = run_tiny("ladder", tmp_path, "--images", "2")
    rungs = ["ancestor", "bf16", "supervised", "unpadded", "shared", "filled", "compile"]
    for mix, texts in (("captions", 10), ("vqa", 12)):
        measured = result["mixes"][mix]
        assert list(measured["variants"]) == [*rungs, "cached"]
        assert measured["texts"] == texts
        assert list(measured["to the rung before"]) == list(measured["in all"]) == rungs[1:]
        assert measured["apart, with cached vision"].keys() == {"to the rung before", "to the first rung"}
        shares, needed = measured["share_of_matrix_rate"], measured["needed_gflop"]
        assert list(shares) == list(needed) == ["shared", "filled", "compile", "cached"]
        assert all(0 < share < 1 for share in shares.values())
        assert needed["shared"] == needed["compile"] and needed["cached"]["vision"] == 0
    assert result["matrix_rate_tflops"] == max(result["matrix_rate_tflops_by_size"].values())
    assert {"device", "date", "versions"} <= result["machine"].keys()


@pytest.mark.slow
def test_hybrids_are_measured_in_both_layouts(tmp_path: Path) -> None:
    result = run_tiny("ladder", tmp_path, "--images", "2", "--hybrids", "lfm2", "qwen3_5")
    assert list(result["families"]) == ["lfm2", "qwen3_5"]
    for measured in result["families"].values():
        assert list(measured["variants"]) == ["rows", "shared"] and measured["texts"] == 10
        assert measured["shared / rows"] > 0


@pytest.mark.slow
def test_dialogs_that_begin_alike_have_a_rung_of_their_own(tmp_path: Path) -> None:
    result = run_tiny("ladder", tmp_path, "--images", "2", "--trees", "opt", "lfm2")
    for measured in result["families"].values():
        assert list(measured["variants"]) == ["rows", "shared", "trees"]
        assert measured["trees / shared"] > 0


@pytest.mark.slow
def test_a_steps_time_is_told_by_phase_and_by_kind(tmp_path: Path) -> None:
    result = run_tiny("step_profile", tmp_path, "--images", "2")
    for measured in result["mixes"].values():
        for what in ("phases", "kinds"):
            assert sum(measured[what].values()) == pytest.approx(1, abs=0.01)
        assert {"encoder", "way back", "optimizer"} <= measured["phases"].keys()
        assert measured["kinds"]["matrix products"] > 0


@pytest.mark.slow
def test_ways_of_waiting_are_compared_alone_and_beside_a_neighbour(tmp_path: Path) -> None:
    result = run_tiny("neighbour", tmp_path, "--ways", "10000", "--seconds", "0.3")
    assert list(result["ways"]) == ["default", "10000"]
    assert result["best"] in result["ways"]
    for measured in result["ways"].values():
        assert measured["alone_samples_per_s"] > 0 < measured["beside_samples_per_s"]


@pytest.mark.slow
def test_the_start_is_measured_beside_what_no_program_can_do_without(tmp_path: Path) -> None:
    output = tmp_path / "start.json"
    command = [sys.executable, "bench/start.py", "--rounds", "1", "--only", "nothing", "import"]
    given = ["--model", str(tmp_path), "--output", str(output)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([*command, *given], check=True, cwd=ROOT, timeout=500, env=environment)
    measured = json.loads(output.read_text())["processes"]
    assert list(measured) == ["nothing", "import"]
    assert 0 < measured["nothing"]["median_processor_s"] <= 1.5 * measured["import"]["median_processor_s"]


@pytest.mark.slow
def test_a_step_is_measured_six_ways(tmp_path: Path) -> None:
    result = run_tiny("train_step", tmp_path, "--images", "2")
    names = ["ancestor", "llava", "nano", "rows", "shared", "filled"]
    assert list(result["variants"]) == names
    assert {f"filled / {name}" for name in names[:4]} | {"shared / llava", "rows / nano"} <= result["ratios"].keys()
    assert result["nano_runs_with"]["torch"] == result["machine"]["versions"]["torch"]
    assert result["nano_runs_with"]["in_an_environment_of_its_own"] is False


def test_a_python_that_is_not_there_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    monkeypatch.setattr(sys, "argv", ["train_step.py", "--tiny", "--nano-python", "/nowhere/python"])
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module("train_step").main()
    wanted = "--nano-python: got /nowhere/python, which is no program; name a Python that has torch"
    assert wanted in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_growth_is_measured_along_three_axes_and_drawn(tmp_path: Path) -> None:
    growth = run_tiny("growth", tmp_path, "--most-positions", "500")
    assert {axis: [point[axis] for point in points] for axis, points in growth["axes"].items()} == {
        "image_tokens": [5, 17, 65],
        "texts": [1, 2, 3, 8],
        "images": [1, 2],
    }
    points = [point for points in growth["axes"].values() for point in points]
    for point in points:
        is_left_out = point["positions_of_rows"] > 500
        assert ("rows" in point["variants"], point["shared / rows"] is None) == (not is_left_out, is_left_out)
        assert point.get("rows_left_out", "").endswith("more than 500") is is_left_out
    assert len({str(point) for point in points if "rows_left_out" in point}) == 1  # 8 texts
    (tmp_path / "result.json").rename(tmp_path / "growth.json")
    command = [*warm_python(), "bench/plot.py", "--results", str(tmp_path), "--output", str(tmp_path)]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    with Image.open(tmp_path / "growth.png") as picture:
        assert picture.format == "PNG" and min(picture.size) > 400
    assert not (tmp_path / "ladder.png").exists()


@pytest.mark.slow
def test_captioning_a_folder_is_measured_beside_a_loop(tmp_path: Path) -> None:
    result = run_tiny("caption", tmp_path, "--images", "3", "--batch-size", "2")
    assert result["times"].keys() == {"loop", "caption"}
    assert result["image_tokens"] == 17 and result["times_as_fast"] > 0


@pytest.mark.slow
def test_a_second_question_is_measured_beside_the_first(tmp_path: Path) -> None:
    result = run_tiny("prefix_cache", tmp_path)
    assert list(result["times"]) == ["first", "second", "first_prefill", "second_prefill"]
    assert result["second_of_first"] > 0 and result["second_of_first_prefill"] > 0


@pytest.mark.slow
def test_the_decoding_loop_is_measured_beside_the_usual_ways(tmp_path: Path) -> None:
    kinds = run_tiny("decode", tmp_path, "--images", "2", "--batch-size", "2")["kinds"]
    assert list(kinds) == ["questions", "captions", "long"]
    for measured in kinds.values():
        assert list(measured["times"]) == ["single", "sorted", "batches", "loop", "loop_uncached"]
        assert all(each["tokens_per_s"] >= each["answers_per_s"] > 0 for each in measured["times"].values())
        assert all(measured[f"loop / {name}"] > 0 for name in ("single", "sorted", "batches", "loop_uncached"))


@pytest.mark.slow
def test_rows_are_measured_with_both_kernels(tmp_path: Path) -> None:
    shape = run_tiny("rows", tmp_path, "--shapes", "demo")["shapes"]["demo"]
    assert shape["padding"]["filled"] <= 0.05 < shape["padding"]["single"]
    assert {"filled / single, sdpa", "filled / single, eager", "eager / sdpa, filled"} <= shape["ratios"].keys()


@pytest.mark.slow
def test_the_gpu_ladder_is_climbed_by_language_models_of_two_kinds(tmp_path: Path) -> None:
    models = ["opt-350m", "mpt-7b"]  # test_gpu.py climbs it with each
    size = ("--images", "3", "--micro-batch-positions", "200")
    result = run_tiny("gpu", tmp_path, "--device", "cpu", *size, "--models", *models)
    assert list(result["models"]) == models
    rungs = ["bf16", "supervised", "unpadded", "shared", "filled", "blocks", "compile", "cached"]
    for mixes in result["models"].values():
        assert list(mixes) == ["coco", "m3it"]
        for mix, measured in mixes.items():
            assert list(measured["variants"]) == rungs
            assert list(measured["to the rung before"]) == list(measured["in all"]) == rungs[1:]
            assert ("hours for 1,361,650 texts" in measured) is (mix == "m3it")
            for variant in measured["variants"].values():
                assert variant["positions_per_s"] > variant["texts_per_s"] > 0
                assert (
                    variant["share_of_matrix_rate"] > 0 and variant["utilisation"] is None
                )  # a CPU has no card's rate


def test_the_loss_is_measured_three_ways(tmp_path: Path) -> None:
    positions = run_tiny("loss", tmp_path, "--positions", "8", "16")["positions"]
    assert list(positions) == ["8", "16"]
    for measured in positions.values():
        assert list(measured["ways"]) == ["products", "pytorch", "own"] and measured["pytorch / own"] > 0


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["--images", "0"], "argument --images: got '0', must be a whole number of at least 1"),
        (["--rounds", "few"], "argument --rounds: got 'few', must be a whole number of at least 1"),
        (
            ["--device", "banana"],
            "argument --device: device: got banana, which this machine and this torch do not have",
        ),
        (["--device", "cpu"], "--device: got cpu, and the real shapes are for a GPU; name one, or add --tiny"),
    ],
)
def test_the_gpu_ladder_says_what_it_cannot_take(
    given: list[str], wanted: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    monkeypatch.setattr(sys, "argv", ["gpu.py", *given])
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module("gpu").main()
    assert wanted in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_an_evaluation_is_measured_beside_one_generate_a_question(tmp_path: Path) -> None:
    result = run_tiny("evaluate", tmp_path, "--images", "2", "--questions", "2000")
    assert list(result["variants"]) == ["each", "grouped"]
    assert result["same_answers"] == result["questions"] == 20
    assert [seen["questions"] for seen in result["memory"]] == [2000]


@pytest.mark.slow
def test_labelling_is_timed_beside_plain_generate_and_its_memory_is_looked_at(tmp_path: Path) -> None:
    result = run_tiny("annotate", tmp_path, "--images", "2", "--rows", "600")
    assert result["times"].keys() >= {"annotate", "single"}
    assert result["annotate / single"] > 0
    assert result["share_of_answers_that_are_the_same"]["single"] >= 0.75
    assert result["memory"]["rows"] == 600
    assert result["memory"]["resident_mb_at_most"] > 0


@pytest.mark.long
def test_ranks_of_a_large_run_are_played(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    sizes = ["--shards", "4", "--ranks", "2", "--ranks-played", "1", "--steps", "2", "--output", str(output)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([*warm_python(), "bench/scale.py", *sizes], check=True, cwd=ROOT, timeout=500, env=environment)
    result = json.loads(output.read_text())
    [played] = result["played"]
    assert played["samples"] == played["groups_of_an_epoch"] == 4000
    assert 0 < played["groups_of_this_rank"] < played["groups_of_a_step"]
    assert played["imbalance"]["planned"] < played["imbalance"]["every n-th"] + 0.01
