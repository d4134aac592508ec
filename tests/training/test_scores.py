"""Scores during training: measured, kept, chosen by."""

from pathlib import Path
from typing import Any

import pytest

from tests.training.tiny import tiny_recipe
from visgraft.config import load_recipe
from visgraft.data.sample import Sample, Turn
from visgraft.errors import ConfigError
from visgraft.inference import answer, load
from visgraft.metrics import metric_named
from visgraft.runs import Run
from visgraft.training import loop
from visgraft.training.loop import train
from visgraft.training.progress import make_progress
from visgraft.training.setup import check_before_loading, open_session
from visgraft.training.validate import score_answers


def recipe(folder: Path, **settings: Any) -> dict[str, Any]:
    values = {"scores": ["exact_match", "cider"], "score_samples": 3, "max_steps": 2, "max_new_tokens": 3}
    return tiny_recipe(folder, **{**values, **settings})


def test_scores_are_in_the_metrics_and_the_summary(tmp_path: Path) -> None:
    run = Run.open(train(recipe(tmp_path, validate_every_steps=1), progress=make_progress()))
    for record in run.validations():
        assert {"exact_match", "cider"} <= record.keys()
    summary = run.read_summary()
    assert summary is not None
    assert summary["scores"].keys() == {"exact_match", "cider"}


def test_the_scores_are_those_of_the_models_answers_with_all_that_the_sample_accepts(tmp_path: Path) -> None:
    session = open_session(load_recipe(recipe(tmp_path)), progress=make_progress())
    assert len(session.scored) == 3
    for sample in session.scored:  # in the order of training's own questions, each with its accepted answers
        [[turn]] = sample.dialogs
        assert turn.answer in turn.references
    answers = answer(session.model, session.processor, session.scored, max_new_tokens=3)
    references = [sample.dialogs[0][-1].references for sample in session.scored]
    expected = metric_named("cider").compute(answers, references=references)["cider"].value
    assert score_answers(session)["cider"] == pytest.approx(expected)


def test_answers_to_the_same_request_are_references_of_the_one_that_is_picked() -> None:
    from visgraft.training.training_data import _merged

    sample = Sample([], [[Turn("", "a cat")], [Turn("", "one cat")], [Turn("What?", "A cat.")]])
    chosen = Sample([], sample.dialogs[:1])
    [[turn]] = _merged(chosen, sample).dialogs
    assert turn.references == ("a cat", "one cat")


def test_the_model_is_that_of_the_best_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = iter([0.5, 2.0, 1.0])
    real = loop.validate

    def validate(session: Any) -> dict[str, Any]:
        return {**real(session), "cider": next(made)}

    monkeypatch.setattr(loop, "validate", validate)
    values = recipe(tmp_path, max_steps=3, validate_every_steps=1, best_by="cider", learning_rate=1e-3)
    run = Run.open(train(values, progress=make_progress()))
    told = capsys.readouterr()
    assert "the model is that of step 2, the best by cider" in told.out + told.err
    losses = [record["validation_loss"] for record in run.validations()]
    summary = run.read_summary()
    assert summary is not None
    assert summary["model_step"] == 2
    assert summary["scores"]["cider"] == 2.0
    assert losses.index(min(losses)) != 1  # by the loss it were another
    load(str(run.folder))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scores": ["cidr"]}, "got 'cidr', which is no metric; did you mean cider"),
        ({"scores": ["loss"]}, "train.scores: got loss, which needs no answers; validation measures the loss anyway"),
        ({"best_by": "exact"}, "train.best_by: got 'exact', need one of exact_match, cider"),
    ],
)
def test_a_score_that_cannot_be_had_is_refused_before_anything_is_read(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_before_loading(load_recipe(recipe(tmp_path, **settings)))


def test_a_choice_by_scores_needs_scores_and_scores_need_validation(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.best_by: got cider, but nothing is scored; set train\.scores"):
        load_recipe(recipe(tmp_path, scores=[], best_by="cider"))
    values = recipe(tmp_path)
    del values["data"]["validation"]
    with pytest.raises(ConfigError, match=r"train\.scores: got .*, but there is no data\.validation; add a source"):
        load_recipe(values)
