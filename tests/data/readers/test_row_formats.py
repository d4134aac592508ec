import pytest

from visgraft.data.readers.row_formats import content_of_row
from visgraft.data.sample import Turn
from visgraft.errors import BadSampleError

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]


@pytest.mark.parametrize(
    "row, images, dialogs",
    [
        ({"file_name": "a.jpg", "text": " a cat "}, ["a.jpg"], [[Turn("", "a cat")]]),
        (
            {"image": "a.jpg", "captions": ["a cat", {"raw": "cats"}]},
            ["a.jpg"],
            [[Turn("", "a cat")], [Turn("", "cats")]],
        ),
        ({"file_name": "a.jpg", "question": "Q", "answer": "A"}, ["a.jpg"], [[Turn("Q", "A")]]),
        ({"question": "Q", "answers": ["b", "a", "b"]}, [], [[Turn("Q", "b", ("b", "a", "b"))]]),
        ({"question": "Q", "answers": [{"answer": "a"}]}, [], [[Turn("Q", "a", ("a",))]]),
        ({"prompt": "Q", "answer": "A", "instruction": "I"}, [], [[Turn("Q", "A", instruction="I")]]),
        (
            {
                "images": ["1", "2"],
                "dialogs": [[{"prompt": "Q", "answer": "A"}], [{"answer": "B", "references": ["C"]}]],
            },
            ["1", "2"],
            [[Turn("Q", "A")], [Turn("", "B", ("C",))]],
        ),
        (
            {
                "image": "a.jpg",
                "conversations": [
                    {"from": "human", "value": "<image>\nWhat is it?"},
                    {"from": "gpt", "value": "A cat."},
                    {"from": "human", "value": "Where?"},
                    {"from": "gpt", "value": "Here."},
                ],
            },
            ["a.jpg"],
            [[Turn("What is it?", "A cat."), Turn("Where?", "Here.")]],
        ),
        (
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]},
            [],
            [[Turn("Hi", "Ho")]],
        ),
        ({"images": ["a"], "messages": CHAT}, ["a"], [[Turn("Hi", "Ho")]]),
        (
            {"messages": [{"role": "system", "content": "Be brief."}, *CHAT]},
            [],
            [[Turn("Hi", "Ho", instruction="Be brief.")]],
        ),
        (
            {
                "images": ["a"],
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image"},
                            {"type": "image", "path": "b"},
                            {"type": "image_url", "image_url": {"url": "c"}},
                            {"type": "image", "base64": "d"},
                            {"type": "text", "text": "Hi"},
                        ],
                    },
                    {"role": "assistant", "content": [{"type": "text", "text": "Ho"}]},
                ],
            },
            ["a", "b", "c", {"base64": "d"}],
            [[Turn("Hi", "Ho")]],
        ),
        (
            {"images": [{"bytes": b"x"}], "texts": [{"user": "Q", "assistant": "A", "source": "s"}] * 2},
            [{"bytes": b"x"}],
            [[Turn("Q", "A")], [Turn("Q", "A")]],
        ),
        ({"prompt": "Q", "completion": "A", "image": "a"}, ["a"], [[Turn("Q", "A")]]),
        ({"prompt": CHAT[:1], "completion": CHAT[1:]}, [], [[Turn("Hi", "Ho")]]),
        (
            {"instruction": "I", "inputs": None, "outputs": "A", "image_base64_str": ["x", "y"], "meta": {}},
            ["x", "y"],
            [[Turn("", "A", instruction="I")]],
        ),
    ],
)
def test_every_form_of_row_becomes_images_and_dialogs(row, images, dialogs):
    content = content_of_row(row)
    assert list(content.images) == images and [list(dialog) for dialog in content.dialogs] == dialogs


def said(*roles):
    return {"messages": [{"role": role, "content": "x"} for role in roles]}


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"image": "a.jpg"}, "row has no text, question and answer, dialogs or messages"),
        ({"image": "a.jpg", "text": ""}, "answer is empty"),
        ({"image": "a.jpg", "text": float("nan")}, "row has no text, question and answer"),
        ({"question": 3, "answer": "A"}, "prompt is not a string"),
        ({"question": "Q", "answers": []}, "answers are not a list of strings"),
        ({"question": "Q", "answers": [1.0]}, "answers are not a list of strings"),
        ({"image": "a.jpg", "captions": []}, "row has no texts"),
        ({"dialogs": [[]]}, "dialog is not a list of turns"),
        ({"dialogs": [[{"prompt": "Q"}]]}, "turn lacks prompt or answer"),
        (said("user"), "roles are not user and assistant in turn"),
        (said("assistant", "user"), "roles are not user and assistant in turn"),
        (said("user", "user", "assistant", "assistant"), "roles are not user and assistant in turn"),
        (said("user", "assistant", "system", "assistant"), "roles are not user and assistant in turn"),
        (said("system"), "roles are not user and assistant in turn"),
        ({"messages": "x"}, "messages are not a list"),
        ({"messages": ["x"]}, "message is not an object"),
        ({"messages": [{"role": "user"}, {"role": "assistant", "content": "x"}]}, "message is not a string"),
        (
            {"messages": [{"role": "user", "content": [{"type": "audio"}]}]},
            "message has a part that is neither text nor",
        ),
        ({"conversations": ["x"]}, "message is not an object"),
        (
            {"conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "x"}]},
            "text names more im",
        ),
        ({"texts": [{"user": "Q"}]}, "text lacks user or assistant"),
        ({"instruction": "I", "outputs": "A", "inputs": 3}, "prompt is not a string"),
        ({"instruction": 3, "outputs": "A"}, "instruction is not a string"),
    ],
)
def test_a_row_that_makes_no_sense_is_bad_and_says_why(row, reason):
    with pytest.raises(BadSampleError, match=reason):
        content_of_row(row)


def test_columns_of_other_names_are_mapped():
    row = {"img": "a.jpg", "frage": "Q", "antwort": "A", "text": "not this"}
    content = content_of_row(row, columns={"image": "img", "question": "frage", "answer": "antwort"})
    assert content.images == ["a.jpg"] and content.dialogs == [[Turn("Q", "A")]]
    with pytest.raises(BadSampleError, match="column pic is missing"):
        content_of_row(row, columns={"image": "pic"})


def test_a_form_that_is_named_is_the_only_one():
    with pytest.raises(BadSampleError, match="row lacks messages"):
        content_of_row({"text": "a cat"}, row_format="messages")


def test_captions_may_have_a_prompt_and_rows_a_name():
    content = content_of_row({"caption": "a cat", "image": "a.jpg", "id": 7}, prompt="Describe.")
    assert content.dialogs == [[Turn("Describe.", "a cat")]] and content.id == "7"
