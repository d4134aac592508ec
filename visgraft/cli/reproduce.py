"""`visgraft reproduce`: the article's three experiments as one command, and the check of what someone hands in.

In: M3IT and a scale; or a folder. Out: a folder that proves itself; or what differs in it.
Usage: `visgraft reproduce --data ~/m3it --scale hour`
"""

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table
from rich.text import Text

from visgraft.cli.experiment import devices_of
from visgraft.cli.hub import go_offline_without_network
from visgraft.cli.options import AsJson
from visgraft.cli.terminal import note, print_json, print_line, print_rich, quiet_libraries, tell
from visgraft.errors import ConfigError
from visgraft.training.interrupt import exit_status

if TYPE_CHECKING:
    from visgraft.reproduce.running import Reproduction

DIFFERS = FAILED = 1


def reproduce(
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="M3IT, a folder per task.", show_default="made, for a rehearsal"),
    ] = None,
    scale: Annotated[
        Literal["smoke", "hour", "full"],
        typer.Option(help="smoke: a rehearsal on tiny models; hour: of one large GPU; full: as written, days."),
    ] = "full",
    verify: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Check a folder that was handed in; runs nothing.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Where all goes.", show_default="reproductions/SCALE"),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Run modules, language or m3it alone; may be given often."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of every run; the folder says so."),
    ] = None,
    gpus: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Run side by side, one on each: 0,1 or all.", show_default="one by one"),
    ] = None,
    allow_changed: Annotated[
        bool,
        typer.Option("--allow-changed", help="Go on even if data, models or libraries changed; writes it down."),
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Run the article's experiments as its author wrote them: what to train, which language model, 26 tasks of M3IT.

    The folder holds runs, answers with controls, a page, and what all of it ran on; the same command goes on where it
    was stopped. Before anything is downloaded it looks whether data, GPU and memory are there. With --verify every
    figure is reckoned again from kept answers and logs; the exit status is 1 where something differs.
    """
    if verify is not None:
        if data is not None or output is not None or only or overrides:
            raise ConfigError("--verify: checks a folder as it is; leave --data, --output, --only and --set out")
        return _verify(verify.expanduser(), as_json=as_json)
    if scale != "smoke":
        from visgraft.reproduce.article import MODELS

        go_offline_without_network(MODELS)
    note("loading PyTorch and transformers")
    quiet_libraries()
    from visgraft.reproduce.running import reproduce as run

    try:
        found = run(
            data=None if data is None else data.expanduser().absolute(),
            scale=scale,
            folder=Path("reproductions", scale).absolute() if output is None else output.expanduser().absolute(),
            only=only or [],
            overrides=overrides or [],
            devices=devices_of(gpus),
            allow_changed=allow_changed,
            say=tell,
        )
    except KeyboardInterrupt as error:
        tell("stopped; what was done is kept, and the same command goes on")
        return exit_status(error)
    _print(found, as_json=as_json)
    return FAILED if found.failed else 0


def _verify(folder: Path, *, as_json: bool) -> int:
    note(f"reckoning the figures of {folder} again")
    quiet_libraries()
    from visgraft.reproduce.verifying import NOT_PROVEN, verify

    found = verify(folder)
    if as_json:
        print_json(found.as_json())
        return DIFFERS if found.differences else 0
    print_line(f"{found.num_figures:,} figures reckoned again, {found.num_files:,} files compared with their sums")
    if found.left_out:
        print_line(f"{len(found.left_out):,} pages and pictures are left out; no figure comes from them")
    for difference in found.differences:
        print_line(f"differs: {difference}")
    if not found.differences:
        print_line(f"all is as it was written; {NOT_PROVEN}")
    return DIFFERS if found.differences else 0


def _print(found: "Reproduction", *, as_json: bool) -> None:
    from visgraft.reproduce.record import PAGE

    if as_json:
        print_json({"folder": str(found.folder), **found.record})
        return
    for name, of in found.record["experiments"].items():
        print_rich(_table(name, of))
        print_line()
    for run, reason in found.failed.items():
        print_line(f"failed: {run}: {reason}")
    print_line(str(found.folder / PAGE))
    print_line(f"visgraft reproduce --verify {quote(str(found.folder))}")


def _table(name: str, of: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(name)
    scores = list(
        dict.fromkeys(
            (task, score)
            for task, models in of["evaluations"].items()
            for values in models.values()
            for score in values["scores"]
        )
    )
    for heading in ("validation loss", *(f"{task}: {score}" for task, score in scores), "hours"):
        table.add_column(heading, justify="right")
    for run, values in of["runs"].items():
        if "failed" in values:
            continue
        loss, hours = values["validation_loss"], values["hours"]
        cells = [_value(of, task, run, score) for task, score in scores]
        table.add_row(Text(run), "-" if loss is None else f"{loss:.4f}", *cells, f"{hours:.2f}")
    return table


def _value(of: dict[str, Any], task: str, run: str, score: str) -> str:
    interval = of["evaluations"][task].get(run, {"scores": {}})["scores"].get(score)
    return "-" if interval is None else f"{interval['value']:.4f}"
