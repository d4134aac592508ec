"""What the program writes, and where: answers on standard output, notes and errors on standard error.

In: texts, tables, values. Out: colours and columns in a terminal, plain lines elsewhere.

    note("loading runs/my-run")         # in a terminal only: a user waits, a program does not
    print_json({"answer": "a cat"})
"""

import json
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from visgraft.atomic import REFUSALS
from visgraft.errors import DiskError
from visgraft.reporting.progress import LOG_VARIABLE, Display, error_console, visible
from visgraft.training.interrupt import exit_status

PLAIN_WIDTH = 160  # columns of what is piped into a file
_debug: ContextVar[bool] = ContextVar("debug", default=False)


@contextmanager
def debugging(is_on: bool) -> Iterator[None]:
    """Let libraries log and warn, or keep them quiet, while the context lasts."""
    token = _debug.set(is_on)
    try:
        yield
    finally:
        _debug.reset(token)


@contextmanager
def logging_as(form: str | None) -> Iterator[None]:
    """Write what is said on standard error as asked (quiet, json), in processes that are started too."""
    before = os.environ.get(LOG_VARIABLE)
    if form is not None:
        os.environ[LOG_VARIABLE] = form
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(LOG_VARIABLE, None)
        else:
            os.environ[LOG_VARIABLE] = before


def quiet_libraries() -> None:
    """Keep transformers and its like from logging, warning and drawing bars for work that takes no time.

    Downloads keep their bar, in a terminal. With `--debug` everything stays as it is.
    """
    if _debug.get():
        return
    from huggingface_hub.utils import logging as hub_logging
    from huggingface_hub.utils.tqdm import enable_progress_bars
    from transformers.utils import logging

    warnings.simplefilter("ignore")
    hub_logging.set_verbosity_error()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if sys.stderr.isatty():
        enable_progress_bars()


def note(text: str) -> None:
    """Tell a user who waits at a terminal what the program does."""
    if sys.stderr.isatty():
        error_console().print(visible(text), style="dim", markup=False, highlight=False, soft_wrap=True)


def tell(text: str) -> None:
    """Say something on standard error, in a terminal or not."""
    Display(error_console()).say(text)


def end_stopped(error: KeyboardInterrupt) -> int:
    """Say how to go on with what a signal stopped, if it was saved; return the exit status that shells give it."""
    if str(error) and os.environ.get("RANK", "0") == "0":  # one of several processes says it
        tell(str(error))
    return exit_status(error)


def print_error(text: str) -> None:
    """Say what is wrong."""
    console = error_console(level="error")
    if os.environ.get(LOG_VARIABLE) != "json":  # there the level says it
        console.print("error:", style="bold red", end=" ")
    console.print(visible(text), markup=False, highlight=False, soft_wrap=True)


def print_line(text: str = "") -> None:
    """Print one line."""
    print_piece(f"{text}\n")


def print_piece(text: str) -> None:
    """Print what a model wrote, or a part of it; what would steer the terminal is shown instead (\\x1b)."""
    with _refusals_told():
        sys.stdout.write(visible(text))
        sys.stdout.flush()


def print_json(value: Any) -> None:
    """Print one JSON value, alone on standard output."""
    print_line(visible(json.dumps(value, ensure_ascii=False, indent=2), form="\\u{:04x}"))


def labelled(facts: Iterable[tuple[str, str]]) -> Table:
    """Lay out facts, each behind its label; long ones go on below themselves."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", min_width=10)
    for label, text in facts:
        table.add_row(label, Text(text, overflow="fold"))
    return table


def print_rich(renderable: RenderableType) -> None:
    """Print a table or a text of rich's; what is piped gets no colours and wide lines."""
    is_terminal = sys.stdout.isatty()
    with _refusals_told():
        Console(width=None if is_terminal else PLAIN_WIDTH, highlight=False).print(_Visible(renderable))


@dataclass(frozen=True)
class _Visible:
    """What rich draws, with what would steer the terminal shown instead."""

    renderable: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for segment in console.render(self.renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


@contextmanager
def _refusals_told() -> Iterator[None]:
    """Say where there is no room, of what the kernel knows no name. Raises DiskError."""
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        reason, remedy = REFUSALS[error.errno]
        raise DiskError(f"standard output: cannot be written: {reason}; {remedy}, then run it again") from error
