from pathlib import Path

import numpy as np
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


@pytest.mark.parametrize("name", ["prompt", "answer", "instruction", "references"])
def test_a_text_that_is_no_unicode_is_bad_whatever_it_is(name):
    texts = {"prompt": "What?", "answer": "A cat.", name: ["\ud83d"] if name == "references" else "cut emoji \ud83d"}
    with pytest.raises(BadSampleError, match="text is not valid Unicode"):
        Turn(**texts)
    assert Turn("\U0001f600", "caf\u00e9 \0").prompt == "\U0001f600"
    assert Sample([], [], id="a\ud83d").id == "a\\ud83d"


def test_an_array_is_one_image_and_no_list_of_images():
    with pytest.raises(BadSampleError, match=r"images is one image, not a sequence of images: write images=\[image\]"):
        Sample(np.zeros((2, 2, 3), np.uint8), [])
    assert len(Sample(np.zeros((5, 2, 2, 3), np.uint8), []).images) == 5
