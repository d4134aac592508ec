"""The house's own law: who may import whom, how files are named and sized, and a file map equal to the tree.

In: the source tree. Out: failures that name file and line. `make map` (`python tests/test_house.py --fix`) writes the
file map of docs/architecture.md again.
"""

import ast
import importlib
import re
import sys
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "visgraft"

#: a module imports its own group and lower numbers only; groups of one number never import each other
LAYERS = {
    **dict.fromkeys(["errors", "listing", "notebook", "parsing", "registration"], 0),
    **dict.fromkeys(["segments", "branches", "wording", "telemetry"], 0),
    "atomic": 0.2,  # names its errors
    **dict.fromkeys(["disk_cache", "folder_lock", "sealed"], 0.5),  # write through atomic
    **dict.fromkeys(["config", "reporting", "runs", "metrics"], 1),
    "starter": 1.5,
    "licences": 1.6,  # reads what starter assets brought with them
    **dict.fromkeys(["data", "model"], 2),
    "serving_inputs": 2.4,  # half of the processor
    "processor": 2.5,  # joins the two
    **dict.fromkeys(["inference", "convert"], 3),
    "builder": 3.5,
    **dict.fromkeys(["training", "compare", "inspection", "evaluation", "annotate"], 4),
    **dict.fromkeys(["estimate", "experiment", "serving", "demo"], 5),
    "reproduce": 5.5,
    "cli": 6,
    **dict.fromkeys(["__init__", "__main__"], 7),
}
HEAVY = {"torch", "transformers", "peft", "accelerate", "datasets", "numpy", "PIL"}
# what starts before torch is wanted
LIGHT = (
    "errors",
    "listing",
    "notebook",
    "wording",
    "registration",
    "parsing",
    "atomic",
    "segments",
    "branches",
    "folder_lock",
    "sealed",
    "config",
    "reporting",
    "runs",
    "cli",
)
FORBIDDEN_STEMS = ("util", "helper", "common", "misc", "base", "manager")
MAX_FILE_LINES, MAX_FUNCTION_LINES = 500, 80
ARCHITECTURE = ROOT / "docs" / "architecture.md"
MAP = re.compile(r"(?<=<!-- file map: `make map` writes it -->\n).*(?=<!-- end of the file map -->)", re.DOTALL)

TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}


def group_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def place(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def imported_files(path: Path) -> Iterator[tuple[int, Path]]:
    """List (line, file) of every import of our own package, wherever it stands, those for types included."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{place(path, node.lineno)}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "visgraft":
                yield node.lineno, file_of(name)


def file_of(dotted: str) -> Path:
    """Find the file of a dotted name, which may end in what the file defines."""
    target = ROOT.joinpath(*dotted.split("."))
    found = (target.with_suffix(".py"), target / "__init__.py", target.parent.with_suffix(".py"))
    return next((path for path in found if path in TREES), target.parent / "__init__.py")


def test_contributing_lists_the_groups_that_there_are() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\d.]+) \| ([^|]+) \|", text, flags=re.MULTILINE)
    told = {name.strip(): float(number) for number, names in rows for name in names.split(",")}
    assert told == {name: float(number) for name, number in LAYERS.items() if not name.startswith("__")}


def test_imports_point_down() -> None:
    assert {group_of(path) for path in TREES} == set(LAYERS), "LAYERS needs a number for every group, and no other"
    wrong = [
        f"{place(path, line)}: {group_of(path)} ({LAYERS[group_of(path)]}) imports {group_of(file)}"
        for path in TREES
        for line, file in imported_files(path)
        if group_of(file) != group_of(path) and LAYERS[group_of(file)] >= LAYERS[group_of(path)]
    ]
    assert wrong == []


def test_no_files_import_each_other_in_a_circle() -> None:
    # a package's __init__.py hands names on to those outside of it, so inside of it nobody imports it
    graph = {path: {file for _, file in imported_files(path)} for path in TREES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(str(path.relative_to(ROOT)) for path in error.args[1]))


def test_every_file_says_what_it_is_for() -> None:
    assert [path for path in TREES if path.stem.rstrip("s").endswith(FORBIDDEN_STEMS)] == [], "name what the file does"
    silent = [place(path, 1) for path, tree in TREES.items() if not (ast.get_docstring(tree) or "").strip()]
    assert silent == [], "a file needs a docstring: in, out, one usage line"


def test_files_and_functions_stay_readable() -> None:
    long = [place(path, MAX_FILE_LINES) for path in TREES if path.read_text().count("\n") > MAX_FILE_LINES]
    assert long == [], "does the file hold more than one thing?"
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    long = [
        f"{place(path, node.lineno)} {node.name}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, functions) and num_code_lines(node) > MAX_FUNCTION_LINES
    ]
    assert long == [], "does the function do more than one thing?"


def num_code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count a function's lines from its name on, without its docstring, which may list shapes and errors at length."""
    docstring = function.body[0] if ast.get_docstring(function) else None
    documented = 0 if docstring is None else (docstring.end_lineno or 0) - docstring.lineno + 1
    return (function.end_lineno or 0) - function.lineno + 1 - documented


def test_what_the_command_line_needs_to_start_imports_no_torch() -> None:
    wrong = []
    for path in TREES:
        if group_of(path) not in LIGHT:
            continue
        for node in TREES[path].body:  # the top level: what runs when it is imported
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if not HEAVY.isdisjoint(name.split(".")[0] for name in names):
                wrong.append(place(path, node.lineno))
    assert wrong == [], "import it where it is used"


def test_every_public_name_is_there() -> None:
    visgraft = importlib.import_module("visgraft")
    assert [name for name in visgraft.__all__ if getattr(visgraft, name, None) is None] == []
    assert set(visgraft.__all__) <= set(dir(visgraft))
    with pytest.raises(AttributeError, match="module 'visgraft' has no attribute 'Visgraft'; it has Batch, "):
        _ = visgraft.Visgraft
    with pytest.raises(AttributeError, match=r"visgraft\.import_ancestor is called visgraft\.import_git_llm today"):
        _ = visgraft.import_ancestor


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["dev"], *extras["serve"]]
    wanted.remove("visgraft[serve]")
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {plain_name(line) for line in lines if "==" in line}
    assert [want for want in wanted if plain_name(want) not in pinned] == []


def plain_name(requirement: str) -> str:
    return re.split(r"[<>=\[]", requirement)[0].lower().replace("_", "-")


def file_map() -> str:
    """Draw the tree, each file with the first line of what it says about itself, in the order of the layers."""
    lines = ["visgraft/"]
    for group in sorted({group_of(path) for path in TREES}, key=lambda group: (LAYERS.get(group, 99), group)):
        paths = [path for path in TREES if group_of(path) == group]
        for path in sorted(paths, key=lambda path: (path.parent, path.name)):
            below = path.relative_to(PACKAGE)
            is_folder = path.name == "__init__.py" and path.parent != PACKAGE
            parts = below.parts[:-1] if is_folder else below.parts
            name = "  " * len(parts) + parts[-1] + ("/" if is_folder else "")
            lines.append(f"{name:<34} {first_line(path)}")
    for folder in ("bench", "docs"):
        paths = sorted(path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".yaml", ".md"))
        paths = [path for path in paths if "results" not in path.parts]  # what was measured is data
        lines += [f"{folder}/"]
        lines += [f"{'  ' + path.relative_to(ROOT / folder).as_posix():<34} {first_line(path)}" for path in paths]
    lines.append(f"{'tests/':<34} the same tree again; every test's name is a sentence")
    return "```text\n" + "\n".join(line.rstrip() for line in lines) + "\n```\n"


def first_line(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        text = ast.get_docstring(ast.parse(text)) or ""
    return next((line.lstrip("# ") for line in text.splitlines() if line.strip()), "").rstrip(".")


def test_the_architecture_maps_the_tree() -> None:
    found = MAP.search(ARCHITECTURE.read_text(encoding="utf-8"))
    assert found is not None, f"{ARCHITECTURE} lost the marks of its file map"
    assert found[0] == file_map(), "the file map is old: `make map` writes it again"


def test_every_place_where_something_is_decided_is_there() -> None:
    rows = re.findall(
        r"^\|[^|]+\| `([\w/.]+)` \| `([\w.]+)` \|$", ARCHITECTURE.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(rows) >= 20
    missing = [f"{file}: {name}" for file, name in rows if name not in defined_names(PACKAGE / file)]
    assert missing == [], "docs/architecture.md says where things are decided"


def defined_names(path: Path) -> set[str]:
    """List a file's functions, and the methods of its classes as `Class.method`."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    names = {node.name for node in TREES[path].body if isinstance(node, functions)}
    for node in TREES[path].body:
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{inside.name}" for inside in node.body if isinstance(inside, functions)}
    return names


if __name__ == "__main__":
    if sys.argv[1:] != ["--fix"]:
        sys.exit("usage: python tests/test_house.py --fix")
    text = ARCHITECTURE.read_text(encoding="utf-8")
    ARCHITECTURE.write_text(MAP.sub(lambda _: file_map(), text), encoding="utf-8")
