"""Validation asks the same questions in every run, skips what cannot be asked and accepts every reference."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.training.tiny import tiny_recipe
from visgraft.config import load_recipe
from visgraft.data.sample import Turn
from visgraft.errors import BadSampleError, ConfigError
from visgraft.inference import Answer
from visgraft.training import validate as validate_module
from visgraft.training.plan import Planner
from visgraft.training.progress import TrainProgress
from visgraft.training.setup import open_session
from visgraft.training.training_data import pick_questions
from visgraft.training.validate import answer_sample_prompts, score_questions, validate


def test_questions_are_the_same_in_every_run_one_of_each_sample(make_planner: Callable[..., Planner]) -> None:
    planner = make_planner(bad=3)
    questions = pick_questions(planner.sources, planner.processor, number=6)
    assert questions == pick_questions(planner.sources, planner.processor, number=6)
    assert len({sample.id for sample in questions}) == 6
    assert all(len(sample.dialogs) == 1 for sample in questions)
    everything = pick_questions(planner.sources, planner.processor, number=100)
    assert len(everything) == 12
    assert everything[:6] == questions
    assert not any("bad" in str(sample.id) for sample in everything)


def test_an_answer_is_right_if_it_equals_any_reference(
    tmp_path: Path, quiet: TrainProgress, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = open_session(load_recipe(tiny_recipe(tmp_path, exact_match_samples=4)), progress=quiet)
    first, *others = session.questions
    turn = Turn("What is it?", "a cat", references=("cat", "one cat"))
    session.questions = [type(first)(first.images, [[turn]], id=first.id), *others]
    said = [Answer(text) for text in ("one cat", "wrong", "wrong", "wrong")]
    monkeypatch.setattr(validate_module, "answer_each", lambda *_, **__: iter(said))
    assert score_questions(session) == 0.25


def test_validating_leaves_mode_weights_and_random_state_alone(tmp_path: Path, quiet: TrainProgress) -> None:
    recipe = tiny_recipe(tmp_path, family="opt", dropout=0.1, exact_match_samples=2)
    session = open_session(load_recipe(recipe), progress=quiet)
    modes = [module.training for module in session.model.modules()]
    weights = {name: tensor.clone() for name, tensor in session.model.state_dict().items()}
    random_state = torch.get_rng_state()
    first = validate(session)
    answer_sample_prompts(session)
    assert validate(session) == first
    assert [module.training for module in session.model.modules()] == modes
    assert all(torch.equal(tensor, weights[name]) for name, tensor in session.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_ones_own_images_are_asked_behind_the_fixed_questions_and_kept_small(
    tmp_path: Path, quiet: TrainProgress
) -> None:
    Image.new("RGB", (700, 350), "red").save(tmp_path / "mine.png")
    recipe = tiny_recipe(tmp_path, max_new_tokens=2)
    recipe["data"]["sample_prompts"] = [{"image": str(tmp_path / "mine.png"), "prompts": ["What is it?", ""]}]
    session = open_session(load_recipe(recipe), progress=quiet)
    records = answer_sample_prompts(session)
    held_out, own = records[:4], records[4:]
    assert all(len(record["expected"]) == 1 for record in held_out)
    assert [(record["prompt"], record["expected"]) for record in own] == [("What is it?", []), ("", [])]
    assert {record["id"] for record in own} == {f"own:{tmp_path / 'mine.png'}"}
    with Image.open(session.run.folder / own[0]["image"]) as image:
        assert image.size == (320, 160)
        assert image.getpixel((0, 0))[0] > 250
    assert all((session.run.folder / record["image"]).is_file() for record in records)
    assert {record["stopped"] for record in records} <= {True, False}


def test_a_sample_prompt_that_is_too_long_costs_itself_and_is_told(
    tmp_path: Path, quiet: TrainProgress, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "mine.png")
    recipe = tiny_recipe(tmp_path, max_new_tokens=2)
    recipe["data"]["sample_prompts"] = [{"image": str(tmp_path / "mine.png"), "prompts": ["cat " * 200, "Why?"]}]
    session = open_session(load_recipe(recipe), progress=quiet)
    told: list[str] = []
    monkeypatch.setattr(session.progress, "say", told.append)
    *held_out, long, short = answer_sample_prompts(session)
    assert long["answer"] == ""
    assert "the 128 positions of llama leave no room for an answer" in long["error"]
    assert not any("error" in record for record in (*held_out, short))
    assert told == [f"1 of 6 questions have no answer: {long['error']}"]
    (tmp_path / "mine.png").unlink()
    with pytest.raises(BadSampleError, match="image file is missing"):
        answer_sample_prompts(session)


def test_a_probe_that_is_no_image_is_said_before_anything_trains(tmp_path: Path, quiet: TrainProgress) -> None:
    recipe = tiny_recipe(tmp_path)
    (tmp_path / "notes.txt").write_text("no image")
    recipe["data"]["sample_prompts"] = [{"image": str(tmp_path / "notes.txt")}]
    with pytest.raises(ConfigError, match=r"data\.sample_prompts\.0\.image: .*notes\.txt: .*; name an image file"):
        open_session(load_recipe(recipe), progress=quiet)
