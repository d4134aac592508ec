"""Watching runs: what is drawn, what is reported, when it is over."""

import io
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from tests.compare.made_runs import save_experiment, save_run
from visgraft.compare.live_curves import QUIET_AFTER_S, Watch, plot
from visgraft.errors import CheckpointError


def drawn(watched: Watch, *, width: int = 60, height: int = 8) -> list[str]:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(watched.drawing(width=width, height=height))
    return console.export_text().splitlines()


def test_a_falling_curve_is_drawn_from_the_upper_left_to_the_lower_right() -> None:
    x = np.arange(1, 101.0)
    lines = [line.plain for line in plot([(0, x, np.exp(-x / 20))], width=50, height=10)]
    assert len(lines) == 11
    marked = [[place for place, letter in enumerate(line) if "\u2800" < letter <= "\u28ff"] for line in lines[:10]]
    starts = [min(places) for places in marked]
    assert starts == sorted(starts)
    assert max(marked[-1]) == 49
    assert lines[0].strip().startswith("0.95")
    assert lines[-1].endswith("step 100")
    assert all(len(line) == 50 for line in lines)


def test_losses_that_are_no_numbers_do_not_stop_the_drawing() -> None:
    nothing = (0, np.array([1.0]), np.array([np.nan]))
    assert plot([nothing], width=40, height=5)[0].plain == "no loss that can be drawn"
    steady = (1, np.array([1.0, 2.0]), np.array([2.0, 2.0]))
    assert len(plot([nothing, steady], width=40, height=5)) == 6


def test_runs_are_followed_until_all_are_over(tmp_path: Path) -> None:
    run = save_run(tmp_path / "a", name="a", num_steps=10, planned_steps=20)
    watched = Watch([run])
    watched.read()
    assert not watched.is_over
    assert watched.lines()[0].startswith("a: step 10  loss ")
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 20, "epoch": 1.0, "loss": 0.5, "samples": 32, "seconds": 0.5}) + "\n")
        file.write('{"step": 21, "lo')  # torn: it is being written
    os.utime(run / "metrics.jsonl", (time.time() + 5, time.time() + 5))
    watched.read()
    assert not watched.is_over  # its model is being written
    (run / "summary.json").write_text("{}")
    watched.read()
    assert watched.is_over
    assert watched.lines()[0].endswith("finished")
    assert any("step 20" in line for line in drawn(watched))


def test_runs_that_an_experiment_gains_are_watched_too(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    save_run(folder / "a", name="a", num_steps=10)
    watched = Watch([folder])
    watched.read()
    save_run(folder / "b", name="b", num_steps=10, planned_steps=20)
    watched.read()
    assert [line.split(":")[0] for line in watched.lines()] == ["a", "b"]
    assert not watched.is_over


def test_watching_an_experiment_waits_for_the_runs_that_it_has_yet_to_begin(tmp_path: Path) -> None:
    folder = save_experiment(tmp_path / "modules", num_variants=2, seeds=1, num_steps=10)
    later = (folder / "lora-seed0").rename(tmp_path / "later")
    watched = Watch([folder])
    watched.read()
    assert len(watched.runs) == 1
    assert not watched.is_over
    first = (folder / "projection-seed0").rename(tmp_path / "first")
    watched.read()
    assert drawn(watched)[0] == "no run has taken a step yet"
    first.rename(folder / "projection-seed0")
    later.rename(folder / "lora-seed0")
    watched.read()
    assert watched.is_over


def test_a_run_without_steps_and_one_that_fell_silent_say_so(tmp_path: Path) -> None:
    empty = save_run(tmp_path / "empty", name="a", num_steps=1, planned_steps=20)
    (empty / "metrics.jsonl").unlink()
    watched = Watch([empty])
    watched.read()
    assert watched.lines() == ["empty: no step yet"]
    assert drawn(watched)[0] == "no run has taken a step yet"
    silent = save_run(tmp_path / "silent", name="b", num_steps=5, planned_steps=20)
    then = time.time() - QUIET_AFTER_S - 100
    os.utime(silent / "metrics.jsonl", (then, then))
    watched = Watch([silent])
    watched.read()
    assert watched.lines()[0].endswith("no news for 7 min")


def test_many_runs_have_a_line_each_below_the_curves(tmp_path: Path) -> None:
    watched = Watch([save_experiment(tmp_path / "modules", num_variants=2, num_steps=20)])
    watched.read()
    lines = drawn(watched, width=100)
    assert len(lines) == 8 + 1 + 4
    assert lines[-1].startswith("── ")
    assert "lora-seed1" in lines[-1]


def test_what_is_no_run_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither a run nor a folder of runs"):
        Watch([tmp_path])
