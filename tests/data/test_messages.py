"""What callers ask: every usual way to write prompts, images and chat messages, and what is refused."""

import pytest

from visgraft.data.messages import pair_prompts, read_messages
from visgraft.data.sample import Turn
from visgraft.errors import ConfigError


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
