"""What lmms-eval's requests mean; lmms-eval itself is run by `make test-lmms-eval`."""

from typing import Any

import pytest

from visgraft.data.sample import Turn
from visgraft.errors import ConfigError
from visgraft.evaluation.lmms_harness import cut_answer, sample_of, settings_of


def text(role: str, said: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": said}]}


def test_messages_become_turns_with_all_pictures_in_front() -> None:
    picture = object()
    asked = {"role": "user", "content": [{"type": "image", "url": picture}, {"type": "text", "text": "What?"}]}
    sample = sample_of([text("system", "Be brief."), asked, text("assistant", "A cat."), text("user", "Which colour?")])
    assert sample.images == (picture,)
    assert sample.dialogs == ((Turn("What?", "A cat.", instruction="Be brief."), Turn("Which colour?", "")),)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([text("user", "a"), text("assistant", "b")], "need user and assistant in turn, user last"),
        ([{"role": "user", "content": [{"type": "video", "url": "a"}]}], "got a part of type video, visgraft reads"),
    ],
)
def test_messages_that_cannot_be_asked_are_refused(messages: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sample_of(messages)


def test_settings_of_a_request_are_read() -> None:
    assert settings_of({"max_new_tokens": 16, "temperature": 0, "do_sample": False, "until": ["\n\n"]}) == (
        16, 0.0, ("\n\n",)
    )  # fmt: skip
    assert settings_of({}) == (32, 0.0, ())
    assert cut_answer(" yes\n\nand more", ("\n\n",)) == "yes"


def test_the_entry_point_is_declared() -> None:
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["lmms_eval.models"] == {"visgraft": "visgraft.evaluation.lmms_harness:manifest"}
