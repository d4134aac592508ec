"""`visgraft annotate`, as it is typed."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Visgraft
from visgraft.annotate.progress import Progress

SHORT = ("--max-new-tokens", 4, "--device", "cpu", "--precision", "fp32")


def test_a_folder_is_labelled_and_said_where(visgraft: Visgraft, folder: Path, tmp_path: Path) -> None:
    command = ("annotate", folder / "run", folder / "photos", tmp_path / "out", "--prompt", "What is it?", *SHORT)
    outcome = visgraft(*command)
    assert (outcome.status, outcome.out) == (0, f"{tmp_path / 'out'}\n")
    assert "labelled: 4 of 4 images" in outcome.err
    outcome = visgraft(*command, "--json")
    assert json.loads(outcome.out)["images"] == 4
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["key"]["prompts"] == ["What is it?"]
    outcome = visgraft(*command, "--prompt", "")
    assert outcome.status == 2
    assert "was begun with other settings (prompts: 'What is it?' then, 'What is it?' | '' now)" in outcome.err


def test_rows_with_errors_are_said_with_what_to_do(visgraft: Visgraft, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"not an image")
    outcome = visgraft("annotate", folder / "run", tmp_path / "photos", tmp_path / "out", "--prompt", "", *SHORT)
    assert outcome.status == 0
    assert "1 row with an error; --retry-errors tries them again" in outcome.err


@pytest.mark.parametrize(
    ("shard", "says"),
    [("3", "--shard: got '3', need I/N, such as 0/8"), ("4/4", "of 4 parts the last is 3/4: they count from 0")],
)
def test_a_part_that_is_none_is_said(visgraft: Visgraft, folder: Path, tmp_path: Path, shard: str, says: str) -> None:
    outcome = visgraft("annotate", folder / "run", folder / "photos", tmp_path / "out", "--shard", shard)
    assert outcome.status == 2
    assert says in outcome.err


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(
    visgraft: Visgraft, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "unit_done", stop)
    command = ("annotate", folder / "run", folder / "photos", tmp_path / "out", "--prompt", "", *SHORT)
    outcome = visgraft(*command, "--rows-per-unit", 2)
    assert outcome.status == 130
    assert "the same command goes on from there" in outcome.err
    assert len(list((tmp_path / "out" / "data").iterdir())) == 1


def test_answers_are_drawn_or_chosen_as_asked(visgraft: Visgraft, folder: Path, tmp_path: Path) -> None:
    command = ("annotate", folder / "run", folder / "photos", tmp_path / "out", "--prompt", "What is it?", *SHORT)
    outcome = visgraft(*command, "--temperature", "0.7", "--top-p", "0.9", "--seed", "1", "--choices", "red, blue")
    assert outcome.status == 0, outcome.err
    decoding = json.loads((tmp_path / "out" / "manifest.json").read_text())["key"]["decoding"]
    assert decoding["choices"] == ["red", "blue"]
    assert (decoding["do_sample"], decoding["temperature"], decoding["seed"]) == (True, 0.7, 1)
    refused = visgraft(*command, "--choices", "red")
    assert refused.status == 2 and "--choices: got 'red', need two answers or more" in refused.err
