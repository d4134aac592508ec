"""Chatting through a pipe, and the commands inside a chat."""

import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cli.conftest import Visgraft
from visgraft.cli.chat import Chat
from visgraft.data.sample import Sample, Turn
from visgraft.errors import BadSampleError, ConfigError, ModelError
from visgraft.inference import answer, load, num_prompt_positions
from visgraft.inference.requests import ImageSegment

if TYPE_CHECKING:
    from visgraft import Processor, VisionLanguageModel


@pytest.fixture(scope="module")
def loaded(folder: Path) -> "tuple[VisionLanguageModel, Processor]":
    return load(str(folder / "run"), device="cpu", precision="fp32")


@pytest.fixture
def chat(loaded: "tuple[VisionLanguageModel, Processor]") -> Chat:
    return Chat(*loaded, max_new_tokens=4)


@pytest.fixture
def photo(folder: Path) -> Path:
    return folder / "photos" / "0.png"


def expected(chat: Chat, photo: Path | None, *turns: Turn) -> str:
    images = [] if photo is None else [photo]
    pair = chat.conversation.model, chat.conversation.processor
    [text] = answer(*pair, [Sample(images=images, dialogs=[turns])], max_new_tokens=4)
    return text


def test_a_pipe_is_answered_line_by_line(
    visgraft: Visgraft, folder: Path, photo: Path, chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = folder / "photos" / "1.png"
    lines = ["Which colour?", "", "And what is it?", f"/image {other}", "Which colour?", "/exit", "never asked"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
    model = ("--device", "cpu", "--precision", "fp32", "--max-new-tokens", 4)
    outcome = visgraft("chat", folder / "run", photo, *model)
    first = expected(chat, photo, Turn("Which colour?", ""))
    second = expected(chat, photo, Turn("Which colour?", first), Turn("And what is it?", ""))
    chat.conversation.show(photo)
    chat.conversation.items += [Turn("Which colour?", first), Turn("And what is it?", second)]
    chat.conversation.show(other)  # at the turn where it arrives, and nothing is forgotten
    third = "".join(chat.conversation.say("Which colour?", max_new_tokens=4))
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out == f"{first}\n{second}\n{third}\n"


def test_a_line_that_fails_in_a_pipe_makes_status_2_and_the_chat_goes_on(
    visgraft: Visgraft, folder: Path, chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("/image nowhere.png\nWhat is it?\n"))
    model = ("--device", "cpu", "--precision", "fp32", "--max-new-tokens", 4)
    outcome = visgraft("chat", folder / "run", *model)
    assert (outcome.status, outcome.err) == (2, "error: nowhere.png: image file is missing\n")
    assert outcome.out == f"{expected(chat, None, Turn('What is it?', ''))}\n"


def test_commands_change_what_the_model_sees_and_remembers(chat: Chat, photo: Path) -> None:
    chat.say("What is it?")
    assert chat.command(f'/image "{photo}"')
    assert [type(item) for item in chat.conversation.items] == [Turn, ImageSegment]
    assert chat.command("/reset")
    assert [type(item) for item in chat.conversation.items] == [ImageSegment]
    assert chat.command("/help")
    assert not chat.command("/exit")
    with pytest.raises(ConfigError, match="/dance: no such command; /image PATH shows another image at this place"):
        chat.command("/dance")
    with pytest.raises(ConfigError, match="/image: got no path; write /image PATH"):
        chat.command("/image")
    with pytest.raises(BadSampleError, match=r"nowhere\.png: image file is missing"):
        chat.command("/image nowhere.png")
    assert len(chat.conversation.items) == 1


def test_the_oldest_turns_are_forgotten_where_the_positions_end(chat: Chat) -> None:
    talk = chat.conversation
    talk.items[:] = [Turn("What is it?", "a cat and a dog " * 12), Turn("Why?", "because " * 3), Turn("Who?", "I.")]
    chat.say("Is it red?" + " really" * 5)
    assert [turn.prompt for turn in talk.turns[:-1]] in (["Why?", "Who?"], ["Who?"])
    whole = Sample(images=[], dialogs=[talk.turns])
    assert num_prompt_positions(talk.model, talk.processor, whole) + chat.max_new_tokens <= 128
    with pytest.raises(ModelError, match="leave no room for an answer"):
        chat.say("really " * 200)
    assert len(talk.turns) > 1


def test_ctrl_c_stops_an_answer_in_a_terminal_and_a_pipe_ends(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(text: str) -> None:
        raise KeyboardInterrupt

    write = sys.stdout.write
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdout.write", lambda text: interrupt(text) if text.strip() else write(text))
    chat.say("What is it?")
    [turn] = chat.conversation.turns
    assert turn.prompt == "What is it?"
    assert turn.answer  # what was said before it was stopped
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(KeyboardInterrupt):
        chat.say("What is it?")
