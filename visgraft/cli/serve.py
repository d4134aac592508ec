"""`visgraft serve`: models behind OpenAI's endpoints, and a page to try them.

In: run folders, model folders or Hub names. Out: a server until Ctrl-C or SIGTERM.
Usage: `visgraft serve runs/my-run --port 8000`
"""

import ipaddress
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from visgraft.cli.ask import load_model
from visgraft.cli.options import Device, Precision
from visgraft.cli.terminal import note, print_line
from visgraft.errors import ConfigError
from visgraft.runs import find_model

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


def serve(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Run folders, model folders or Hub names; NAME=MODEL gives one another name.",
            show_default=False,
        ),
    ],
    host: Annotated[str, typer.Option(help="Address to listen at; another than this machine's own needs keys.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0 takes a free one.")] = 8000,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help="Whoever holds one of these keys may ask; one a line.", show_default="everybody here may"),
    ] = None,
    max_concurrent: Annotated[int, typer.Option(min=1, help="Requests of a model that decode at once.")] = 16,
    max_queue: Annotated[int, typer.Option(min=1, help="Requests of a model that wait; more are sent away.")] = 64,
    device: Device = None,
    precision: Precision = "auto",
) -> int:
    """Serve models over HTTP: OpenAI's endpoints, and a page to try them.

    When it is ready it prints where. Ctrl-C or SIGTERM lets running requests finish, and ends.
    """
    try:
        from visgraft.serving import ServeSettings, Service, open_port, read_api_keys, run
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is not installed; pip install 'visgraft[serve]'") from error
    keys = () if api_key_file is None else read_api_keys(api_key_file)
    if not keys and not _is_loopback(host):
        raise ConfigError(
            f"--host {host}: everybody who reaches this address could use the models; give --api-key-file, or "
            "listen at 127.0.0.1 and let people in by a tunnel or a proxy"
        )
    named = _names(models)
    settings = ServeSettings(
        num_slots=max_concurrent,
        max_waiting=max_queue,
        api_keys=keys,
        host_names=() if keys else LOOPBACK_NAMES,
    )
    opened = open_port(host, port)
    loaded = {name: load_model(model, device=device, precision=precision) for name, model in named.items()}
    _log()
    note("Ctrl-C ends")
    return run(Service(loaded, settings), opened, ready=lambda where: print_line(f"serving on {where}"))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _names(models: Sequence[str]) -> dict[str, str]:
    """Give each model the name by which clients ask for it: its folder's, or its whole name on the Hub.

    Raises:
        ConfigError: two of one name, or a run without a model.
    """
    named: dict[str, str] = {}
    for given in models:
        name, equals, model = given.partition("=")
        folder = Path(given).expanduser()
        if folder.exists() or not equals:
            name, model = folder.resolve().name if folder.exists() else given, given
        if name in named:
            raise ConfigError(f"{given}: two models are called {name}; give one another name: other={model}")
        find_model(model)
        named[name] = model
    return named


def _log() -> None:
    """Write the request log to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log = logging.getLogger("visgraft.serving")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
