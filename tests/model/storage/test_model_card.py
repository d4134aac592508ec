"""The model card names parts, licences, data and scores, and its lines are those that run."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from tests.tiny import fresh
from tests.training.tiny import save_parts, tiny_recipe
from visgraft import VisionLanguageModel
from visgraft.config import load_recipe
from visgraft.errors import CheckpointError
from visgraft.model.storage.model_card import model_card
from visgraft.runs import Run


def test_a_card_without_a_run_tells_the_parts(tmp_path: Path) -> None:
    fresh("llama", "clip").save_pretrained(tmp_path)
    text = model_card(tmp_path, repo_id="me/cats")
    values = yaml.safe_load(text.split("---")[1])
    assert values["pipeline_tag"] == "image-text-to-text"
    assert values["license"] == "other"
    assert "| vision | clip_vision_model | weights in this folder | unknown |" in text
    assert "| language | llama | weights in this folder | unknown |" in text
    assert 'VisionLanguageModel.from_pretrained("me/cats")' in text
    assert "## Scores" not in text
    ModelCard(text)  # the Hub's own reader takes it


def test_a_run_tells_data_and_scores_and_no_path_of_this_machine(tmp_path: Path) -> None:
    recipe = load_recipe(tiny_recipe(tmp_path))
    run = Run.create(recipe, folder=tmp_path / "run")
    run.append("metrics", {"step": 1, "loss": 2.0})
    run.append("metrics", {"step": 2, "validation_loss": 1.5, "exact_match": 0.25})
    run.append("metrics", {"step": 4, "validation_loss": 1.25, "exact_match": 0.5})
    fresh("llama", "clip").save_pretrained(run.model_path)
    text = model_card(run.model_path, repo_id="me/cats", run=run.folder)
    assert "train: folder" in text
    assert "| validation_loss | 1.25 |" in text
    assert "| exact_match | 0.5 |" in text
    assert "## Changes" not in text
    moved = {"what": "data.train.0.path", "before": str(tmp_path / "a|b"), "now": str(tmp_path / "c")}
    run.append("metrics", {"step": 4, "changed": [moved, {"what": "versions torch", "before": "2.1", "now": "2.2"}]})
    text = model_card(run.model_path, repo_id="me/cats", run=run.folder)
    assert "| 4 | data.train.0.path | a&#124;b | c |\n| 4 | versions torch | 2.1 | 2.2 |" in text
    assert str(tmp_path) not in text


def test_a_licence_is_read_from_the_parts_own_card(tmp_path: Path) -> None:
    vision, language = save_parts(tmp_path)
    (Path(vision) / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\nA model.\n")
    VisionLanguageModel.from_parts(vision, language).save_pretrained(tmp_path / "model")
    text = model_card(tmp_path / "model", repo_id="me/cats")
    assert "| vision | clip_vision_model | weights in this folder | cc-by-nc-4.0 |" in text
    assert "- vision tiny-clip: cc-by-nc-4.0, not for commercial use" in text
    assert str(tmp_path) not in text


def test_limitations_are_those_that_were_measured_or_said_not_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh("llama", "clip").save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    text = model_card("model", repo_id="me/cats")
    assert text.count("| not measured |") == 4
    scores = {
        "model": str(tmp_path / "model"),
        "scores": {"yes_no_yes_ratio": {"value": 0.875}},
        "sight": {"yes_no_f1": {"multi_modal_gain": {"value": 0.125, "low": 0.05, "high": 0.2}}},
        "text_quality": {"never_stopped": 0.5},
        "settings": {"data": "pope", "language": None},
    }
    found = tmp_path / "evaluations" / "20260101-pope"
    found.mkdir(parents=True)
    (found / "scores.json").write_text(json.dumps({"models": [scores]}))
    for given in (None, found):
        text = model_card("model", repo_id="me/cats", evaluation=given)
        assert "On pope, by `visgraft evaluate`:" in text
        assert "yes_no_f1 +0.125 (+0.050 to +0.200) |" in text
        assert "yes to questions of yes or no | 87.5% |" in text and "were cut | 50.0% |" in text
        assert "| languages | measured on pope, in the language of its texts; no other was |" in text
    (found / "scores.json").write_text(json.dumps({"models": [{**scores, "model": "a"}, {**scores, "model": "b"}]}))
    with pytest.raises(CheckpointError, match="holds no scores of this model"):
        model_card("model", repo_id="me/cats", evaluation=found)
    (found / "scores.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"is no scores\.json of"):
        model_card("model", repo_id="me/cats", evaluation=found)


def test_what_is_no_model_has_no_card(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no config\.json; need a model folder"):
        model_card(tmp_path, repo_id="me/cats")


def test_pushing_uploads_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, str] = {}

    class Api:
        def __init__(self, token: Any = None) -> None:
            del token

        def create_repo(self, repo_id: str, **_: Any) -> Any:
            return SimpleNamespace(repo_id=f"me/{repo_id}")

        def upload_folder(self, *, folder_path: str, **_: Any) -> Any:
            seen["card"] = (Path(folder_path) / "README.md").read_text()
            return SimpleNamespace(commit_url="https://hub/commit/1")

    monkeypatch.setattr("visgraft.model.storage.load_and_save.HfApi", Api)
    fresh("llama", "clip").push_to_hub("cats")
    assert 'Processor.from_pretrained("me/cats")' in seen["card"]
