"""The house's own law: who may import whom, how files are named and sized, and a README map equal to the tree.

In: the source tree. Out: failures that name file and line. `make map` (`python tests/test_house.py --fix`) writes the
README's file map anew.
"""

import ast
import importlib
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "visgraft"

#: a module imports its own group and lower numbers only; groups of one number never import each other
LAYERS = {
    "errors": 0,
    **dict.fromkeys(["config", "page", "runs"], 1),
    **dict.fromkeys(["data", "model"], 2),
    "processor": 2.5,  # joins the two
    **dict.fromkeys(["starter", "infer", "evaluate", "heirs"], 3),
    **dict.fromkeys(["train", "compare", "serve", "fit", "words"], 4),
    **dict.fromkeys(["experiment", "demo"], 5),
    "cli": 6,
    **dict.fromkeys(["__init__", "__main__"], 7),
}
WITHOUT_TORCH = ["errors", "config", "page", "runs", "cli"]  # these may not import it as they are imported themselves
FORBIDDEN_STEMS = ("util", "helper", "common", "misc", "base", "manager")
MAX_FILE_LINES, MAX_FUNCTION_LINES = 330, 60
MAP = re.compile(r"(?<=<!-- file map: `make map` writes it -->\n).*(?=<!-- end of the file map -->)", re.DOTALL)

FILES = sorted(PACKAGE.rglob("*.py"))
IDS = [str(path.relative_to(ROOT)) for path in FILES]


def group_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_groups(path: Path) -> Iterator[tuple[int, str]]:
    """List (line, group) of every import of our own package, wherever in the file it stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            is_root = node.module == "visgraft"
            names = [f"visgraft.{alias.name}" for alias in node.names] if is_root else [node.module or "visgraft"]
            if node.level:
                yield node.lineno, "a relative import"
        else:
            continue
        for name in names:
            if name.split(".")[0] == "visgraft":
                yield node.lineno, [*name.split("."), "__init__"][1]


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_imports_point_down(path: Path) -> None:
    own = group_of(path)
    assert own in LAYERS, f"{own}: give the new group a number in LAYERS"
    wrong = [
        f"line {line}: {own} ({LAYERS[own]}) imports {group} ({LAYERS.get(group, 'no group')})"
        for line, group in imported_groups(path)
        if group != own and LAYERS.get(group, 99) >= LAYERS[own]
    ]
    assert wrong == []


def _num_code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count a function's lines from its name on, its docstring apart: shapes and errors may be told at length."""
    docstring = function.body[0] if ast.get_docstring(function) else None
    told = 0 if docstring is None else (docstring.end_lineno or 0) - docstring.lineno + 1
    return (function.end_lineno or 0) - function.lineno + 1 - told


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_a_file_is_named_for_what_it_does_and_says_so_and_stays_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not path.stem.rstrip("s").endswith(FORBIDDEN_STEMS), "name what the file does"
    assert (ast.get_docstring(ast.parse(text)) or "").strip(), "the file needs a docstring: in, out, one usage line"
    assert text.count("\n") <= MAX_FILE_LINES, "split the file"
    long = [
        f"line {node.lineno}: {node.name}"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and _num_code_lines(node) >= MAX_FUNCTION_LINES
    ]
    assert long == [], "split the functions"


@pytest.mark.parametrize("path", [path for path in FILES if group_of(path) in WITHOUT_TORCH], ids=str)
def test_what_the_command_line_needs_to_start_imports_no_torch(path: Path) -> None:
    heavy = {"torch", "transformers", "peft", "accelerate", "datasets", "numpy", "PIL"}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:  # the top level: what runs when it is imported
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert heavy.isdisjoint(name.split(".")[0] for name in names), f"line {node.lineno}: import it where it is used"


def test_every_public_name_is_there() -> None:
    visgraft = importlib.import_module("visgraft")
    assert [name for name in visgraft.__all__ if getattr(visgraft, name, None) is None] == []
    assert set(visgraft.__all__) <= set(dir(visgraft))
    with pytest.raises(AttributeError, match="module 'visgraft' has no attribute 'Visgraft'; it has Batch, "):
        _ = visgraft.Visgraft


def test_train_is_a_call_even_after_its_folder_was_imported() -> None:
    visgraft = importlib.import_module("visgraft")
    importlib.import_module("visgraft.train.loop")
    assert callable(visgraft.train)


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    pinned = {
        line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    }
    assert [name for name in (re.split(r"[<>=\[]", want)[0].lower() for want in wanted) if name not in pinned] == []


def file_map() -> str:
    """Draw the tree, each file with the first line of what it says about itself, in the order of the layers."""
    lines = ["visgraft/"]
    groups = sorted({group_of(path) for path in FILES}, key=lambda group: (LAYERS.get(group, 99), group))
    for group in groups:
        paths = [path for path in FILES if group_of(path) == group]
        for path in sorted(paths, key=lambda path: (path.parent, path.name)):
            below = path.relative_to(PACKAGE)
            is_folder = path.name == "__init__.py" and path.parent != PACKAGE
            parts = below.parts[:-1] if is_folder else below.parts
            name = "  " * len(parts) + parts[-1] + ("/" if is_folder else "")
            lines.append(f"{name:<24} {_first_line(path)}")
    for folder in ("recipes", "bench", "docs"):
        paths = sorted(path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".yaml", ".md"))
        paths = [path for path in paths if "results" not in path.parts]  # what was measured is data
        lines += [f"{folder}/"] if paths else []
        lines += [f"{'  ' + path.relative_to(ROOT / folder).as_posix():<24} {_first_line(path)}" for path in paths]
    lines.append(f"{'tests/':<24} the same tree again; every test's name is a sentence")
    return "```text\n" + "\n".join(line.rstrip() for line in lines) + "\n```\n"


def _first_line(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        text = ast.get_docstring(ast.parse(text)) or ""
    return next((line.lstrip("# ") for line in text.splitlines() if line.strip()), "").rstrip(".")


def test_the_readme_maps_the_tree() -> None:
    found = MAP.search((ROOT / "README.md").read_text(encoding="utf-8"))
    assert found is not None, "README.md lost the marks of its file map"
    assert found[0] == file_map(), "the file map is old: `make map` writes it anew"


if __name__ == "__main__":
    if sys.argv[1:] != ["--fix"]:
        sys.exit("usage: python tests/test_house.py --fix")
    readme = ROOT / "README.md"
    readme.write_text(MAP.sub(lambda _: file_map(), readme.read_text(encoding="utf-8")), encoding="utf-8")
