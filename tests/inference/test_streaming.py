"""A stream gives what an answer is, stops when it is closed, and hands errors on."""

from typing import Any

import pytest

from tests.inference.asked import QUESTIONS, Say, ask, picture
from visgraft import Processor, VisionLanguageModel
from visgraft.errors import BadSampleError
from visgraft.inference import answer, stream


def test_a_stream_joined_is_the_answer(pair: tuple[VisionLanguageModel, Processor]) -> None:
    model, processor = pair
    sample = ask(QUESTIONS[0], images=(picture(0),))
    assert "".join(stream(*pair, sample, max_new_tokens=8)) == answer(*pair, [sample], max_new_tokens=8)[0]
    said = Say(processor, "  two dogs, and a cat  on a sofa \n")
    pieces = list(stream(model, processor, sample, logits_processor=[said], max_new_tokens=64))
    assert "".join(pieces) == "two dogs, and a cat  on a sofa"
    assert len(pieces) > 3


def test_a_stream_that_is_closed_stops_the_model(pair: tuple[VisionLanguageModel, Processor]) -> None:
    model, processor = pair
    pieces = stream(model, processor, ask("What is it?", images=(picture(0),)), max_new_tokens=100)
    next(pieces)
    num_steps = 0

    def count(*_: Any) -> None:
        nonlocal num_steps
        num_steps += 1

    handle = model.language.register_forward_hook(count)
    pieces.close()
    handle.remove()
    assert num_steps < 90


def test_an_error_inside_a_stream_reaches_its_reader(pair: tuple[VisionLanguageModel, Processor]) -> None:
    with pytest.raises(BadSampleError, match="image file is missing"):
        list(stream(*pair, ask("What is it?", images=("nowhere.png",))))
