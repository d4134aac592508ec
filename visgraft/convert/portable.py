"""Put the code beside the weights, so that a model folder loads where visgraft is not installed.

In: a full model folder. Out: the same folder with the modules it needs, flat, their imports rewritten, and `auto_map`
in its configs. transformers' own copying does not do: it takes one file and what lies beside it, not a package.

    make_portable(folder)
    AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)     # anywhere
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

from visgraft.atomic import whole_folder, write_json, write_whole
from visgraft.convert.merge import check_target, copy_missing
from visgraft.errors import CheckpointError
from visgraft.model.storage.restoring import find_folder
from visgraft.model.vlm import VisionLanguageModel
from visgraft.parsing import parse_json
from visgraft.runs import find_model

PACKAGE = "visgraft"
ROOT = Path(__file__).resolve().parent.parent
AUTO_MAP = {
    "config.json": {
        "AutoConfig": "visgraft.model.configuration.VisionLanguageConfig",
        "AutoModelForImageTextToText": "visgraft.model.vlm.VisionLanguageModel",
    },
    "processor_config.json": {"AutoProcessor": "visgraft.processor.Processor"},
}
HEADER = "# Copied from visgraft (Apache-2.0) with its imports rewritten; the package is the place to change it.\n"


def export_full(src: str | Path, dst: str | Path, *, portable: bool = False, replace: bool = False) -> Path:
    """Write a model with all its weights, so that it needs no other folder.

    Args:
        src: model folder, run folder or Hub name.
        dst: folder to write.
        portable: put the code beside the weights.
        replace: write over a model folder that is there.

    Raises:
        CheckpointError: the source cannot be loaded, or `dst` is something else.
    """
    source, folder = find_folder(find_model(src)), Path(dst).expanduser()
    check_target(folder, source=source, replace=replace)
    model = VisionLanguageModel.from_pretrained(source)
    with whole_folder(folder) as building:
        model.save_pretrained(building, full=True)
        copy_missing(source, building)
        if portable:
            make_portable(building)
    return folder


def make_portable(folder: str | Path) -> list[str]:
    """Copy the code that a model folder needs into it.

    Args:
        folder: written with `full=True`; what it names must be found wherever it is loaded.

    Returns:
        The names of the files written.

    Raises:
        CheckpointError: a part is only named, and its name is a folder of this machine.
    """
    folder = Path(folder)
    _check_parts(folder)
    return put_code(folder, AUTO_MAP)


def put_code(folder: Path, auto_map: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Copy the modules of some classes into a folder, and name the classes in its configs.

    Args:
        folder: a saved model.
        auto_map: file -> automatic class of transformers -> class of the package.

    Returns:
        The names of the files written.
    """
    modules = needed_modules([_module_of(name) for names in auto_map.values() for name in names.values()])
    for module in modules:
        write_whole(folder / f"{flat_name(module)}.py", rewritten(module))
    for file, names in auto_map.items():
        path = folder / file
        if path.is_file():
            values = parse_json(path.read_bytes())
            values["auto_map"] = {
                auto: f"{flat_name(_module_of(name))}.{name.rpartition('.')[2]}" for auto, name in names.items()
            }
            write_json(path, values)
    return [f"{flat_name(module)}.py" for module in modules]


def needed_modules(start: list[str]) -> list[str]:
    """List the modules of the package that some modules import, themselves included, however deep."""
    found: set[str] = set()
    waiting = list(start)
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting += [_imported(node) for node in _imports(_source(module))]
    return sorted(found)


def flat_name(module: str) -> str:
    """Name the file of a module in a flat folder: `visgraft.model.vlm` is `visgraft_model_vlm`."""
    return module.replace(".", "_")


def rewritten(module: str) -> str:
    """Give the source of a module with its imports of the package made relative and flat."""
    source = _source(module)
    lines = source.splitlines(keepends=True)
    for node in sorted(_imports(source), key=lambda node: node.lineno, reverse=True):
        names = ", ".join(
            alias.name if alias.asname is None else f"{alias.name} as {alias.asname}" for alias in node.names
        )
        indent = lines[node.lineno - 1][: node.col_offset]
        assert node.end_lineno is not None
        lines[node.lineno - 1 : node.end_lineno] = [f"{indent}from .{flat_name(_imported(node))} import {names}\n"]
    return HEADER + "".join(lines)


def _imports(source: str) -> list[ast.ImportFrom]:
    """List a module's imports of the package, wherever they stand."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    return [node for node in nodes if (node.module or "").partition(".")[0] == PACKAGE]


def _imported(node: ast.ImportFrom) -> str:
    module = node.module or ""
    below = [alias.name for alias in node.names if _path(f"{module}.{alias.name}").is_file()]
    assert not below, f"{module} import {below}: import from the module itself, which can be copied flat"
    return module


def _module_of(name: str) -> str:
    return name.rpartition(".")[0]


def _source(module: str) -> str:
    return _path(module).read_text(encoding="utf-8")


def _path(module: str) -> Path:
    place = ROOT.joinpath(*module.split(".")[1:])
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


def _check_parts(folder: Path) -> None:
    parts = parse_json((folder / "config.json").read_bytes()).get("parts", {})
    for part, described in parts.items():
        name = described.get("name")
        if described.get("stored") != "all" and name and Path(name).is_absolute():
            raise CheckpointError(
                f"{folder}: the {part} part is only named, as the local folder {name}, which no one else has; write a "
                "full folder (save_pretrained with full=True, or visgraft export)"
            )
