"""Which questions a data set asks, and what each is shown in the controls."""

from pathlib import Path

import pytest

from visgraft.config import DataSettings, SourceSettings, load_recipe
from visgraft.data.sample import Sample, Turn, references_of
from visgraft.data.sources import OpenSource, Sources
from visgraft.errors import ConfigError, DataError
from visgraft.evaluation.asking import other_images
from visgraft.evaluation.benchmarks import open_task
from visgraft.evaluation.questions import Question, questions_of


class Listed(list[Sample]):
    def where(self, index: int) -> str:
        return f"sample {index}"


def sources(*samples: Sample) -> Sources:
    return Sources([OpenSource("made", Listed(samples), length=len(samples))])


def test_captions_of_one_image_are_one_question_with_all_of_them() -> None:
    sample = Sample([Path("a.jpg")], [[Turn("", "a cat")], [Turn("", "one cat")], [Turn("What?", "A cat.")]], id="a")
    caption, question = questions_of(sources(sample), name="made").all
    assert (caption.id, caption.references) == ("made:a#0", ("a cat", "one cat"))
    assert (question.id, question.references, question.image) == ("made:a#1", ("A cat.",), "a.jpg")


def test_the_answer_counts_once_among_the_ten_that_people_gave() -> None:
    ten = ("red", *["blue"] * 9)
    assert references_of(Turn("?", "blue", references=ten)) == ten
    assert references_of(Turn("?", "blue", references=("azure",))) == ("blue", "azure")


def test_later_turns_are_asked_behind_what_was_said_before_them() -> None:
    sample = Sample([Path("a.jpg")], [[Turn("What?", "A cat."), Turn("Which colour?", "Red.")]], id="a")
    questions = questions_of(sources(sample), name="made")
    second = questions.sample(questions.all[1])
    assert second.dialogs == ((Turn("What?", "A cat."), Turn("Which colour?", "")),)


def test_ids_stay_unique_where_those_of_the_data_are_not() -> None:
    twice = [Sample([Path(name)], [[Turn("?", "yes")]], id="same") for name in ("a", "b")]
    assert [question.id for question in questions_of(sources(*twice), name="made").all] == [
        "made:same", "made:same (2)"
    ]  # fmt: skip


def test_a_larger_limit_adds_to_a_smaller_one_and_takes_whole_images() -> None:
    made = [Sample([Path(f"{n}.jpg")], [[Turn(f"{k}?", "yes")] for k in range(3)], id=str(n)) for n in range(10)]
    questions = questions_of(sources(*made), name="made")
    six, twelve = questions.limited(6).all, questions.limited(12).all
    assert len({question.image for question in six}) == 2
    assert {question.id for question in six} < {question.id for question in twelve}
    assert questions.limited(None) is questions


def test_a_frame_stands_around_the_prompt() -> None:
    sample = Sample([Path("a.jpg")], [[Turn("Is it red?", "yes")]], id="a")
    questions = questions_of(sources(sample), name="made", frame="{prompt}\nAnswer with one word.")
    assert questions.sample(questions.all[0]).dialogs[0][0].prompt == "Is it red?\nAnswer with one word."
    assert questions.all[0].prompt == "Is it red?"


def test_data_that_ask_nothing_are_refused() -> None:
    with pytest.raises(DataError, match="made: got 0 samples and none of them asks anything; name another split"):
        questions_of(sources(), name="made")


def asked(number: int, image: str, prompt: str) -> Question:
    return Question(str(number), image, prompt, ("x",), "", number, 0, 0)


def test_images_change_places_prompt_for_prompt() -> None:
    questions = [asked(n, f"{n // 2}.jpg", ("What?", "Is it red?")[n % 2]) for n in range(20)]
    others = other_images(questions)
    for prompt in ("What?", "Is it red?"):
        same = [question for question in questions if question.prompt == prompt]
        assert all(others[question.id].prompt == prompt for question in same)
        assert all(others[question.id].image != question.image for question in same)
        assert {others[question.id].image for question in same} == {question.image for question in same}
    assert other_images(questions) == others  # the same every time


def test_a_prompt_that_stands_alone_gets_any_other_image() -> None:
    questions = [*(asked(n, f"{n}.jpg", f"{n}?") for n in range(5)), asked(5, "0.jpg", "again?")]
    others = other_images(questions)
    assert all(others[question.id].image != question.image for question in questions)


def test_one_image_alone_has_no_other() -> None:
    questions = [asked(n, "a.jpg", "?") for n in range(3)]
    assert {other.image for other in other_images(questions).values()} == {"a.jpg"}


# --- data.test


@pytest.mark.slow
def test_data_test_is_read_by_no_training_and_may_change(tmp_path: Path) -> None:
    from tests.training.tiny import save_data, tiny_recipe
    from visgraft.training.loop import train
    from visgraft.training.progress import make_progress

    values = tiny_recipe(tmp_path, max_steps=1)
    values["data"]["test"] = [{"source": "folder", "path": str(tmp_path / "not yet there")}]
    folder = train(values, progress=make_progress())
    save_data(tmp_path / "not yet there", num_images=3)
    assert len(open_task(str(folder), say=print).questions.all) == 6
    train(values, resume=folder, progress=make_progress())


def test_without_data_test_validation_is_scored_and_said(tmp_path: Path) -> None:
    from tests.training.tiny import save_data

    data = save_data(tmp_path / "data", num_images=2)
    (tmp_path / "recipe.yaml").write_text(f"data: {{validation: [{{source: folder, path: {data}}}]}}")
    said: list[str] = []
    task = open_task(str(tmp_path / "recipe.yaml"), say=said.append)
    assert len(task.questions.all) == 3
    assert "names no data.test: scoring on data.validation, which training may have chosen the model by" in said[0]


def test_a_recipe_without_either_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("data: {}")
    with pytest.raises(ConfigError, match=r"data\.test: missing, and so is data\.validation"):
        open_task(str(tmp_path / "recipe.yaml"), say=print)
    (tmp_path / "recipe.yaml").write_text("train: {epochs: 3}")
    with pytest.raises(ConfigError, match="train: there is no model section; need a whole recipe, or data alone"):
        open_task(str(tmp_path / "recipe.yaml"), say=print)


def test_augmentation_and_mixing_are_no_business_of_the_test_data() -> None:
    entry = SourceSettings(source="easy_vqa", weight=2.5)
    recipe = load_recipe({"model": {"vision": "a", "language": "b"}, "data": {"test": [{"source": "easy_vqa"}]}})
    assert recipe.data.test == (SourceSettings(source="easy_vqa"),)
    assert Sources([], settings=DataSettings(train=(entry,)), part="test").augment.is_on is False
