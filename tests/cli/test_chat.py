"""Chatting through a pipe, and the commands inside a chat."""

import io
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import Visgraft
from visgraft.cli.chat import Chat
from visgraft.data.sample import Sample, Turn
from visgraft.errors import BadSampleError, ConfigError, ModelError
from visgraft.infer import answer, load, num_prompt_positions


@pytest.fixture(scope="module")
def talk(folder: Path) -> Chat:
    return Chat(*load(str(folder / "run"), device="cpu", precision="fp32"), None, max_new_tokens=4)


@pytest.fixture
def photo(folder: Path) -> Path:
    return folder / "photos" / "0.png"


def expected(talk: Chat, photo: Path | None, *turns: Turn) -> str:
    images = [] if photo is None else [photo]
    [text] = answer(talk.model, talk.processor, [Sample(images=images, dialogs=[turns])], max_new_tokens=4)
    return text


def test_a_pipe_is_answered_line_by_line(
    visgraft: Visgraft, folder: Path, photo: Path, talk: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = folder / "photos" / "1.png"
    lines = ["Which colour?", "", "And what is it?", f"/image {other}", "Which colour?", "/exit", "never asked"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
    model = ("--device", "cpu", "--precision", "fp32", "--max-new-tokens", 4)
    outcome = visgraft("chat", folder / "run", photo, *model)
    first = expected(talk, photo, Turn("Which colour?", ""))
    second = expected(talk, photo, Turn("Which colour?", first), Turn("And what is it?", ""))
    third = expected(talk, other, Turn("Which colour?", ""))
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out == f"{first}\n{second}\n{third}\n"


def test_a_line_that_fails_in_a_pipe_makes_status_2_and_the_chat_goes_on(
    visgraft: Visgraft, folder: Path, talk: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("/image nowhere.png\nWhat is it?\n"))
    model = ("--device", "cpu", "--precision", "fp32", "--max-new-tokens", 4)
    outcome = visgraft("chat", folder / "run", *model)
    assert (outcome.status, outcome.err) == (2, "error: nowhere.png: image file is missing\n")
    assert outcome.out == f"{expected(talk, None, Turn('What is it?', ''))}\n"


def test_commands_change_what_the_model_sees_and_remembers(talk: Chat, photo: Path) -> None:
    talk.turns[:] = [Turn("a", "b")]
    assert talk.command(f'/image "{photo}"')
    assert isinstance(talk.image, Image.Image)
    assert talk.turns == []
    talk.turns[:] = [Turn("a", "b")]
    assert talk.command("/reset")
    assert talk.turns == []
    assert talk.image is not None
    assert talk.command("/help")
    assert not talk.command("/exit")
    talk.image = None
    with pytest.raises(ConfigError, match="/dance: no such command; /image PATH shows another image"):
        talk.command("/dance")
    with pytest.raises(ConfigError, match="/image: got no path; write /image PATH"):
        talk.command("/image")
    with pytest.raises(BadSampleError, match=r"nowhere\.png: image file is missing"):
        talk.command("/image nowhere.png")


def test_the_oldest_turns_are_forgotten_where_the_positions_end(talk: Chat) -> None:
    talk.turns[:] = [Turn("What is it?", "a cat and a dog " * 12), Turn("Why?", "because " * 3), Turn("Who?", "I.")]
    talk.say("Is it red?" + " really" * 5)
    assert [turn.prompt for turn in talk.turns[:-1]] in (["Why?", "Who?"], ["Who?"])
    whole = Sample(images=[], dialogs=[talk.turns])
    assert num_prompt_positions(talk.model, talk.processor, whole) + talk.max_new_tokens <= 128
    with pytest.raises(ModelError, match="leave no room for an answer"):
        talk.say("really " * 200)
    talk.turns.clear()


def test_ctrl_c_stops_an_answer_in_a_terminal_and_a_pipe_ends(
    talk: Chat, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pieces(*_: object, **__: object) -> object:
        yield "a cat"
        raise KeyboardInterrupt

    monkeypatch.setattr("visgraft.infer.stream", pieces)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    talk.say("What is it?")
    assert talk.turns.pop() == Turn("What is it?", "a cat")
    assert capsys.readouterr().out == "a cat\n"
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(KeyboardInterrupt):
        talk.say("What is it?")
    assert talk.turns == []
