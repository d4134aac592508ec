"""`visgraft compare` and `visgraft watch` as a person types them."""

import json
from pathlib import Path

import pytest

from tests.compare.made_runs import save_experiment, save_run
from visgraft.cli import main


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return save_experiment(tmp_path / "modules", num_variants=3, seeds=1, num_steps=20)


@pytest.mark.slow
def test_compare_writes_what_is_asked_for_and_names_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "modules", "--only", "lora", "--png", "new/c.png", "--markdown", "new/c.md"]) == 0
    out = capsys.readouterr().out
    assert "★" not in out  # alone it is no best
    assert out.splitlines()[-3:] == ["compare.html", "new/c.png", "new/c.md"]
    assert Path("compare.html").stat().st_size > 500_000
    assert Path("new/c.png").is_file()
    assert "## Results" in Path("new/c.md").read_text()


@pytest.mark.slow
def test_json_stands_alone_on_standard_output(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "modules", "-o", "report.html", "--json"]) == 0
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)["variants"]) == 3
    assert "report.html" in captured.err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["compare", "nowhere"], "no such run folder"),
        (["compare", "modules", "--only", "lorra"], "did you mean lora?"),
        (["compare", "modules", "--prompt", "Why?"], "--prompt: there is no image to ask about; add --image FILE"),
        (["compare", "modules", "--image", "nowhere.png"], "nowhere.png: image file is missing"),
        (["compare", "modules", "-o", "."], "is a folder: give the name of a file to write"),
        (["compare", "modules", "--markdown", "."], "is a folder: give the name of a file to write"),
        (["watch", "nowhere"], "no such run folder"),
        (["compare"], "Missing argument"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    folder: Path, capsys: pytest.CaptureFixture[str], args: list[str], words: str
) -> None:
    assert main(args) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error


def test_watch_tells_a_line_a_run_and_ends_when_all_are_over(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", "modules"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["projection-seed0", "lora-seed0", "language-seed0"]
    assert all(line.endswith("finished") for line in lines)


def test_watch_once_does_not_wait_and_ctrl_c_is_status_130(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_run(folder / "half", name="half", num_steps=5, planned_steps=20)
    assert main(["watch", "modules/half", "--once"]) == 0
    assert "half: step 5" in capsys.readouterr().out

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("visgraft.cli.watch.time.sleep", interrupted)
    assert main(["watch", "modules/half"]) == 130
