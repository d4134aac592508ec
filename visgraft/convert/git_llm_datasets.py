"""Convert what the YAML files of GIT-LLM and heron say of data: M3IT tasks, and heron's dataset files.

In: their values. Out: the `data` section of a recipe, with notes on what has to be done by hand.

    data = convert_datasets(values, folder=Path("projects/opt"), notes=notes)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from visgraft.data.readers.m3it_tasks import NAMED_SETS
from visgraft.errors import ConfigError
from visgraft.parsing import parse_yaml


def convert_datasets(values: Mapping[str, Any], *, folder: Path, notes: list[str]) -> dict[str, Any]:
    """Convert `dataset_type` (a list of M3IT tasks) or `dataset_config_path` (heron's files).

    Raises:
        ConfigError: a dataset file that is there cannot be read.
    """
    data: dict[str, Any] = {"train": [], "validation": []}
    tasks = values.get("dataset_type")
    if tasks:
        _add_m3it([tasks] if isinstance(tasks, str) else list(tasks), data)
    paths = values.get("dataset_config_path") or []
    for named in [paths] if isinstance(paths, str) else paths:
        path = next((place for place in _places(folder, named) if place.is_file()), None)
        if path is None:
            notes.append(f"{named} was not found: its data are left out; put the file beside the training file")
            continue
        try:
            dataset = parse_yaml(path.read_bytes())
        except yaml.YAMLError as error:
            raise ConfigError(f"{path}: is not YAML: {' '.join(str(error).split())[:200]}") from error
        if not isinstance(dataset, dict) or "dataset_type" not in dataset:
            raise ConfigError(f"{path}: need a dataset file of heron, with dataset_type")
        _add(dataset, data, notes=notes)
    if not data["train"]:
        notes.append("data.train is empty: add a source before training")
    return data


def _places(folder: Path, named: str) -> Iterator[Path]:
    """Say where a file may be that heron names from the top of its own repository."""
    yield Path(named).expanduser()
    for above in (folder, *folder.resolve().parents):
        yield above / named
        yield above / Path(named).name


def _add(dataset: Mapping[str, Any], data: dict[str, Any], *, notes: list[str]) -> None:
    kind = str(dataset["dataset_type"])
    if kind in ("m3it", "m3it_instruct"):
        _add_m3it(list(dataset.get("dataset_names") or []), data)
    elif kind in ("llava", "llava_instruct"):
        _add_llava(dataset, data, notes=notes)
    else:
        notes.append(
            f"{kind} is left out: write its rows as a metadata.jsonl beside the images (source: folder), one line "
            "{file_name, text} a caption"
        )


def _add_m3it(tasks: list[str], data: dict[str, Any]) -> None:
    named = next((name for name, members in NAMED_SETS.items() if set(members) == set(tasks)), None)
    source = {"source": "m3it", **({"tasks": named or tasks} if tasks else {})}
    data["train"].append({**source, "split": "train"})
    data["validation"].append({**source, "split": "validation"})


def _add_llava(dataset: Mapping[str, Any], data: dict[str, Any], *, notes: list[str]) -> None:
    path = dataset.get("jsonl_path") or dataset.get("dataset_root") or "."
    source: dict[str, Any] = {"source": "llava", "path": str(path)}
    train, validation = dataset.get("n_train"), dataset.get("n_val")
    if train and validation:
        source["split"] = {"validation": round(validation / (train + validation), 6)}
    if dataset.get("language"):
        notes.append(f"llava: language {dataset['language']!r} was chosen among their files; name its file as path")
    data["train"].append(source)
