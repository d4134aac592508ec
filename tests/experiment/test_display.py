"""The user sees which run goes on and how far it is; a log sees plain lines and nothing of the tables."""

from pathlib import Path

from rich.console import Console

from tests.experiment.made import run_here, write_experiment
from visgraft.experiment import Outcome, load_experiment, run_experiment
from visgraft.experiment.display import ExperimentProgress


def test_a_log_gets_the_lines_that_say_how_far_a_run_is(tmp_path: Path) -> None:
    console = Console(width=100, record=True, quiet=False, force_terminal=False)
    experiment = load_experiment(write_experiment(tmp_path, variants={"lora": {}}))
    [run] = experiment.runs
    with console.capture() as captured, ExperimentProgress(console) as progress:
        run_experiment(experiment, launch=run_here, progress=progress)
        progress.said(run, "part    trains")
        progress.said(run, "step 4  loss 0.5  1.0 samples/s")
        progress.started(run, device="1", is_resumed=True)
        progress.ended(Outcome(run, tmp_path, "no [memory]"))
    assert captured.get().splitlines() == [
        "1 run",
        "lora-seed0: starts",
        "lora-seed0: finished",
        "lora-seed0: step 4  loss 0.5  1.0 samples/s",
        "lora-seed0: goes on on GPU 1",
        "lora-seed0: failed: no [memory]",
    ]


def test_a_terminal_shows_the_latest_line_beside_the_bar(tmp_path: Path) -> None:
    console = Console(width=120, force_terminal=True)
    [run] = load_experiment(write_experiment(tmp_path, variants={"lora": {}})).runs
    with console.capture() as captured, ExperimentProgress(console) as progress:
        progress.begin(total=4, finished=1)
        progress.said(run, "step 4  loss 0.5  1.0 samples/s")
    assert "4 runs, 1 of them finished already" in captured.get()
    assert "lora-seed0: step 4  loss 0.5" in captured.get()
    assert "1/4" in captured.get()
