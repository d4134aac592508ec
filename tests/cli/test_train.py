"""`visgraft train` from the command line: a run, a resumed run, and recipes that cannot run."""

import shutil
from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import Visgraft
from tests.training.tiny import tiny_recipe
from visgraft.training.interrupt import STOP_SIGNALS, Interrupted


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe(folder, num_images=4, max_new_tokens=2)))
    for name in ("tiny-clip", "tiny-llama", "train", "validation"):  # whose terms are known, so that nothing is said
        (folder / name / "README.md").write_text("---\nlicense: cc0-1.0\n---\n")
    return path


def test_a_recipe_becomes_a_run_that_answers_and_goes_on(visgraft: Visgraft, recipe: Path) -> None:
    outcome = visgraft("train", recipe, "--set", "train.max_steps=1", "--set", "name=first")
    assert outcome.status == 0, outcome.err
    [run] = (recipe.parent / "runs").iterdir()
    assert outcome.out == f"{run}\n"
    assert "step 1  loss" in outcome.err
    assert "\x1b" not in outcome.err
    assert "train: {" not in outcome.err
    asked = visgraft("ask", run, recipe.parent / "train" / "0.png", "Which colour?", "--max-new-tokens", 2)
    assert asked.status == 0
    resumed = visgraft("train", "--resume", run, "--set", "train.max_steps=2")
    assert (resumed.status, resumed.out) == (0, f"{run}\n"), resumed.err
    assert "2 steps" in visgraft("show", run).out


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_an_interrupted_run_says_how_to_go_on(
    visgraft: Visgraft, recipe: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise Interrupted(Path("runs/first"), number=number)

    monkeypatch.setattr("visgraft.training.loop.train", interrupt)
    outcome = visgraft("train", recipe)
    assert (outcome.status, outcome.out) == (128 + number, "")
    assert outcome.err == "stopped and saved; go on with `visgraft train --resume runs/first`\n"


def test_a_language_model_without_tokenizer_is_said(visgraft: Visgraft, recipe: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(recipe.parent / "tiny-llama", bare, ignore=shutil.ignore_patterns("*token*", "*.jinja"))
    outcome = visgraft("train", recipe, "--set", f"model.language={bare}")
    assert outcome.status == 2
    assert outcome.err == (
        f"error: {bare} has no tokenizer that can be loaded: none of its files is there. Copy the tokenizer's files "
        "(tokenizer.json, tokenizer_config.json) of the language model into it, or give a loaded tokenizer\n"
    )


def test_texts_beyond_the_positions_of_the_language_model_are_said(
    visgraft: Visgraft, recipe: Path, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    shutil.copy(recipe.parent / "train" / "0.png", photos)
    (photos / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "' + "a cat and a dog " * 40 + '"}\n')
    outcome = visgraft("train", recipe, "--set", f"data.train.0.path={photos}")
    assert outcome.status == 2
    assert "too long for the language model: 247 positions, 128 allowed" in outcome.err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["train.lora.target_modules=[q_prj]"],
            "'q_prj' matches no linear of the language part; what could match: down",
        ),
        (["data.train.0.source=foldr"], "data.train.0.source: no reader is named 'foldr'; did you mean folder?"),
        (["data.train.0.path=/no/such"], "folder: there is no metadata.jsonl in /no/such"),
        (
            ["data.train=[]"],
            "data.train: names no data; give it a source ({source: folder, path: ...}), or `visgraft init`",
        ),
        (["model.template=chat"], "this tokenizer has no chat template"),
    ],
)
def test_a_recipe_that_cannot_run_is_one_line_and_status_2(
    visgraft: Visgraft, recipe: Path, overrides: list[str], message: str
) -> None:
    outcome = visgraft("train", recipe, *(arg for override in overrides for arg in ("--set", override)))
    assert (outcome.status, outcome.out) == (2, "")
    last = outcome.err.splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last


def test_a_run_that_is_not_there_is_said(visgraft: Visgraft, tmp_path: Path) -> None:
    assert "no such recipe" in visgraft("train", "--resume", tmp_path / "nowhere").err


def test_a_run_may_be_made_in_a_folder_of_its_own_name(visgraft: Visgraft, recipe: Path, tmp_path: Path) -> None:
    outcome = visgraft("train", recipe, "--set", "train.max_steps=1", "--output", tmp_path / "mine")
    assert (outcome.status, outcome.out) == (0, f"{tmp_path / 'mine'}\n"), outcome.err
    assert visgraft("train", recipe, "-o", tmp_path / "mine").status == 2
    both = visgraft("train", "--resume", tmp_path / "mine", "-o", tmp_path / "other")
    assert both.status == 2
    assert "a run goes on in its own folder" in both.err


def test_one_command_begins_a_run_goes_on_with_it_and_says_that_it_is_finished(
    visgraft: Visgraft, recipe: Path, tmp_path: Path
) -> None:
    command = ("train", recipe, "--set", "train.max_steps=1", "-o", tmp_path / "mine", "--resume-or-start")
    for _ in range(2):
        outcome = visgraft(*command)
        assert (outcome.status, outcome.out) == (0, f"{tmp_path / 'mine'}\n"), outcome.err
    assert "this run is finished" in outcome.err
    outcome = visgraft("train", recipe, "--resume-or-start")
    assert (outcome.status, outcome.err) == (
        2,
        "error: --resume-or-start: got no folder; name the run's own with --output DIR\n",
    )


def test_validation_without_samples_is_said_before_the_first_step(
    visgraft: Visgraft, recipe: Path, tmp_path: Path
) -> None:
    (tmp_path / "train" / "images").mkdir(parents=True)
    shutil.copy(recipe.parent / "train" / "0.png", tmp_path / "train" / "images")
    (tmp_path / "train" / "questions.json").write_text('[["What is it?", "a cat", 0]]')  # of the split train
    source = f"data.validation=[{{source: easy_vqa, path: {tmp_path}, split: validation}}]"
    outcome = visgraft("train", recipe, "--set", source)
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err == (
        "error: data.validation: got 0 samples and none can be used; name another split, or leave data.validation out\n"
    )


def test_what_changed_while_a_run_was_stopped_is_refused_unless_it_is_allowed(
    visgraft: Visgraft, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe(tmp_path, num_images=4, max_new_tokens=2, max_steps=1)))
    run = visgraft("train", path).out.strip()
    (tmp_path / "train" / "2.png").write_bytes((tmp_path / "train" / "1.png").read_bytes())
    longer = ("train", "--resume", run, "--set", "train.max_steps=2")
    outcome = visgraft(*longer)
    assert outcome.status == 2
    assert "data.train folder images: 4 files, " in outcome.err
    assert "--allow-changed" in outcome.err
    outcome = visgraft(*longer, "--allow-changed")
    assert (outcome.status, outcome.out) == (0, f"{run}\n"), outcome.err
    assert "what this run depends on has changed:" in outcome.err
