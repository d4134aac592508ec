"""`visgraft chat`: several turns about images, in the terminal or from a pipe, streamed.

In: lines, each a question or a command that begins with a slash. Out: the answers on standard output.
Usage: `visgraft chat runs/my-run cat.jpg`
"""

import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from visgraft.cli.ask import load_model, open_named
from visgraft.cli.options import Device, MaxNewTokens, Model, Precision
from visgraft.cli.terminal import note, print_error, print_line, print_piece
from visgraft.errors import ConfigError, VisgraftError
from visgraft.wording import counted

if TYPE_CHECKING:
    from visgraft.model.vlm import VisionLanguageModel
    from visgraft.processor import Processor

HELP = "/image PATH shows another image at this place, /reset forgets what was said, /exit leaves"


def chat(
    model: Model,
    image: Annotated[
        Path | None, typer.Argument(metavar="IMAGE", help="Image file to begin with.", show_default=False)
    ] = None,
    max_new_tokens: MaxNewTokens = 256,
    device: Device = None,
    precision: Precision = "auto",
) -> None:
    """Talk with a model about images.

    /image PATH shows another image at this place: what is said from then on is about it too, what was said before never
    saw it. /reset forgets what was said, the newest image apart. /exit leaves. Ctrl-C stops an answer.

    visgraft chat runs/my-run cat.jpg
    """
    shown = None if image is None else open_named(image)
    open_chat = Chat(*load_model(model, device=device, precision=precision), max_new_tokens=max_new_tokens)
    if shown is not None:
        open_chat.conversation.show(shown)
    note(HELP)
    has_failed = False
    for line in _lines():
        try:
            if line.startswith("/"):
                if not open_chat.command(line):
                    break
            else:
                open_chat.say(line)
        except VisgraftError as error:
            has_failed = True
            print_error(str(error))
    if has_failed and not sys.stdin.isatty():
        raise typer.Exit(2)


def _lines() -> Iterator[str]:
    """Read what is not blank, line by line, with a prompt in a terminal, until the end of the input."""
    if not sys.stdin.isatty():
        yield from (line.strip() for line in sys.stdin if line.strip())
        return
    with suppress(ImportError):  # not on Windows
        import readline  # noqa: F401  # input() then knows arrow keys and history
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print_line()
            return
        if line:
            yield line


class Chat:
    """A conversation, and the commands that change it."""

    def __init__(self, model: "VisionLanguageModel", processor: "Processor", *, max_new_tokens: int) -> None:
        """Begin with nothing shown and nothing said."""
        from visgraft.inference import Conversation

        self.conversation = Conversation(model, processor)
        self.max_new_tokens = max_new_tokens

    def command(self, line: str) -> bool:
        """Follow a command; False means to leave.

        Raises:
            ConfigError: there is no such command, or it lacks its argument.
            BadSampleError: the image cannot be used; the conversation stays as it was.
            ModelError: the language model has no positions for the image.
        """
        name, _, argument = line.partition(" ")
        match name:
            case "/exit" | "/quit":
                return False
            case "/help":
                note(HELP)
            case "/reset":
                self.conversation.reset()
                note("what was said is forgotten")
            case "/image":
                if not argument.strip():
                    raise ConfigError("/image: got no path; write /image PATH")
                self.conversation.show(open_named(Path(argument.strip().strip("'\""))))
                note(f"the model now sees {argument.strip()} too")
            case _:
                raise ConfigError(f"{name}: no such command; {HELP}")
        return True

    def say(self, prompt: str) -> None:
        """Print the answer to a prompt as it comes, and remember both.

        Raises:
            ModelError: the prompt alone is too long for the language model.
        """
        num_forgotten = self.conversation.forget_oldest(prompt, max_new_tokens=self.max_new_tokens)
        if num_forgotten:
            limit = self.conversation.model.attention_spec.max_positions
            forgotten = counted(num_forgotten, "turn")
            note(f"forgotten, from the oldest on: {forgotten}; the language model has {limit} positions")
        try:
            with closing(self.conversation.say(prompt, max_new_tokens=self.max_new_tokens)) as pieces:
                for piece in pieces:
                    print_piece(piece)
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
        finally:
            print_line()
