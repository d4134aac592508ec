"""`visgraft experiment` from the command line: real processes, a dry run without anything, Ctrl-C, a second call."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Visgraft
from tests.experiment.made import Reports, write_experiment
from tests.warm_python import warm_python
from visgraft.cli.experiment import devices_of
from visgraft.config.shipped import shipped_recipes
from visgraft.errors import ConfigError
from visgraft.experiment import load_experiment, run_experiment
from visgraft.experiment.process import ProcessJob, launch_process
from visgraft.experiment.run_folders import action_for

SHIPPED = sorted(path for path in shipped_recipes().values() if path.parent.name == "experiments")
NOWHERE = {
    "model": {"vision": "nobody/no-vision", "language": "nobody/no-language"},
    "train": {"language": "lora", "lora": {"r": 4}},
    "data": {"train": [{"source": "coco", "path": "/no/coco"}], "validation": [{"source": "coco", "path": "/no/coco"}]},
}


@pytest.mark.slow
def test_runs_of_their_own_processes_side_by_side_become_a_table(
    visgraft: Visgraft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert launch_process.__kwdefaults__["program"] == (sys.executable, "-m", "visgraft")
    monkeypatch.setitem(launch_process.__kwdefaults__, "program", (*warm_python(), "-m", "visgraft"))
    variants = {"projection": {"train.language": "frozen"}, "bad": {"train.lora.target_modules": ["q_prj"]}}
    path = write_experiment(tmp_path, variants=variants)
    folder = tmp_path / "runs" / "tiny"
    outcome = visgraft("experiment", path)
    assert outcome.status == 1, outcome.err
    assert "projection-seed0: step 2" in outcome.err
    assert "\x1b" not in outcome.err + outcome.out
    lines = outcome.out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["variant", "projection", "bad"]
    assert "failed: bad-seed0: train.lora.target_modules: 'q_prj' matches no linear" in outcome.out
    assert lines[-1] == f"visgraft compare {folder} -o report.html"
    assert "'q_prj' matches no linear" in (folder / "bad-seed0" / "failure.txt").read_text()
    again = visgraft("experiment", path, "--only", "projection", "--json")
    assert again.status == 0, again.err
    [value] = json.loads(again.out)
    assert (value["variant"], value["summary"]["steps"]) == ("projection", 2)
    assert again.err.splitlines() == ["1 run, 1 of them finished already"]


@pytest.mark.slow
def test_each_process_sees_its_own_gpu(tmp_path: Path) -> None:
    code = "import os, time; time.sleep(0.5); print('step', os.environ['CUDA_VISIBLE_DEVICES'], os.getpid())"
    launch = functools.partial(launch_process, program=(sys.executable, "-c", code))
    said: dict[str, list[str]] = {}

    class Listening(Reports):
        def said(self, run: object, text: str) -> None:
            said.setdefault(run.folder_name, []).append(text)  # type: ignore[attr-defined]

    path = write_experiment(tmp_path, variants={name: {} for name in "abc"})
    listening = Listening()
    outcomes = run_experiment(load_experiment(path), devices=["4", "7"], progress=listening, launch=launch)
    assert [outcome.reason for outcome in outcomes] == [None] * 3
    seen = {name: texts[0].split() for name, texts in said.items()}
    assert {seen["a-seed0"][1], seen["b-seed0"][1]} == {"4", "7"}
    assert seen["c-seed0"][1] in ("4", "7")
    assert len({words[2] for words in seen.values()}) == 3
    assert listening.lines[1:3] == ["a-seed0 started on 4", "b-seed0 started on 7"]


def test_changed_libraries_are_allowed_to_each_run(
    tmp_path: Path, visgraft: Visgraft, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed: list[str] = []
    code = "import sys; print(*sys.argv[1:]); sys.exit(2)"
    monkeypatch.setitem(launch_process.__kwdefaults__, "program", (sys.executable, "-c", code))
    path = write_experiment(tmp_path, variants={"lora": {}})
    for more in ([], ["--allow-changed"]):
        assert visgraft("experiment", path, *more).status == 1
        printed.append((tmp_path / "runs" / "tiny" / "lora-seed0" / "failure.txt").read_text().split()[-1])
    assert printed[0] != "--allow-changed" == printed[1]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import sys; sys.stderr.write('error: no such thing\\nbye\\n'); sys.exit(2)", "no such thing"),
        ("raise RuntimeError('a mistake')", "RuntimeError: a mistake"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "was ended by SIGKILL (out of memory?)"),
        ("import sys; sys.exit(3)", "exit status 3"),
    ],
)
def test_a_process_that_fails_says_why_in_one_line(tmp_path: Path, code: str, reason: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("")
    job = ProcessJob([sys.executable, "-c", code], recipe=recipe, device=None, say=lambda _: None)
    deadline = time.monotonic() + 60
    while job.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert job.failure()[0] == reason
    assert not recipe.exists()


def wait_for(is_there: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 180
    while not is_there():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_what_runs_and_the_same_command_goes_on(
    visgraft: Visgraft, tmp_path: Path, number: int, status: int
) -> None:
    path = write_experiment(tmp_path, variants={"lora": {}, "later": {}}, num_images=8, train={"epochs": 10_000})
    longer = ["--set", "train.max_steps=100000"]
    run = tmp_path / "runs" / "tiny" / "lora-seed0"
    command = [*warm_python(), "-m", "visgraft", "experiment", str(path), *longer]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True
    ) as process:
        wait_for(lambda: (run / "metrics.jsonl").is_file(), process)
        process.send_signal(number)
        _, err = process.communicate(timeout=180)
    assert process.returncode == status, err
    assert err.splitlines()[-1] == "stopped; what was done is kept, and the same command goes on"
    assert "lora-seed0: stopping after this step, then saving (SIGTERM); Ctrl-C stops at once" in err
    assert action_for(run) == "resume"
    assert not (run.parent / "later-seed0").exists()
    refused = visgraft("experiment", path, "--set", "train.max_steps=3")
    assert refused.status == 2
    assert "lora-seed0: was run with train.max_steps 100000, but now it is 3" in refused.err


def test_a_dry_run_without_network_or_data_tells_what_trains(visgraft: Visgraft, tmp_path: Path) -> None:
    variants = {"lora": {}, "all": {"train.vision": "full", "train.language": "full", "train.head": {"last_layers": 1}}}
    path = write_experiment(tmp_path, recipe=NOWHERE, variants=variants, seeds=2)
    outcome = visgraft("experiment", path, "--dry-run")
    assert outcome.status == 0, outcome.err
    lines = outcome.out.splitlines()
    assert lines[1].split() == ["lora", "projection", "full,", "language", "lora", "r4", *["unknown"] * 5, "0,", "1"]
    assert lines[2].startswith("all      vision full, projection full, language full, head last_layers 1")
    assert "unknown: nobody/no-" in outcome.out
    assert "4 runs, which would be in" in lines[-1]
    values = json.loads(visgraft("experiment", path, "--dry-run", "--json").out)
    assert [(value["variant"], value["parameters"], value["length"]) for value in values] == [
        ("lora", None, None),
        ("all", None, None),
    ]
    assert values[0]["trains"] == {"projection": "full", "language": "lora r4"}


@pytest.mark.slow
@pytest.mark.parametrize("path", SHIPPED, ids=[path.stem for path in SHIPPED])
def test_a_shipped_experiment_dry_runs_where_there_is_nothing(
    visgraft: Visgraft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    for variable in ("HOME", "VISGRAFT_CACHE", "HF_HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # the starter pair cannot be fetched
    outcome = visgraft("experiment", path, "--dry-run", "--json")
    assert outcome.status == 0, outcome.err
    previews = json.loads(outcome.out)
    assert len(previews) == len({preview["variant"] for preview in previews}) >= 3
    for preview in previews:
        assert preview["trains"]["projection"] == "full"
        assert preview["unknown"]
        assert preview["parameters"] is preview["length"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "lara"], "--only: no variant is named 'lara'; did you mean lora?"),
        (["--set", "train.epoch=3"], "train.epoch: unknown key; did you mean train.epochs?"),
        (["--gpus", "0"], "--gpus 0: visible are 2, 3; name each once, or say all"),
        (["--seeds", "0"], "--seeds"),
    ],
)
def test_what_is_wrong_is_one_line_and_status_2(
    visgraft: Visgraft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    outcome = visgraft("experiment", write_experiment(tmp_path), *arguments)
    assert (outcome.status, outcome.out) == (2, "")
    assert message in outcome.err.splitlines()[-1]
    assert visgraft("experiment", tmp_path / "nowhere.yaml").status == 2


def test_gpus_are_those_that_are_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert devices_of(None) == [None]
    assert devices_of("all") == ["2", "3"]
    assert devices_of("3") == ["3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConfigError, match="--gpus all: this machine has no GPU that is visible; leave --gpus out"):
        devices_of("all")
    with pytest.raises(ConfigError, match="--gpus 1,1: visible are none; name each once"):
        devices_of("1,1")
