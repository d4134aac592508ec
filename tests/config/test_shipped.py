"""What is shipped is found by its name, and an installed wheel has all of it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from visgraft.config import Recipe, find_recipe, load_recipe
from visgraft.config.renamed import VERSION
from visgraft.config.shipped import FOLDER, first_line, shipped_recipe, shipped_recipes
from visgraft.errors import ConfigError
from visgraft.experiment import load_experiment

ROOT = Path(__file__).parents[2]


def test_every_shipped_file_has_a_name_and_a_first_line_that_says_what_it_is_for() -> None:
    found = shipped_recipes()
    assert {"easy_vqa", "demo", "experiments/modules", "launch/ddp"} <= found.keys()
    assert next(iter(found)) == "coco_opt" and list(found)[-1].startswith("launch/")
    assert [name for name, path in found.items() if not path.read_text().startswith(("# ", "#!/bin/bash\n# "))] == []
    assert first_line(found["launch/slurm"]).startswith("A Slurm job")
    assert [name for name, path in found.items() if len(first_line(path)) < 20] == []


def test_a_name_may_leave_out_its_folder_where_no_other_has_it() -> None:
    assert shipped_recipe("modules") == shipped_recipe("experiments/modules") == FOLDER / "experiments" / "modules.yaml"
    assert shipped_recipe("odules") is None
    assert len({name.rpartition("/")[2] for name in shipped_recipes()}) == len(shipped_recipes())


def test_a_file_of_the_users_own_comes_before_a_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_recipe("easy_vqa") == FOLDER / "easy_vqa.yaml"
    assert find_recipe("my.yaml") == Path("my.yaml")
    (tmp_path / "easy_vqa").write_text("model: {vision: a, language: b}")
    assert load_recipe("easy_vqa").model.vision == "a"


@pytest.mark.parametrize("name", [name for name in shipped_recipes() if "/" not in name])
def test_a_shipped_recipe_loads_by_its_name_and_says_its_version(name: str) -> None:
    assert isinstance(load_recipe(name), Recipe)
    assert yaml.safe_load(shipped_recipes()[name].read_text())["version"] == VERSION


def test_a_copied_experiment_still_finds_its_base(tmp_path: Path) -> None:
    copied = shutil.copy(shipped_recipes()["experiments/easy_vqa_modules"], tmp_path / "mine.yaml")
    own, shipped = (load_experiment(path, seeds=1, output=tmp_path) for path in (copied, "easy_vqa_modules"))
    assert [run.recipe for run in own.runs] == [run.recipe for run in shipped.runs]
    assert shipped.name == "easy_vqa_modules"


def test_a_name_under_which_nothing_is_shipped_says_how_to_find_one() -> None:
    with pytest.raises(ConfigError, match=r"no such recipe; need .* or a name that `visgraft recipes` lists"):
        load_recipe("easy_vqas")
    with pytest.raises(
        ConfigError, match="no such experiment; need a YAML file, or a name that `visgraft recipes` lists"
    ):
        load_experiment("no_such")


@pytest.mark.slow
def test_an_installed_wheel_reads_the_recipes_from_itself(tmp_path: Path) -> None:
    source, site = tmp_path / "source", tmp_path / "site"
    shutil.copytree(ROOT / "visgraft", source / "visgraft", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-index"]
    subprocess.run([*pip, "wheel", *offline, "--no-build-isolation", "-w", tmp_path, source], check=True)
    [wheel] = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", *offline, "--target", site, wheel], check=True)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import visgraft; from visgraft.config.shipped import shipped_recipes\n"
        "assert visgraft.__file__.startswith(sys.argv[1]), visgraft.__file__\n"
        "assert visgraft.load_recipe('easy_vqa').model.vision == 'starter:vision'\n"
        "print(*shipped_recipes())"
    )
    result = subprocess.run(
        [sys.executable, "-P", "-c", code, site], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert result.stdout.split() == list(shipped_recipes())
    # in the folder that holds a clone the folder `visgraft` comes first, and yet the package is found
    (tmp_path / "visgraft").mkdir()
    code = "import visgraft; print(visgraft.__file__, visgraft.load_recipe('cpu').title)"
    environment = {**os.environ, "PYTHONPATH": str(site)}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    assert result.stdout.split() == [str(site / "visgraft" / "__init__.py"), "cpu"]


def test_what_is_said_about_launchers_lets_them_pass_on_every_signal_that_saves() -> None:
    option, variable = "--signals-to-handle=", "PET_SIGNALS_TO_HANDLE="
    named = {"SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"}
    found: dict[str, int] = {option: 0, variable: 0}
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *shipped_recipes().values()):
        is_set = False
        for line in path.read_text().splitlines():
            words = [word for word in line.split() if word.startswith((option, variable))]
            is_set = not line.startswith("```") and (is_set or any(word.startswith(variable) for word in words))
            assert all(set(word.partition("=")[2].split(",")) == named for word in words), line
            if "torchrun --" in line:
                assert option in line, f"{path.name}: {line}"
                found[option] += 1
            elif "accelerate launch --" in line:
                assert is_set, f"{path.name}: {line}"
                found[variable] += 1
    assert all(found.values())
