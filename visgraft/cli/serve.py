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
from urllib.parse import urlsplit

import typer

from visgraft.cli.ask import load_model
from visgraft.cli.options import Device, Precision
from visgraft.cli.terminal import note, print_line
from visgraft.errors import ConfigError
from visgraft.runs import find_model

LIMITS, DOORS, PAGE = "Limits", "Doors", "Page"
MB = 2**20
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


Models = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL",
        help="Run folders, model folders or Hub names; NAME=MODEL gives one another name.",
        show_default=False,
    ),
]
Host = Annotated[str, typer.Option(help="Address to listen at; another than this machine's own needs keys.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0 takes a free one.")]
ApiKeyFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Whoever holds one of its keys may ask; one a line.", show_default="everybody here may"
    ),
]
MaxConcurrent = Annotated[
    int, typer.Option(min=1, help="Requests of a model that decode at once.", rich_help_panel=LIMITS)
]
MaxQueue = Annotated[
    int,
    typer.Option(min=1, help="Requests of a model that wait; more are sent away (429).", rich_help_panel=LIMITS),
]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest answer that may be asked for.", rich_help_panel=LIMITS)]
MaxPositions = Annotated[
    int,
    typer.Option(
        min=1,
        help="Image tokens, prompt and answer together; fewer where the language model has fewer.",
        rich_help_panel=LIMITS,
    ),
]
MaxImages = Annotated[int, typer.Option(min=1, help="Images of one request.", rich_help_panel=LIMITS)]
MaxMegapixels = Annotated[
    float, typer.Option(min=0.01, help="Of all images of a request together.", rich_help_panel=LIMITS)
]
MaxBodyMb = Annotated[
    float, typer.Option(min=0.01, help="Of one request, images in base64 among it.", rich_help_panel=LIMITS)
]
Timeout = Annotated[
    float, typer.Option(min=0.1, help="Seconds in which an answer must be whole.", rich_help_panel=LIMITS)
]
ImageCacheMb = Annotated[
    float,
    typer.Option(min=0, help="Kept of images of each model, for further questions.", rich_help_panel=LIMITS),
]
ConversationCacheMb = Annotated[
    float,
    typer.Option(min=0, help="Kept of conversations of each model, for further turns.", rich_help_panel=LIMITS),
]
AllowImageHosts = Annotated[
    list[str] | None,
    typer.Option(
        metavar="HOST",
        help="Fetch images from this host of the web, or below *.HOST; again for another one.",
        show_default="none",
        rich_help_panel=DOORS,
    ),
]
AllowHost = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="A name by which the server is asked, where it has no keys (behind a proxy, say).",
        show_default="localhost, 127.0.0.1, ::1",
        rich_help_panel=DOORS,
    ),
]
CorsOrigin = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ORIGIN",
        help="Let pages of this origin (https://example.org) ask from within a browser.",
        show_default="none",
        rich_help_panel=DOORS,
    ),
]
LogContent = Annotated[
    bool, typer.Option("--log-content", help="Log texts of requests and answers too.", rich_help_panel=DOORS)
]
Runs = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Show the runs of this folder as they train.", show_default="none", rich_help_panel=PAGE
    ),
]
Evaluations = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="List the evaluations of this folder.",
        show_default="evaluations beside --runs",
        rich_help_panel=PAGE,
    ),
]
VotesFile = Annotated[
    Path,
    typer.Option(
        metavar="FILE",
        help="Where votes on two answers go, with question and answers; made with the first vote.",
        rich_help_panel=PAGE,
    ),
]
NoVotes = Annotated[
    bool, typer.Option("--no-votes", help="Compare no answers, and take no votes.", rich_help_panel=PAGE)
]


def serve(
    models: Models,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    api_key_file: ApiKeyFile = None,
    max_concurrent: MaxConcurrent = 16,
    max_queue: MaxQueue = 64,
    max_new_tokens: MaxNewTokens = 1024,
    max_positions: MaxPositions = 8192,
    max_images: MaxImages = 16,
    max_megapixels: MaxMegapixels = 50.0,
    max_body_mb: MaxBodyMb = 20.0,
    timeout: Timeout = 300.0,
    image_cache_mb: ImageCacheMb = 512.0,
    conversation_cache_mb: ConversationCacheMb = 256.0,
    allow_image_hosts: AllowImageHosts = None,
    allow_host: AllowHost = None,
    cors_origin: CorsOrigin = None,
    log_content: LogContent = False,
    runs: Runs = None,
    evaluations: Evaluations = None,
    votes: VotesFile = Path("votes.jsonl"),
    no_votes: NoVotes = False,
    device: Device = None,
    precision: Precision = "auto",
) -> int:
    """Serve models over HTTP: OpenAI's endpoints, and a page to try them.

    When it is ready it prints where. Ctrl-C or SIGTERM lets running requests finish, and ends. docs/serve.md has
    examples, limits and what is safe about it.
    """
    try:
        from visgraft.serving import Limits, ServeSettings, Service, open_port, read_api_keys, run
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is not installed; pip install 'visgraft[serve]'") from error
    keys = () if api_key_file is None else read_api_keys(api_key_file)
    if not keys and not _is_loopback(host):
        raise ConfigError(
            f"--host {host}: everybody who reaches this address could use the models; give --api-key-file, or "
            "listen at 127.0.0.1 and let people in by a tunnel or a proxy"
        )
    _check_page(runs=runs, evaluations=evaluations, votes=votes)
    named = _names(models)
    settings = ServeSettings(
        num_slots=max_concurrent,
        max_waiting=max_queue,
        max_positions=max_positions,
        prefix_cache_bytes=int(image_cache_mb * MB),
        conversation_cache_bytes=int(conversation_cache_mb * MB),
        api_keys=keys,
        image_hosts=tuple(allow_image_hosts or ()),
        cors_origins=tuple(map(_origin, cors_origin or ())),
        host_names=() if keys else _host_names(host, allow_host or ()),
        log_content=log_content,
        runs_folder=runs,
        evaluations_folder=evaluations or _beside(runs),
        votes_file=None if no_votes else votes,
        limits=Limits(
            max_body_bytes=int(max_body_mb * MB),
            max_images=max_images,
            max_pixels=int(max_megapixels * 1e6),
            max_new_tokens=max_new_tokens,
            default_new_tokens=min(256, max_new_tokens),
            timeout_s=timeout,
        ),
    )
    opened = open_port(host, port)
    loaded = {name: load_model(model, device=device, precision=precision) for name, model in named.items()}
    _log()
    note("Ctrl-C ends")
    return run(Service(loaded, settings), opened, ready=lambda where: print_line(f"serving on {where}"))


def _check_page(*, runs: Path | None, evaluations: Path | None, votes: Path) -> None:
    """Check what the page is to show.

    Raises:
        ConfigError: a folder is not there, or the file of votes is a folder.
    """
    for option, folder in (("--runs", runs), ("--evaluations", evaluations)):
        if folder is not None and not folder.expanduser().is_dir():
            raise ConfigError(f"{option} {folder}: there is no such folder; name one that is there, empty or not")
    if votes.expanduser().is_dir():
        raise ConfigError(f"--votes {votes}: this is a folder; name a file, such as votes.jsonl")


def _beside(runs: Path | None) -> Path | None:
    """Find the evaluations that lie beside the runs."""
    found = None if runs is None else runs.expanduser().absolute().parent / "evaluations"
    return found if found is not None and found.is_dir() else None


def _origin(given: str) -> str:
    """Check an origin: a scheme and a host, as browsers send it.

    Raises:
        ConfigError: it is none.
    """
    parts = urlsplit(given)
    if given != "*" and (parts.scheme not in ("http", "https") or not parts.netloc or parts.path or parts.query):
        raise ConfigError(f"--cors-origin {given}: need scheme and host alone, such as https://example.org")
    return given


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _host_names(host: str, others: Sequence[str]) -> tuple[str, ...]:
    """List the names by which a server without keys may be asked, as the Host header has them."""
    own = f"[{host}]" if ":" in host else host
    return tuple(dict.fromkeys(name.lower() for name in (*LOOPBACK_NAMES, own, *others)))


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
            name, model = _name_of(folder.resolve()) if folder.exists() else given, given
        if not name or name in named:
            what = "has no name" if not name else f"is called {name}, and another one too"
            raise ConfigError(f"{given}: this model {what}; name it yourself: some-name={model}")
        find_model(model)
        named[name] = model
    return named


def _name_of(folder: Path) -> str:
    """Name a model by its folder; `model` in a run is called as the run."""
    return folder.parent.name if folder.name == "model" and (folder.parent / "recipe.yaml").is_file() else folder.name


def _log() -> None:
    """Write the request log to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log = logging.getLogger("visgraft.serving")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
