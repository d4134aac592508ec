import json
from importlib.util import find_spec

import pytest

from visgraft.data.readers import easy_vqa
from visgraft.data.sample import Turn
from visgraft.errors import BadSampleError, DataError, MissingAssetError


@pytest.fixture
def data(tmp_path):
    for split, num_images in (("train", 40), ("test", 6)):
        (tmp_path / split / "images").mkdir(parents=True)
        rows = [[f"what is {i}?", f"answer {i}", i] for i in range(num_images)]
        rows += [[f"is it {i}?", "yes", i] for i in range(num_images)]
        (tmp_path / split / "questions.json").write_text(json.dumps(rows))
    return tmp_path


def ids(source):
    return [source[i].id for i in range(len(source))]


def test_each_image_is_a_sample_with_all_its_questions(data):
    source = easy_vqa.read(data, split="test")
    assert len(source) == 6
    assert source[3].images == (data / "test" / "images" / "3.png",)
    assert source[3].dialogs == ((Turn("what is 3?", "answer 3"),), (Turn("is it 3?", "yes"),))
    assert source[3].id == "test/3" and source.where(3) == "test/images/3.png"


def test_the_train_images_are_divided_for_good(data):
    train, validation, both = (ids(easy_vqa.read(data, split=s)) for s in ("train", "validation", "train+validation"))
    assert len(train) == 30 and len(validation) == 10
    assert not set(train) & set(validation) and set(train) | set(validation) == set(both)
    assert validation == ids(easy_vqa.read(data, split="validation"))
    assert [name.split("/")[0] for name in validation] == ["train"] * 10


def test_another_split_is_refused(data):
    with pytest.raises(DataError, match=r"split: got 'dev-test', allowed are train, valid.*, train\+validation, test"):
        easy_vqa.read(data, split="dev-test")


def test_a_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(easy_vqa, "find_spec", lambda name: None)
    with pytest.raises(MissingAssetError, match="run `pip install easy-vqa`"):
        easy_vqa.read(None, split="test")


def test_a_folder_of_another_layout_is_refused(tmp_path):
    with pytest.raises(MissingAssetError, match=r"path must be a folder that holds test/questions.json"):
        easy_vqa.read(tmp_path, split="test")
    (tmp_path / "test").mkdir()
    for content, message in (("[[1, 2]]", "is not a JSON list of"), ("{", "is not a JSON list of"), ("[]", "no quest")):
        (tmp_path / "test" / "questions.json").write_text(content)
        with pytest.raises(DataError, match=message):
            easy_vqa.read(tmp_path, split="test")


def test_a_question_without_an_answer_is_a_bad_sample(data):
    (data / "test" / "questions.json").write_text('[["what?", "", 1]]')
    with pytest.raises(BadSampleError, match="answer is empty"):
        easy_vqa.read(data, split="test")[0]


@pytest.mark.skipif(find_spec("easy_vqa") is None, reason="easy-vqa is not installed")
def test_the_installed_package_holds_the_official_numbers():
    sizes = {}
    for split in easy_vqa.SPLITS:
        source = easy_vqa.read(None, split=split)
        sizes[split] = (len(source), sum(len(source[i].dialogs) for i in range(len(source))))
    assert sizes["train+validation"] == (4000, 38575) and sizes["test"] == (1000, 9673)
    assert sizes["train"][0] == 3000 and sizes["validation"][0] == 1000
    assert easy_vqa.read(None, split="test")[0].images[0].is_file()


def test_some_questions_of_each_image_are_the_same_choice_every_time_and_not_the_first(data):
    chosen = easy_vqa.read(data, split="train+validation", questions_per_image=1)
    answers = [[turn.answer for [turn] in chosen[i].dialogs] for i in range(len(chosen))]
    again = easy_vqa.read(data, split="train+validation", questions_per_image=1)
    assert [chosen[i] for i in range(40)] == [again[i] for i in range(40)]
    assert {len(each) for each in answers} == {1} == set(chosen.num_dialogs.tolist())
    assert 10 < sum(each == ["yes"] for each in answers) < 30  # the file has "what" first
    with pytest.raises(DataError, match="questions_per_image: got 0, need at least 1"):
        easy_vqa.read(data, split="train", questions_per_image=0)


def test_one_kind_of_question_can_be_read_alone(data):
    what = easy_vqa.read(data, split="test", questions="what")
    blind = easy_vqa.read(data, split="test", questions="yes/no")
    assert [what[i].dialogs for i in (0, 5)] == [
        ((Turn("what is 0?", "answer 0"),),),
        ((Turn("what is 5?", "answer 5"),),),
    ]
    assert blind[3].dialogs == ((Turn("is it 3?", "yes"),),)
    assert ids(what) == ids(blind) == ids(easy_vqa.read(data, split="test"))


def test_an_image_without_such_a_question_is_left_out(data):
    rows = [["what is 0?", "answer 0", 0], ["is it 1?", "no", 1]]
    (data / "test" / "questions.json").write_text(json.dumps(rows))
    assert ids(easy_vqa.read(data, split="test", questions="what")) == ["test/0"]
    assert ids(easy_vqa.read(data, split="test", questions="yes/no")) == ["test/1"]
