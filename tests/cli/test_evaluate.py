"""`visgraft evaluate`."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Visgraft

LINES = [
    {"id": 1, "image": "a", "answer": "red", "references": ["red"]},
    {"id": 2, "image": "a", "answer": "blue", "references": ["red"]},
    {"id": 3, "image": "b", "answer": "red", "references": ["red", "crimson"]},
]


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return path


def test_answers_that_exist_are_scored_as_one_json_object(visgraft: Visgraft, answers: Path) -> None:
    done = visgraft("evaluate", "--answers", answers, "--metrics", "exact_match", "--json")
    assert done.status == 0
    [model] = json.loads(done.out)["models"]
    assert model["model"] == "answers.jsonl"
    score = model["scores"]["exact_match"]
    assert list(score) == ["value", "low", "high", "n", "images"]
    assert (score["value"], score["n"], score["images"]) == (pytest.approx(2 / 3), 3, 2)
    assert model["settings"]["metrics"] == ["exact_match"]


def test_the_table_and_the_comparison_are_for_people(visgraft: Visgraft, answers: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(answers.read_text())
    done = visgraft("evaluate", "--answers", answers, "--answers", other, "--metrics", "exact_match", "--power", "0.1")
    assert done.status == 0
    assert "exact_match  other.jsonl" in done.out
    assert "other.jsonl is not distinguishable from answers.jsonl" in done.out
    assert "a difference of 0.1 would show on" in done.out


def test_the_list_names_metrics_and_where_they_are_from(visgraft: Visgraft) -> None:
    done = visgraft("evaluate", "--list")
    assert done.status == 0
    assert "cider" in done.out
    assert "arXiv:1411.5726" in done.out
    assert {row["name"] for row in json.loads(visgraft("evaluate", "--list", "--json").out)["metrics"]} >= {"loss"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to score: give models with --data RECIPE or BENCHMARK, or --answers FILE"),
        (["m", "--answers", "a"], "got models (m) and --answers; give one of the two"),
        (
            ["--answers", "a", "-o", "b"],
            "--output: means nothing with --answers, which scores answers that exist; it",
        ),
        (["--answers", "a", "--limit", "5"], "--limit: means nothing with --answers"),
        (["--answers", "a", "--text", "b"], "--text: means nothing with --answers"),
        (
            ["m", "--text", "a", "--data", "pope"],
            "--data: means nothing with --text, which measures the loss of a",
        ),
        (["--answers", "a", "--power", "0"], "--power: got 0, need a difference above 0"),
        (["--answers", "a", "--metrics", "cidr"], "metrics: got 'cidr', which is no metric; did you mean cider?"),
    ],
)
def test_what_cannot_be_done_is_one_line(visgraft: Visgraft, arguments: list[str], message: str) -> None:
    done = visgraft("evaluate", *arguments)
    assert done.status == 2
    assert message in done.err


def test_models_are_asked_scored_and_controlled(
    visgraft: Visgraft, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISGRAFT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "test.yaml").write_text(f"data: {{test: [{{source: folder, path: {folder / 'photos'}}}]}}")
    command = (
        "evaluate",
        folder / "run",
        "--data",
        tmp_path / "test.yaml",
        "--max-new-tokens",
        3,
        "-o",
        tmp_path / "o",
    )
    done = visgraft(*command)
    assert done.status == 0, done.err
    assert "without the image" in done.out
    assert "multi-modal gain" in done.out
    assert str(tmp_path / "o") in done.out
    again = visgraft(*command, "--json", "--no-controls")
    [model] = json.loads(again.out)["models"]
    assert (model["scores"]["exact_match"]["n"], model["scores"]["exact_match"]["images"]) == (10, 4)
    assert "controls" not in model


def test_a_folder_is_named_by_date_model_and_data(
    visgraft: Visgraft, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISGRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(f"data: {{test: [{{source: folder, path: {folder / 'photos'}}}]}}")
    done = visgraft("evaluate", folder / "run", "--data", "mine.yaml", "--max-new-tokens", 3, "--no-controls")
    assert done.status == 0, done.err
    [made] = (tmp_path / "evaluations").iterdir()
    assert made.name.endswith("-run-mine")


def test_data_check_reports_the_test_data_too(visgraft: Visgraft, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text((folder / "run" / "recipe.yaml").read_text())
    change = f"data.test=[{{source: folder, path: {folder / 'photos'}, limit: 2}}]"
    done = visgraft("data", "check", tmp_path / "recipe.yaml", "--set", change, "--workers", 0, "--json")
    assert [(row["part"], row["samples"]) for row in json.loads(done.out)["sources"]] == [("train", 4), ("test", 2)]
