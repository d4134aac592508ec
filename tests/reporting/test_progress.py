"""The user sees where a run stands: live in a terminal, in plain lines elsewhere."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from visgraft.model.trainable import PartRow
from visgraft.reporting import progress as progress_module
from visgraft.reporting.progress import Display, working
from visgraft.training.progress import TrainProgress, make_progress
from visgraft.training.setup import parts_as_table

ROWS = [
    PartRow("vision", "frozen", 1234567, 0, "bfloat16", None, ()),
    PartRow("projection", "full", 1000, 1000, "float32", 1e-3, ("unused: projection.x",)),
]
SOURCES = {"coco": {"texts": 50, "epochs": 0.5}, "webdataset": {"texts": 1200, "epochs": None}}


def record(step: int, **values: Any) -> dict[str, Any]:
    return {"step": step, "loss": 2.5, "samples": 10, "supervised_tokens": 100, "seconds": 1.0, **values}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    return now


def test_plain_lines_tell_step_loss_speed_and_time_left(clock: list[float]) -> None:
    out = io.StringIO()
    with TrainProgress(Console(file=out, width=120)) as progress:
        progress.begin(Path("runs/one"), table=parts_as_table(ROWS), notes=["a note"])
        for step in range(1, 31):
            progress.step(record(step), fraction=step / 60)
            clock[0] += 1.0
        progress.validated({"step": 30, "validation_loss": 1.25, "exact_match": 0.815})
    lines = out.getvalue().splitlines()
    assert any(line.split() == ["vision", "frozen", "1,234,567", "0", "bfloat16"] for line in lines)
    assert any("0.001" in line and line.rstrip().endswith("unused: projection.x") for line in lines)
    assert lines[-6:-3] == ["a note", "run: runs/one", lines[-4]]
    assert [line.split()[1] for line in lines[-4:-1]] == ["1", "11", "21"]  # one in ten seconds
    assert lines[-2] == "step 21  loss 2.5000  10.0 samples/s  100 supervised tokens/s  0:39 left"
    assert lines[-1] == "step 30: validation loss 1.2500, exact match 81.5%"


def test_epochs_of_several_sources_are_told_and_of_a_stream_its_texts(clock: list[float]) -> None:
    out = io.StringIO()
    with TrainProgress(Console(file=out, width=120)) as progress:
        progress.step(record(1, sources=SOURCES), fraction=1.0)
    assert "epochs: coco 0.50, webdataset 1,200 texts" in out.getvalue()


def test_the_last_step_always_gets_its_line(clock: list[float]) -> None:
    out = io.StringIO()
    with TrainProgress(Console(file=out, width=120)) as progress:
        progress.step(record(1), fraction=0.5)
        progress.step(record(2), fraction=1.0)
    assert [line.split()[1] for line in out.getvalue().splitlines()] == ["1", "2"]


def test_a_terminal_shows_a_live_bar() -> None:
    out = io.StringIO()
    with TrainProgress(Console(file=out, width=120, force_terminal=True, color_system=None)) as progress:
        progress.step(record(3), fraction=0.25)
        progress.say("[not markup]")
    assert "25%" in out.getvalue()
    assert "step 3" in out.getvalue()
    assert "[not markup]" in out.getvalue()


def test_60_columns_show_every_number_whole_and_when_it_ends(clock: list[float]) -> None:
    out = io.StringIO()
    with TrainProgress(Console(file=out, width=60, force_terminal=True, color_system=None)) as progress:
        progress.begin(Path("runs/one"), table=parts_as_table(ROWS), notes=[])
        for step in range(1, 31):
            progress.step(record(20_000 + step, sources=SOURCES), fraction=step / 6000)
            clock[0] += 10.0
        progress.bars.refresh()
    lines = out.getvalue().splitlines()
    assert "1,234,567 parameters, 0 trained" in out.getvalue() and "…" not in out.getvalue()
    assert max(map(len, (line.rpartition("\r")[2] for line in lines if "\x1b" not in line))) <= 60
    assert "step 20030  loss 2.5000  16:35:00 left" in out.getvalue()


def test_long_runs_count_hours(clock: list[float]) -> None:
    out = io.StringIO()
    progress = TrainProgress(Console(file=out, width=120))
    progress.step(record(1), fraction=0.0)
    clock[0] += 36.0
    progress.step(record(2), fraction=0.005)
    assert out.getvalue().splitlines()[-1].endswith("1:59:24 left")


def test_show_false_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with make_progress(show=False) as progress:
        progress.say("unseen")
        progress.step(record(1), fraction=1.0)
    assert capsys.readouterr() == ("", "")


# --- Work that is counted


def test_long_work_is_reported_in_plain_lines_now_and_then(clock: list[float]) -> None:
    out = io.StringIO()
    with Display(Console(file=out, width=120)) as display:
        with display.work("reading train", total=5000, unit="samples") as advance:
            for _ in range(25):
                clock[0] += 1.0
                advance(100)
        with display.work("reading a stream", total=None, unit="samples") as advance:
            clock[0] += 10.0
            advance(7)
    assert out.getvalue().splitlines() == [
        "reading train: 1,000 of 5,000 samples",
        "reading train: 2,000 of 5,000 samples",
        "reading a stream: 7 samples",
    ]


def test_a_terminal_counts_beside_a_bar_that_goes_away() -> None:
    out = io.StringIO()
    with Display(Console(file=out, width=120, force_terminal=True, color_system=None)) as display:
        with display.work("captioning", total=9, unit="images") as advance:
            advance(4)
            display.bars.refresh()
        display.bars.refresh()
        assert display.bars.tasks == []
    assert "captioning" in out.getvalue()
    assert "4/9 images" in out.getvalue()


def test_work_that_another_shows_is_silent(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress_module, "LINE_EVERY_S", 0.0)
    with working("captioning", total=9, unit="images") as advance:
        advance(4)
    with working("captioning", total=9, unit="images", is_shown=False) as advance:
        advance(5)
    assert capsys.readouterr().err == "captioning: 4 of 9 images\n"
