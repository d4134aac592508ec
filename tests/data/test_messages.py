"""What callers ask: every usual way to write prompts, images and chat messages, and what is refused."""

import pytest

from visgraft.data.messages import asked, pair_prompts, read_messages, read_prompts, write_prompts
from visgraft.data.readers.row_formats import content_of_row
from visgraft.data.sample import Turn
from visgraft.errors import BadSampleError, ConfigError


@pytest.mark.parametrize(
    "text, images, prompts, groups",
    [
        ("Q", None, ["Q"], [[]]),
        ("Q", "a.jpg", ["Q"], [["a.jpg"]]),
        ("Q", ["a.jpg", "b.jpg"], ["Q"], [["a.jpg", "b.jpg"]]),
        ("Q", [["a.jpg", "b.jpg"]], ["Q"], [["a.jpg", "b.jpg"]]),
        (["Q"], "a.jpg", ["Q"], [["a.jpg"]]),
        (["Q", "R"], None, ["Q", "R"], [[], []]),
        (["Q", "R"], ["a.jpg", "b.jpg"], ["Q", "R"], [["a.jpg"], ["b.jpg"]]),
        (["Q", "R"], [["a.jpg", "b.jpg"], None], ["Q", "R"], [["a.jpg", "b.jpg"], []]),
        (["Q", "R"], [["a.jpg"], b"png"], ["Q", "R"], [["a.jpg"], [b"png"]]),
        (None, "a.jpg", [""], [["a.jpg"]]),
        (None, ["a.jpg", {"bytes": b"png"}], ["", ""], [["a.jpg"], [{"bytes": b"png"}]]),
        (None, [["a.jpg", "b.jpg"]], [""], [["a.jpg", "b.jpg"]]),
    ],
)
def test_prompts_find_their_images(text, images, prompts, groups):
    assert pair_prompts(text, images=images) == (prompts, groups)


@pytest.mark.parametrize("text, images", [(None, None), ([], None)])
def test_nothing_is_refused(text, images):
    with pytest.raises(ConfigError, match="got neither text nor images"):
        pair_prompts(text, images=images)


@pytest.mark.parametrize(
    "text, images, counts",
    [
        (["Q", "R"], ["a.jpg"], "2 prompts and images for 1"),
        (["Q", "R"], "a.jpg", "2 prompts and images for 1"),
        ("Q", [["a.jpg"], ["b.jpg"]], "1 prompts and images for 2"),
        (None, [], "0 prompts and images for 0"),
    ],
)
def test_prompts_and_images_that_do_not_pair_are_refused(text, images, counts):
    with pytest.raises(ConfigError, match=f"got {counts}; give each prompt its image"):
        pair_prompts(text, images=images)


def test_a_chat_becomes_turns_and_its_images_the_prefix():
    turns, images = read_messages(
        [
            {
                "role": "user",
                "content": [
                    {"type": "image", "path": "a.jpg"},
                    {"type": "text", "text": "What is it?"},
                    {"type": "image", "base64": "cG5n"},
                ],
            },
            {"role": "assistant", "content": "A cat."},
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "b.jpg"}},
                    {"type": "image_url", "image_url": "c.jpg"},
                    {"type": "text", "text": "And"},
                    {"type": "text", "text": "now?"},
                ],
            },
        ]
    )
    assert turns == [Turn("What is it?", "A cat."), Turn("And\nnow?", "")]
    assert images == ["a.jpg", {"base64": "cG5n"}, "b.jpg", "c.jpg"]


def test_an_image_alone_asks_for_a_caption():
    assert read_messages([{"role": "user", "content": [{"type": "image", "image": "a.jpg"}]}]) == (
        [Turn("", "")],
        ["a.jpg"],
    )


def test_a_begun_answer_stays_in_its_turn():
    messages = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": [{"type": "text", "text": "A"}]}]
    assert read_messages(messages) == ([Turn("What?", "A")], [])


@pytest.mark.parametrize(
    "roles", [[], ["assistant"], ["system"], ["user", "system"], ["user", "user"], ["user", "assistant", "tool"]]
)
def test_other_roles_or_orders_are_refused(roles):
    with pytest.raises(ConfigError, match=r"messages: got the roles .*, need user and assistant in turn"):
        read_messages([{"role": role, "content": "?"} for role in roles])


def test_a_part_of_another_type_is_refused():
    with pytest.raises(ConfigError, match="messages: got a part of type 'video', allowed are text, image and"):
        read_messages([{"role": "user", "content": [{"type": "video", "path": "a.mp4"}]}])


@pytest.mark.parametrize("part, held", [({}, "nothing"), ({"file": "a.jpg"}, r"\['file'\]")])
def test_an_image_part_without_an_image_is_refused(part, held):
    with pytest.raises(ConfigError, match=f"messages: an image part holds {held}, need one of image, url"):
        read_messages([{"role": "user", "content": [{"type": "image", **part}]}])


@pytest.mark.parametrize(
    "prompt, num_images, read",
    [
        ("<image>\nWhat is it?", 1, "What is it?"),
        ("  What is it?\n<image> ", 1, "What is it?"),
        ("<image> <image>\nWhat differs?", 2, "What differs?"),
        ("Look.\n<image>\nWhat is it?", 1, "Look.\nWhat is it?"),
        ("What does <image> show?", 1, "What does show?"),
        ("1: <image>, 2: <image>?", 2, "1: , 2: ?"),
        ("1: <image>, 2: <image>?", 1, "1: , 2: <image>?"),
        ("<image>\nWhat is an <image> tag?", 1, "What is an <image> tag?"),
        ("Use the <video> tag", 0, "Use the <video> tag"),
        ("`<image>` is a tag", 0, "`<image>` is a tag"),
        ("<image>", 1, ""),
        ("What?", 3, "What?"),
    ],
)
def test_placeholders_go_as_far_as_there_are_images(prompt, num_images, read):
    assert read_prompts([prompt], num_images=num_images) == [read]


def test_the_turns_of_a_dialog_share_its_images():
    assert read_prompts(["<image>\nQ", "and <image>?", "or <image>?"], num_images=2) == ["Q", "and ?", "or <image>?"]
    for prompts, num_images in ((["<image>\nQ"], 0), (["<image>\nQ", "<image>\nR"], 1)):
        with pytest.raises(BadSampleError, match="text names more images than there are"):
            read_prompts(prompts, num_images=num_images)


@pytest.mark.parametrize("said", ["<image>\nWhat is it?", "What is\nit? ", "Is <image> a cat?", "<image>Q <image>"])
def test_training_and_serving_read_a_message_alike(said):
    row = {"image": "a.jpg", "messages": [{"role": "user", "content": said}, {"role": "assistant", "content": "A"}]}
    [[trained]] = content_of_row(row).dialogs
    content = [{"type": "image", "path": "a.jpg"}, {"type": "text", "text": said}]
    [served], _ = read_messages([{"role": "user", "content": content}])
    [prompt], _ = pair_prompts(said, images="a.jpg")
    assert trained.prompt == served.prompt == prompt == asked(said, num_images=1).prompt


def test_several_text_parts_are_joined_alike():
    content = [{"type": "text", "text": "Look."}, {"type": "image", "path": "a"}, {"type": "text", "text": "What?"}]
    messages = [{"role": "user", "content": content}]
    [turn], _ = read_messages(messages)
    [[trained]] = content_of_row({"messages": [*messages, {"role": "assistant", "content": "A"}]}).dialogs
    assert trained.prompt == turn.prompt == "Look.\nWhat?"


def test_a_system_message_is_the_instruction_when_a_model_is_asked_too():
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What?"}]
    assert read_messages(messages) == ([Turn("What?", "", instruction="Be brief.")], [])


def test_a_caller_who_names_more_images_than_he_gives_is_told():
    with pytest.raises(ConfigError, match="text: text names more images than there are; give the images"):
        pair_prompts("<image>\nWhat?", images=None)
    with pytest.raises(ConfigError, match="messages: text names more images than there are"):
        read_messages([{"role": "user", "content": "<image>\nWhat?"}])


@pytest.mark.parametrize("num_images", [0, 1, 3])
@pytest.mark.parametrize("prompts", [["Q"], ["What is an <image> tag?", "And <video>?"], ["Q", "Is <image>?"], []])
def test_prompts_that_were_read_are_written_so_that_they_read_the_same(prompts, num_images):
    assert read_prompts(write_prompts(prompts, num_images=num_images), num_images=num_images) == prompts
