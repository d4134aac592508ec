"""Over HTTP, among any neighbours, a request has the text that it has alone."""

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.inference.asked import QUESTIONS, picture
from tests.serving.asked import Pair, ask, chunks, data_url, said, text_of, user
from visgraft import Sample, Turn
from visgraft.inference import Conversation, Decoding, Engine, answer
from visgraft.inference.prefix_cache import open_pixels
from visgraft.inference.requests import ImageSegment, Prompt, segments_of

Case = tuple[list[dict[str, Any]], dict[str, Any], str]


def drawn_case(pair: Pair, draw: random.Random) -> Case:
    """A chat as a client sends it, its parameters, and the text that it has alone, by a loop of its own."""
    messages: list[dict[str, Any]] = []
    items: list[ImageSegment | Turn] = []
    instruction = draw.choice(["", "", "Answer shortly."])
    if instruction:
        messages.append({"role": "system", "content": instruction})
    num_turns = draw.choice([1, 1, 1, 2, 3])
    for number in range(num_turns):
        images = [picture(draw.randrange(3)) for _ in range(draw.choice([0, 1, 1, 2] if number == 0 else [0, 0, 1]))]
        question, reply = draw.choice(QUESTIONS), draw.choice(["A cat.", "red", "No."])
        messages.append(user(question, *images))
        if images:
            items.append(ImageSegment(open_pixels(pair[1], images)))
        is_last = number == num_turns - 1
        items.append(Turn(question, "" if is_last else reply, instruction="" if number else instruction))
        if not is_last:
            messages.append(said(reply))
    settings: dict[str, Any] = {"max_tokens": draw.choice([1, 4, 12])}
    decoding: dict[str, Any] = {"max_new_tokens": settings["max_tokens"]}
    if draw.random() < 0.4:
        drawn = {"temperature": draw.choice([0.5, 1.0, 1.7]), "top_p": draw.choice([0.3, 0.9, 1.0])}
        settings |= {**drawn, "seed": draw.randrange(100)}
        decoding |= {**drawn, "seed": settings["seed"], "do_sample": True, "top_k": 0}
    if draw.random() < 0.3:
        penalties = {"presence_penalty": 0.7, "frequency_penalty": -0.5}
        settings |= penalties
        decoding |= penalties
    if draw.random() < 0.3:
        settings["stop"] = decoding["stop"] = draw.choice(["e", ["a", "qu"]])
    turns = [item for item in items if isinstance(item, Turn)]
    prompt = Prompt(segments_of(pair[1], items), dialog=turns)
    reply_alone = Engine(*pair, num_slots=1).submit(prompt, Decoding.of(**decoding))
    return messages, settings, reply_alone.answer().text


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.long), pytest.param(2, marks=pytest.mark.long)])
def test_concurrent_clients_get_what_they_would_get_alone(pair_and_url: tuple[Pair, str], seed: int) -> None:
    pair, url = pair_and_url
    draw = random.Random(seed)
    cases = [drawn_case(pair, draw) for _ in range(16)]
    orders = [draw.sample(cases, len(cases)) for _ in range(6)]

    def client(order: list[Case]) -> list[tuple[str, str]]:
        ways = [ask, chunks]
        return [(text_of(ways[place % 2](url, case[0], **case[1])), case[2]) for place, case in enumerate(order)]

    with ThreadPoolExecutor(len(orders)) as pool:
        for found in pool.map(client, orders):
            assert [got for got, _ in found] == [alone for _, alone in found]


@pytest.fixture(scope="module")
def pair_and_url(serving_pair: Pair, url: str) -> tuple[Pair, str]:
    return serving_pair, url


def test_a_question_has_the_text_of_answer(serving_pair: Pair, url: str) -> None:
    for images in ((), (picture(1),), (picture(0), picture(1))):
        sample = Sample(images=images, dialogs=[[Turn("What is it?", "")]])
        [alone] = answer(*serving_pair, [sample], max_new_tokens=10)
        messages = [user("What is it?", *images)]
        assert text_of(ask(url, messages, max_tokens=10)) == text_of(chunks(url, messages, max_tokens=10)) == alone


def test_an_image_in_a_later_turn_is_seen_from_there_on_as_in_a_conversation(serving_pair: Pair, url: str) -> None:
    talk = Conversation(*serving_pair)
    messages: list[dict[str, Any]] = []
    for number, question in enumerate(["What is it?", "And this?", "Is it red?"]):
        images = [picture(number)] if number != 2 else []
        for image in images:
            talk.show(image)
        alone = "".join(talk.say(question, max_new_tokens=8))
        messages.append(user(question, *images))
        assert text_of(ask(url, messages, max_tokens=8)) == alone
        messages.append(said(alone))


def test_an_image_is_what_it_shows_however_it_was_written(url: str) -> None:
    texts = {
        text_of(ask(url, [user("Why?", data_url(picture(2), kind))], max_tokens=8)) for kind in ("PNG", "BMP", "GIF")
    }
    assert len(texts) <= 2  # GIF keeps 256 colours of a picture's
    assert text_of(ask(url, [user("Why?", picture(0))], max_tokens=8)) not in texts
