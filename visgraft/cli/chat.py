"""`visgraft chat`: several turns about an image, in the terminal or from a pipe, streamed.

In: lines, each a question or a command that begins with a slash. Out: the answers on standard output.
Usage: `visgraft chat runs/my-run cat.jpg`
"""

import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from visgraft.cli.ask import load_model, open_named
from visgraft.cli.options import Device, MaxNewTokens, Model, Precision
from visgraft.cli.terminal import note, print_error, print_line
from visgraft.errors import ConfigError, VisgraftError

if TYPE_CHECKING:
    from PIL.Image import Image

    from visgraft.data.sample import Sample, Turn
    from visgraft.model.vlm import VisionLanguageModel
    from visgraft.processor import Processor

HELP = "/image PATH shows another image and begins anew, /reset forgets what was said, /exit leaves"


def chat(
    model: Model,
    image: Annotated[
        Path | None, typer.Argument(metavar="IMAGE", help="Image file to begin with.", show_default=False)
    ] = None,
    max_new_tokens: MaxNewTokens = 256,
    device: Device = None,
    precision: Precision = "auto",
) -> None:
    """Talk with a model about an image.

    /image PATH shows another image and begins anew, /reset forgets what was said, /exit leaves. Ctrl-C stops an answer.
    """
    shown = None if image is None else open_named(image)
    talk = Chat(*load_model(model, device=device, precision=precision), shown, max_new_tokens=max_new_tokens)
    note(HELP)
    has_failed = False
    for line in _lines():
        try:
            if line.startswith("/"):
                if not talk.command(line):
                    break
            else:
                talk.say(line)
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


@dataclass
class Chat:
    """A model, the image that it sees, and what was said so far."""

    model: "VisionLanguageModel"
    processor: "Processor"
    image: "Image | None"
    max_new_tokens: int
    turns: "list[Turn]" = field(default_factory=list)

    def command(self, line: str) -> bool:
        """Follow a command; False means to leave.

        Raises:
            ConfigError: there is no such command, or it lacks its argument.
            BadSampleError: the image cannot be used.
        """
        name, _, argument = line.partition(" ")
        match name:
            case "/exit" | "/quit":
                return False
            case "/help":
                note(HELP)
            case "/reset":
                self.turns.clear()
                note("what was said is forgotten")
            case "/image":
                if not argument.strip():
                    raise ConfigError("/image: got no path; write /image PATH")
                self.image = open_named(Path(argument.strip().strip("'\"")))
                self.turns.clear()  # the image stands in front of all that is said about it, as in training
                note(f"the model now sees {argument.strip()}; the chat begins anew")
            case _:
                raise ConfigError(f"{name}: no such command; {HELP}")
        return True

    def say(self, prompt: str) -> None:
        """Print the answer to a prompt as it comes, and remember both.

        Raises:
            ModelError: the prompt alone is too long for the language model.
        """
        from visgraft.data.sample import Turn
        from visgraft.infer import stream

        text = ""
        try:
            for piece in stream(self.model, self.processor, self._sample(prompt), max_new_tokens=self.max_new_tokens):
                text += piece
                sys.stdout.write(piece)
                sys.stdout.flush()
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
        finally:
            print_line()
        self.turns.append(Turn(prompt, text))

    def _sample(self, prompt: str) -> "Sample":
        """Make the sample to answer; turns that no longer fit are forgotten, the oldest first."""
        from visgraft.data.sample import Sample, Turn
        from visgraft.infer import num_prompt_positions

        images = [] if self.image is None else [self.image]
        limit = self.model.contract.max_positions
        num_forgotten = 0
        while True:
            sample = Sample(images=images, dialogs=[[*self.turns, Turn(prompt, "")]])
            needed = num_prompt_positions(self.model, self.processor, sample) + self.max_new_tokens
            if limit is None or needed <= limit or not self.turns:
                break
            del self.turns[0]
            num_forgotten += 1
        if num_forgotten:
            note(f"the oldest {num_forgotten} turns are forgotten: the language model has {limit} positions")
        return sample
