"""The recipes, experiments and launch files that come with the package, in `visgraft/recipes/`, by their names.

In: a name, such as `easy_vqa`, `experiments/modules` or, as no other has that name, `modules`. Out: the file.

    find_recipe("easy_vqa")               # a file or folder of that name comes first
    shipped_recipes()                     # {"coco_opt": Path(...), "experiments/language": Path(...), ...}
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parents[1] / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """List everything that is shipped, by name: recipes first, then experiments and launch files."""
    files = [path for path in FOLDER.rglob("*") if path.suffix in (".yaml", ".sh")]
    found = sorted(files, key=lambda path: (path.parent != FOLDER, path))
    return {path.relative_to(FOLDER).with_suffix("").as_posix(): path for path in found}


def shipped_recipe(name: str) -> Path | None:
    """Find what is shipped under a name, which may leave out its folder; None: nothing is."""
    found = [path for known, path in shipped_recipes().items() if known == name or known.endswith(f"/{name}")]
    return found[0] if len(found) == 1 else None


def find_recipe(source: str | Path) -> Path:
    """Turn what a user calls a recipe into a path: what lies there, else what is shipped under that name."""
    path = Path(source).expanduser()
    return path if path.exists() else shipped_recipe(str(source)) or path


def first_line(path: Path) -> str:
    """Say what a shipped file is for, as the first line of its comment does."""
    with path.open(encoding="utf-8") as file:
        return next(line for line in file if not line.startswith("#!")).lstrip("# ").rstrip()
