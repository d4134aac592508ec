"""What was renamed: keys of recipes, by the version of their form; commands; names of the package.

In: a name of before. Out: today's name, or an error that says it. Recipes of run folders get today's keys, so that old
runs can be read; in a recipe of the user's own an old key is an error that names the new one.

    version = take_version(values)
    use_new_keys(values, version=version)
"""

from __future__ import annotations

from typing import Any

from visgraft.errors import ConfigError

#: of a recipe's form, as `version:` says it; raise it when a key gets another name or meaning
VERSION = 2

#: version -> dotted key in it -> the key's name in the next version; a recipe of version 1 carries no version
KEYS: dict[int, dict[str, str]] = {
    1: {"data.probes": "data.sample_prompts", "train.probe_every_steps": "train.sample_every_steps"},
}
COMMANDS = {"fit": "estimate", "words": "inspect"}
PACKAGE_NAMES = {"import_ancestor": "import_git_llm"}


def take_version(values: dict[str, Any]) -> int | None:
    """Take `version` out of the values of a recipe; None: it says none.

    Raises:
        ConfigError: it is no version, or one of a later visgraft.
    """
    version = values.pop("version", None)
    if version is None:
        return None
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ConfigError(f"version: got {version!r}, need the version of the recipe's form, 1 to {VERSION}")
    if version > VERSION:
        raise ConfigError(
            f"version: got {version}, but this visgraft reads recipes up to version {VERSION}; upgrade visgraft "
            "(pip install -U visgraft)"
        )
    return version


def use_new_keys(values: dict[str, Any], *, version: int | None) -> None:
    """Rename in place the keys of an older recipe; one that says no version is of the first."""
    for each in range(version or 1, VERSION):
        for old, new in KEYS[each].items():
            *way, last = old.split(".")
            inside: Any = values
            for word in way:
                inside = inside.get(word) if isinstance(inside, dict) else None
            if isinstance(inside, dict) and last in inside:
                *new_way, new_last = new.split(".")
                assert new_way == way, "a key that moves to another mapping needs more than a new name"
                # in its old place, so that the order of keys stays
                renamed = {new_last if key == last else key: value for key, value in inside.items()}
                inside.clear()
                inside.update(renamed)


def new_key(key: str) -> str | None:
    """Give today's name of a dotted key that was renamed; None of any other."""
    today = key
    for version in sorted(KEYS):
        today = KEYS[version].get(today, today)
    return None if today == key else today
