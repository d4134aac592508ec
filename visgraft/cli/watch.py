"""`visgraft watch`: the live curves of runs in the terminal.

In: experiments and runs. Out: a drawing that follows them until all are over, plain lines where no one looks.
Usage: `visgraft watch runs/my-run`
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.live import Live

from visgraft.cli.terminal import print_line

if TYPE_CHECKING:
    from visgraft.compare.live_curves import Watch

LINE_EVERY_S = 10.0  # between plain lines
CHART_HEIGHT = 16


def watch(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="EXPERIMENT|RUN...", help="Experiment folders and run folders.", show_default=False),
    ],
    every: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="How often to look.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Draw once and leave.")] = False,
) -> None:
    """Watch the loss of runs while they train.

    Ends when all of them are over, or with Ctrl-C, which leaves the runs alone.
    """
    from visgraft.compare.live_curves import Watch

    watched = Watch(paths)
    watched.read()
    console = Console(highlight=False)
    if not console.is_terminal:
        _print_lines(watched, once=once, every=max(every, LINE_EVERY_S))
        return
    with Live(console=console, auto_refresh=False, vertical_overflow="visible") as live:
        while True:
            height = max(4, min(CHART_HEIGHT, console.height - len(watched.runs) - 3))
            live.update(watched.drawing(width=console.width - 1, height=height), refresh=True)
            if once or watched.is_over:
                return
            time.sleep(every)
            watched.read()


def _print_lines(watched: "Watch", *, once: bool, every: float) -> None:
    """Print a line for a run whenever it has something new to tell."""
    told: dict[str, str] = {}
    while True:
        for line in watched.lines():
            name = line.partition(":")[0]
            if told.get(name) != line:
                told[name] = line
                print_line(line)
        if once or watched.is_over:
            return
        time.sleep(every)
        watched.read()
