import json

import pytest

from visgraft.data.readers.row_formats import content_of_row, image_like_columns
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


# --- A row that means an image never trains blindly

PICTURE = {"type": "image"}


def user(*parts):
    return [{"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}]


ANSWER = [{"role": "assistant", "content": "A"}]


@pytest.mark.parametrize(
    "column",
    [
        "image_path",
        "img",
        "file_path",
        "Image",
        "url",
        "jpg",
        "Image Path",
        "IMAGE-FILE",
        "filename",
        "photo",
        "img_url",
    ],
)
def test_the_usual_names_of_image_columns_are_known(column):
    for text in ({"text": "a cat"}, {"question": "Q", "answer": "A"}, {"messages": CHAT}):
        assert content_of_row({column: "a.jpg", **text}).images == ["a.jpg"]


@pytest.mark.parametrize(
    "value", ["a.jpg", ["x/a.PNG"], {"bytes": b"x", "path": None}, b"\x89PNG..", "data:image/png;base64,"]
)
@pytest.mark.parametrize("text", [{"text": "a"}, {"question": "Q", "answer": "A"}, {"messages": CHAT}])
def test_another_column_that_looks_like_an_image_is_told(value, text):
    with pytest.raises(BadSampleError, match=r"its column foto looks like one; set columns: \{image: foto\} \(col"):
        content_of_row({"foto": value, **text})
    assert content_of_row({"foto": value, **text}, columns={"image": "foto"}).images
    assert image_like_columns({"foto": value, "image": "b.jpg", "id": "c.jpg", "n": 3}) == ["foto"]


def test_a_caption_without_an_image_is_bad_and_a_question_is_text():
    with pytest.raises(BadSampleError, match=r"caption has no image \(columns: text, image \(null\)\)"):
        content_of_row({"text": "a cat", "image": None})
    assert content_of_row({"question": "Q", "answer": "A", "image": None}).images == []


@pytest.mark.parametrize("images", [{}, {"images": None}, {"images": []}])
def test_parts_that_stand_for_missing_images_are_bad(images):
    with pytest.raises(BadSampleError, match=r"messages stand for more images than there are \(0 beside them\)"):
        content_of_row({"messages": [*user(PICTURE, "Q"), *ANSWER], **images})


def test_parts_that_stand_for_more_images_than_there_are_are_bad_and_the_order_is_the_chats():
    with pytest.raises(BadSampleError, match=r"more images than there are \(1 beside them\)"):
        content_of_row({"images": ["a"], "messages": [*user(PICTURE, PICTURE, "Q"), *ANSWER]})
    messages = [*user({"type": "image", "path": "b"}, PICTURE, "Q"), *ANSWER, *user("R", PICTURE), *ANSWER]
    assert content_of_row({"images": ["a", "c", "d"], "messages": messages}).images == ["b", "a", "c", "d"]


@pytest.mark.parametrize("empty", [None, [], [None], "", float("nan")])
def test_an_empty_image_column_gives_way_to_a_filled_one(empty):
    assert content_of_row({"images": empty, "image": "a.jpg", "text": "x"}).images == ["a.jpg"]


@pytest.mark.parametrize("text", [{}, {"text": ""}, {"question": "Q", "answer": None}, {"messages": "damaged"}])
def test_images_alone_are_read_whatever_the_texts_are(text):
    content = content_of_row({"image": "a.jpg", "id": 7, **text}, texts=False)
    assert (content.images, content.dialogs, content.id) == (["a.jpg"], [], "7")


def test_images_alone_are_those_of_the_chat_too_and_a_row_without_any_is_bad():
    messages = [*user({"type": "image", "path": "b"}, "Q"), *ANSWER]
    assert content_of_row({"messages": messages}, texts=False).images == ["b"]
    with pytest.raises(BadSampleError, match=r"row has no image \(columns: text\)"):
        content_of_row({"text": "a cat"}, texts=False)
    with pytest.raises(BadSampleError, match="its column foto looks like one"):
        content_of_row({"foto": "a.jpg", "text": "a cat"}, texts=False)


# --- Nulls, names and lists


def test_a_null_is_a_column_that_is_not_there():
    for row in ({"text": None, "caption": "a"}, {"text": float("nan"), "caption": "a"}, {"text": "", "caption": "a"}):
        assert content_of_row({"image": "a.jpg", **row}).dialogs == [[Turn("", "a")]]
    row = {"messages": None, "question": "Q", "answer": None, "answers": ["A", None], "instruction": None}
    assert content_of_row(row).dialogs == [[Turn("Q", "A", ("A",))]]
    assert content_of_row({"image": "a", "captions": [None, "a"]}).dialogs == [[Turn("", "a")]]
    with pytest.raises(BadSampleError, match="row has no texts"):
        content_of_row({"image": "a", "captions": [None]})


def test_an_exact_name_comes_before_one_that_differs_in_case():
    assert content_of_row({"Image": "b", "image": "a", "TEXT": "x"}).images == ["a"]
    assert content_of_row({"Question": "Q", " Answer ": "A"}).dialogs == [[Turn("Q", "A")]]


def test_answers_beside_an_answer_are_references_and_a_prompt_may_have_several():
    row = {"question": "Q", "answer": "a", "answers": ["a", "b"]}
    assert content_of_row(row).dialogs == [[Turn("Q", "a", ("a", "b"))]]
    assert content_of_row({**row, "references": ["c"]}).dialogs == [[Turn("Q", "a", ("c",))]]
    assert content_of_row({"prompt": "Q", "answers": ["b", "b", "a"]}).dialogs == [[Turn("Q", "b", ("b", "b", "a"))]]


def test_what_is_mapped_comes_before_what_a_row_also_holds():
    row = {"q": "Q", "a": "A", "conversations": "junk", "pic": "a.jpg", "url": "https://x", "text": "t", "c": "C"}
    columns = {"image": "pic", "question": "q", "answer": "a"}
    content = content_of_row(row, columns=columns)
    assert (content.images, content.dialogs) == (["a.jpg"], [[Turn("Q", "A")]])
    assert content_of_row(row, columns={"image": "pic", "caption": "c"}).dialogs == [[Turn("", "C")]]


def test_lists_may_be_texts_in_json_as_tables_hold_them():
    row = {"images": '["a.jpg", "b.jpg"]', "messages": json.dumps(CHAT)}
    content = content_of_row(row)
    assert (content.images, content.dialogs) == (["a.jpg", "b.jpg"], [[Turn("Hi", "Ho")]])
    assert len(content_of_row({"image": "a", "captions": '["a", "b"]'}).dialogs) == 2
    assert content_of_row({"image": "a", "captions": "[Music] plays"}).dialogs == [[Turn("", "[Music] plays")]]
    with pytest.raises(BadSampleError, match="captions is a text in brackets that is no JSON list"):
        content_of_row({"image": "a", "captions": "['a', 'b']"})


def test_a_name_is_a_number_or_a_text_and_never_true():
    assert content_of_row({"id": True, "image_id": 7, "image": "a", "text": "x"}).id == "7"
    assert content_of_row({"id": False, "image": "a", "text": "x"}).id is None
    assert content_of_row({"id": 0, "image": "a", "text": "x"}).id == "0"


# --- Placeholders


def test_placeholders_are_read_alike_in_every_format():
    said = "<image>\nWhat is it?"
    rows = [
        {"image": "a", "conversations": [{"from": "human", "value": said}, {"from": "gpt", "value": "A"}]},
        {"image": "a", "messages": [{"role": "user", "content": said}, *ANSWER]},
        {"image": "a", "messages": [*user(said), *ANSWER]},
        {"image": "a", "texts": [{"user": said, "assistant": "A"}]},
        {"image": "a", "prompt": said, "completion": "A"},
        {"image": "a", "question": said, "answer": "A"},
        {"image": "a", "dialogs": [[{"prompt": said, "answer": "A"}]]},
        {"image": "a", "instruction": "", "inputs": said, "outputs": "A"},
    ]
    for row in rows:
        assert content_of_row(row).dialogs == [[Turn("What is it?", "A")]], row
        without = {key: value for key, value in row.items() if key != "image"}
        with pytest.raises(BadSampleError, match="text names more images than there are"):
            content_of_row(without)
    assert content_of_row({"image": "a", "text": "<image>\na cat"}).dialogs == [[Turn("", "a cat")]]


def test_answers_keep_their_words():
    said = [{"from": "human", "value": "<image>\nWhich tag?"}, {"from": "gpt", "value": "<image> or <video>"}]
    assert content_of_row({"image": "a", "conversations": said}).dialogs == [[Turn("Which tag?", "<image> or <video>")]]
    words = [{"from": "human", "value": "Use the `<video>` tag"}, {"from": "gpt", "value": "<video src=x>"}]
    assert content_of_row({"conversations": words}).dialogs == [[Turn("Use the `<video>` tag", "<video src=x>")]]
    assert content_of_row({"image": "a", "text": "an <image> tag"}).dialogs == [[Turn("", "an <image> tag")]]
