"""A preview says what training would do: the same parameters, steps and tokens, or nothing where it cannot know."""

from pathlib import Path

import pytest

from tests.experiment.made import Reports, run_here, write_experiment
from visgraft.errors import ConfigError
from visgraft.experiment import load_experiment, preview, run_experiment
from visgraft.experiment.preview import measure_length, preview_experiment
from visgraft.runs import Run

pytestmark = pytest.mark.slow

VARIANTS = {
    "lora": {},
    "all": {"train.vision": "full", "train.language": "full", "train.max_steps": 3},
    "second": {"model.start_from": {"variant": "lora"}, "train.max_steps": 1},
}


@pytest.mark.parametrize("is_finished", [False, True])
def test_a_preview_is_what_the_runs_then_are(tmp_path: Path, is_finished: bool) -> None:
    experiment = load_experiment(write_experiment(tmp_path, variants=VARIANTS))
    if is_finished:
        outcomes = run_experiment(experiment, launch=run_here, progress=Reports())
    previews = preview_experiment(experiment)
    if not is_finished:
        outcomes = run_experiment(experiment, launch=run_here, progress=Reports())
    for expected, outcome in zip(previews, outcomes, strict=True):
        summary = Run.open(outcome.folder).read_summary()
        assert summary is not None and expected.length is not None
        trained = {part: count for part, count in summary["trainable_parameters"].items() if count}
        assert expected.parameters is not None
        assert expected.parameters.keys() == trained.keys()
        assert expected.parameters["projection"] == trained["projection"]
        assert expected.parameters["language"] == trained["language"]
        length = expected.length
        measured = (summary["steps"], summary["text_tokens"], summary["supervised_tokens"])
        assert (length.steps, length.text_tokens, length.supervised_tokens) == measured
        assert length.is_exact and not expected.unknown


def test_a_long_run_is_reckoned_from_its_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_experiment(tmp_path, num_images=24, variants={"lora": {"train.max_steps": None, "train.epochs": 8}})
    [run] = load_experiment(path).runs
    exact = measure_length(run.recipe)
    monkeypatch.setattr(preview, "NUM_GROUPS", 60)
    about = measure_length(run.recipe)
    assert (exact.is_exact, about.is_exact) == (True, False)
    for name in ("steps", "text_tokens", "supervised_tokens"):
        assert getattr(about, name) == pytest.approx(getattr(exact, name), rel=0.05)


def test_a_variant_that_could_run_nowhere_is_said(tmp_path: Path) -> None:
    variants = {"bad": {"train.lora.target_modules": ["q_prj"]}}
    with pytest.raises(ConfigError, match=r"variants\.bad: train\.lora\.target_modules: 'q_prj' matches no linear"):
        preview_experiment(load_experiment(write_experiment(tmp_path, variants=variants)))
