"""Is the package whole? What was built holds every file of it, and what was installed works where no sources are.

    python tests/check_wheel.py dist             # the wheel and the sdist in a folder beside the sources
    python tests/check_wheel.py --installed      # the visgraft of this environment, in a folder without sources

In: a folder of what was built; nothing. Out: exit status 0, or what is missing. Only the standard library is needed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "visgraft"
SMOKE = (
    ["--help"],
    ["--version"],
    ["env", "--json"],
    ["recipes", "--json"],
    ["show", "easy_vqa"],
    ["estimate", "easy_vqa", "--json"],
    ["evaluate", "--list"],
    ["cache"],
)


def files_of_package() -> set[str]:
    """List the files that the package is made of, compiled ones apart."""
    found = {path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    return {path.relative_to(PACKAGE.parent).as_posix() for path in found}


def missing_of(folder: Path) -> dict[str, set[str]]:
    """Find what each archive of a folder lacks."""
    [wheel], [source] = folder.glob("*.whl"), folder.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = set(archive.namelist())
    with tarfile.open(source) as archive:
        in_source = {name.partition("/")[2] for name in archive.getnames()}
    own = files_of_package()
    return {wheel.name: own - in_wheel, source.name: own - in_source}


def try_installed() -> None:
    """Run commands of the visgraft that is installed beside this Python, each in a process of its own."""
    program = Path(sys.executable).with_name("visgraft")
    Path("visgraft").mkdir(exist_ok=True)  # as where a clone lies: the package is found all the same
    code = "import visgraft; print(visgraft.__file__)"
    place = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "site-packages" in place, f"not the installed one: {place}"
    for words in SMOKE:
        done = subprocess.run([program, *words], capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout, f"visgraft {' '.join(words)}: {done.stderr}"
        if "--json" in words:
            json.loads(done.stdout)
        sys.stdout.write(f"visgraft {' '.join(words)}: works\n")


def main() -> int:
    """Check what is asked for."""
    if sys.argv[1:] == ["--installed"]:
        try_installed()
        return 0
    missing = missing_of(Path(sys.argv[1]))
    for name, lacks in missing.items():
        sys.stdout.write(f"{name}: {'whole' if not lacks else f'lacks {sorted(lacks)}'}\n")
    return int(any(missing.values()))


if __name__ == "__main__":
    raise SystemExit(main())
