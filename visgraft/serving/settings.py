"""The settings of a server, and its limits: what one request may hold, how many there may be.

In: what the command line was given. Out: frozen settings, checked; api keys out of a file.

    settings = ServeSettings(num_slots=16, limits=Limits(max_images=4), api_keys=read_api_keys(Path("keys.txt")))
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from visgraft.errors import ConfigError

MIB = 2**20
_SHORTEST_KEY = 8  # characters; what is shorter is guessed


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request may ask for; above a limit it is refused, never cut.

    Attributes:
        max_body_bytes: of a request's body, images in base64 among it.
        max_images: images, in all turns together.
        max_pixels: of all images together.
        max_turns: what the user said, the question itself among it.
        max_characters: of all texts together.
        max_new_tokens: longest answer that may be asked for.
        default_new_tokens: longest answer where the request does not say.
        max_choices: answers to one request (`n`).
        max_candidates: candidates of one `/v1/score`.
        max_candidate_characters: of all candidates together; others wait while they are scored.
        timeout_s: from the request's arrival to the end of its answer.
        body_timeout_s: in which a body must have arrived.
        fetch_timeout_s: in which an image of the web must have arrived.
    """

    max_body_bytes: int = 20 * MIB
    max_images: int = 16
    max_pixels: int = 50_000_000
    max_turns: int = 64
    max_characters: int = 100_000
    max_new_tokens: int = 1024
    default_new_tokens: int = 256
    max_choices: int = 8
    max_candidates: int = 128
    max_candidate_characters: int = 10_000
    timeout_s: float = 300.0
    body_timeout_s: float = 30.0
    fetch_timeout_s: float = 10.0

    def __post_init__(self) -> None:
        """Check what can be.

        Raises:
            ConfigError: a limit that lets nothing through.
        """
        for name, value in vars(self).items():
            if not value > 0:
                raise ConfigError(f"{name}: got {value}, need more than 0")


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """How a server runs.

    Attributes:
        num_slots: requests of a model that decode at once.
        max_waiting: requests of a model that wait for a slot; more are sent away (429).
        max_positions: of a row: image tokens, prompt and answer; where the language model has fewer, as many as it has.
        prefix_cache_bytes: what is kept of images, for each model.
        conversation_cache_bytes: what is kept of conversations, for each model.
        api_keys: whoever holds one of these may ask; empty: everybody who can reach the server.
        image_hosts: hosts of the web from which images may be fetched; empty: none is.
        cors_origins: pages of other origins that may ask from within a browser.
        host_names: names under which the server may be asked (the Host header); empty: any.
        log_content: the log holds the texts of requests and answers.
        runs_folder: what the page shows as runs.
        evaluations_folder: what the page shows as evaluations.
        votes_file: where the page's votes go; None: it takes none.
        limits: of one request.
    """

    num_slots: int = 16
    max_waiting: int = 64
    max_positions: int = 8192
    prefix_cache_bytes: int = 512 * MIB
    conversation_cache_bytes: int = 256 * MIB
    api_keys: tuple[ApiKey, ...] = ()
    image_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    host_names: tuple[str, ...] = ()
    log_content: bool = False
    runs_folder: Path | None = None
    evaluations_folder: Path | None = None
    votes_file: Path | None = None
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class ApiKey:
    """A key of the file: its digest, by which it is compared, and a name for the log that does not give it away."""

    digest: bytes
    name: str


def digest_of(key: str) -> bytes:
    """Return what keys are compared by: all of one length, so that comparing takes the same time for each."""
    return sha256(key.encode("utf-8", "surrogatepass")).digest()


def read_api_keys(path: Path) -> tuple[ApiKey, ...]:
    """Read a file of keys: one a line; blank lines and those that begin with # are none.

    Raises:
        ConfigError: the file cannot be read, holds no key, one that is too short, or one with a blank or a character
            that no header can carry.
    """
    where = f"--api-key-file {path}"
    try:
        lines = path.expanduser().read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ConfigError(f"{where}: this is no text file; write one key a line") from None
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror}; write one key a line, readable for the server alone") from None
    keys = []
    for number, line in enumerate(lines, start=1):
        key = line.strip()
        if not key or key.startswith("#"):
            continue
        if len(key) < _SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
            raise ConfigError(
                f"{where}: line {number} is no key; need {_SHORTEST_KEY} or more letters, digits and signs without "
                "blanks, such as `openssl rand -hex 24` prints"
            )
        keys.append(ApiKey(digest_of(key), f"key-{digest_of(key).hex()[:8]}"))
    if not keys:
        raise ConfigError(f"{where}: holds no key; write one a line, such as `openssl rand -hex 24` prints")
    return tuple(dict.fromkeys(keys))
