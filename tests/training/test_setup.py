"""A run is checked before its first step."""

from pathlib import Path

import pytest

from tests.training.tiny import save_data, tiny_recipe
from visgraft.config import load_recipe
from visgraft.errors import ConfigError, DataError, PreflightError
from visgraft.runs import Run
from visgraft.training.fingerprints import recipe_changes, refuse_recipe
from visgraft.training.progress import TrainProgress
from visgraft.training.setup import open_session


def test_a_session_holds_what_trains_and_a_run_folder(tmp_path: Path, quiet: TrainProgress) -> None:
    recipe = load_recipe(tiny_recipe(tmp_path, exact_match_samples=2))
    session = open_session(recipe, folder=tmp_path / "here", progress=quiet)
    assert session.run.folder == tmp_path / "here"
    assert load_recipe(session.run.folder) == recipe
    assert {name.split(".")[0] for name in session.trained} == {"projection", "language"}
    assert (len(session.sample_prompts), len(session.questions)) == (4, 2)
    assert session.model.training
    assert not session.model.vision.training
    assert len(session.filler.sample_ids) == 2
    assert session.fraction_done == 0.0


def test_the_filler_has_images_and_several_dialogs_where_the_data_have_them(
    tmp_path: Path, quiet: TrainProgress
) -> None:
    session = open_session(load_recipe(tiny_recipe(tmp_path, text_tokens_per_step=500)), progress=quiet)
    assert session.filler.num_dialogs == 4
    assert len(session.filler.num_image_tokens) == 2


def test_a_part_that_cannot_learn_is_refused_before_the_first_step(tmp_path: Path, quiet: TrainProgress) -> None:
    recipe = tiny_recipe(tmp_path, projection="frozen", language="frozen")
    with pytest.raises(ConfigError, match="nothing trains; set one of vision, projection, language, head"):
        open_session(load_recipe(recipe), progress=quiet)
    assert not (tmp_path / "runs").exists()


def test_a_broken_model_fails_the_preflight_and_leaves_no_run(
    tmp_path: Path, quiet: TrainProgress, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(tmp_path)
    monkeypatch.setattr(
        "visgraft.model.projection.Projection.forward", lambda self, features, **_: self.linear(features) * float("nan")
    )
    with pytest.raises(PreflightError, match="the loss is not finite before training; samples: folder:"):
        open_session(load_recipe(recipe), progress=quiet)
    assert not (tmp_path / "runs").exists()


def test_data_of_which_nothing_can_be_used_is_refused(tmp_path: Path, quiet: TrainProgress) -> None:
    recipe = tiny_recipe(tmp_path)
    recipe["data"] = {"train": [{"source": "folder", "path": save_data(tmp_path / "bad", num_images=0, bad=3)}]}
    with pytest.raises(DataError, match=r"data\.train: source 'folder' has no good sample: all 3 are bad"):
        open_session(load_recipe(recipe), progress=quiet)


def test_what_makes_it_another_run_may_not_change(tmp_path: Path) -> None:
    before = load_recipe(tiny_recipe(tmp_path))
    run = Run.create(before)
    allowed = ["train.epochs=9", "train.keep_checkpoints=7", "train.num_workers=3", "output=elsewhere", "name=x"]
    changes = recipe_changes(run, load_recipe(before, overrides=allowed))
    assert len(changes) == len(allowed)
    refuse_recipe(changes)
    for override, key in [
        ("train.seed=3", r"train\.seed: got 3, but the run began with the default"),
        ("train.lora.r=3", r"train\.lora\.r: got 3, but the run began with 2"),
        ("model.image_attention=causal", r"model\.image_attention: got causal"),
        ("data.max_dialogs_per_prefix=3", r"data\.max_dialogs_per_prefix: got 3, but the run began with 2"),
        ("data.train.0.limit=3", r"data\.train\.0\.limit: got 3, but the run began with the default"),
    ]:
        with pytest.raises(ConfigError, match=key):
            refuse_recipe(recipe_changes(run, load_recipe(before, overrides=[override])))


def test_what_was_set_aside_before_counts_when_a_run_is_resumed(tmp_path: Path, quiet: TrainProgress) -> None:
    recipe = load_recipe(tiny_recipe(tmp_path))
    session = open_session(recipe, progress=quiet)
    session.quarantines["train"].add(session.planner.sources.bad_sample(3, "torn"))
    again = open_session(recipe, progress=quiet)
    assert len(again.quarantines["train"]) == 0
    assert [record["reason"] for record in Run.open(session.run.folder).read("quarantine")] == ["torn"]
