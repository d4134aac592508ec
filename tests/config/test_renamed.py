"""Old run folders are read in today's words; old keys of the user's own recipes are errors that name the new ones."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from visgraft.cli.program import app
from visgraft.config import Recipe, load_recipe, recipe_to_dict, recipe_to_yaml
from visgraft.config.hints import dotted_keys
from visgraft.config.renamed import COMMANDS, KEYS, PACKAGE_NAMES, VERSION, take_version
from visgraft.errors import ConfigError

OLD = {
    "model": {"vision": "a", "language": "b"},
    "train": {"epochs": 2.0, "probe_every_steps": 16, "seed": 1},
    "data": {"probes": [{"image": "cat.jpg", "prompts": ["What?"]}]},
}


def write(folder: Path, values: dict[str, Any], *, is_run: bool) -> Path:
    folder.mkdir()
    if is_run:
        (folder / "environment.json").write_text("{}")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return folder


def test_the_recipe_of_an_old_run_is_read_in_todays_words(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", OLD, is_run=True)
    recipe = load_recipe(folder)
    assert recipe == load_recipe(folder / "recipe.yaml")
    assert recipe_to_dict(recipe) == {
        "model": OLD["model"],
        "train": {"epochs": 2.0, "sample_every_steps": 16, "seed": 1},
        "data": {"sample_prompts": OLD["data"]["probes"]},
    }


@pytest.mark.parametrize("version", [{}, {"version": VERSION}])
def test_an_old_key_in_a_recipe_of_ones_own_is_an_error_that_names_the_new_one(
    version: dict[str, int], tmp_path: Path
) -> None:
    folder = write(tmp_path / "mine", {**version, **OLD}, is_run=False)
    message = r"^train\.probe_every_steps: is called train\.sample_every_steps today; rename it$"
    for source in (folder / "recipe.yaml", {**version, **OLD}):
        with pytest.raises(ConfigError, match=message):
            load_recipe(source)
    with pytest.raises(ConfigError, match=r"^data\.probes: is called data\.sample_prompts today"):
        load_recipe({"model": OLD["model"]}, overrides=["data.probes=[]"])


def test_a_run_of_todays_version_has_no_old_keys(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", {"version": VERSION, **OLD}, is_run=True)
    with pytest.raises(ConfigError, match=r"train\.probe_every_steps: is called train\.sample_every_steps today"):
        load_recipe(folder)


def test_a_recipe_is_written_with_its_version_and_need_not_say_it(tmp_path: Path) -> None:
    recipe = load_recipe({"model": OLD["model"]})
    text = recipe_to_yaml(recipe)
    assert text.startswith(f"version: {VERSION}\n")
    assert load_recipe(yaml.safe_load(text)) == recipe


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (VERSION + 1, rf"version: got {VERSION + 1}, but .* up to version {VERSION}; upgrade visgraft"),
        ("2.0", r"version: got '2\.0', need the version of the recipe's form, 1 to"),
        (True, "version: got True, need"),
        (0, "version: got 0, need"),
    ],
)
def test_a_version_that_is_not_known_is_refused(version: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe({"version": version, "model": OLD["model"]})


def test_the_tables_name_what_there_is() -> None:
    import visgraft

    assert sorted(KEYS) == list(range(1, VERSION))
    assert set(KEYS[VERSION - 1].values()) <= set(dotted_keys(Recipe))
    assert not set(KEYS[VERSION - 1]) & set(dotted_keys(Recipe))
    commands = {str(command.name) for command in app.registered_commands}
    assert set(COMMANDS.values()) <= commands and not set(COMMANDS) & commands
    assert set(PACKAGE_NAMES.values()) <= set(visgraft.__all__)
    assert take_version({}) is None
