from pathlib import Path

import pytest

from visgraft.data.sample import Sample, Turn, turn_from_row
from visgraft.errors import BadSampleError


def test_a_sample_keeps_its_images_and_dialogs_as_tuples():
    sample = Sample(images=[Path("a.png"), b"..."], dialogs=[[Turn("", "a cat")]], id="1", source="coco")
    assert sample.images == (Path("a.png"), b"...")
    assert sample.dialogs == ((Turn("", "a cat"),),)
    assert Turn("What?", "A cat.", references=["a cat"]).references == ("a cat",)


@pytest.mark.parametrize("prompt, answer, reason", [(None, "x", "prompt is not a string"), ("x", 1.5, "answer is not")])
def test_a_turn_that_is_not_text_is_a_bad_sample(prompt, answer, reason):
    with pytest.raises(BadSampleError, match=reason):
        Turn(prompt, answer)


@pytest.mark.parametrize("references", ["a cat", ("a", None)])
def test_references_are_a_list_of_strings(references):
    with pytest.raises(BadSampleError, match="references are not a list of strings"):
        Turn("", "a cat", references)


def test_one_image_or_one_dialog_in_place_of_a_list_is_refused():
    with pytest.raises(BadSampleError, match=r"write images=\[image\]"):
        Sample(images="cat.png", dialogs=[[Turn("", "a cat")]])
    with pytest.raises(BadSampleError, match=r"write dialogs=\[\[Turn"):
        Sample(images=[], dialogs=[Turn("", "a cat")])
    with pytest.raises(BadSampleError, match="not a Turn"):
        Sample(images=[], dialogs=[[("", "a cat")]])


def test_a_turn_of_a_file_loses_its_outer_white_space():
    assert turn_from_row(" What? ", "a cat\n", references=[" cat "]) == Turn("What?", "a cat", ("cat",))


@pytest.mark.parametrize("answer, reason", [(" \n", "answer is empty"), (float("nan"), "answer is not a string")])
def test_a_turn_of_a_file_has_an_answer(answer, reason):
    with pytest.raises(BadSampleError, match=reason):
        turn_from_row("", answer)
