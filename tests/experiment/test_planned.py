"""An experiment file is read as strictly as a recipe, and becomes one checked recipe a run, in an order that works."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from visgraft.config import recipe_to_dict
from visgraft.errors import ConfigError
from visgraft.experiment import load_experiment

RECIPE: dict[str, Any] = {
    "model": {"vision": "some/vision", "language": "some/language", "template": "plain"},
    "train": {"epochs": 2},
    "data": {"train": [{"source": "coco"}], "validation": [{"source": "coco", "split": "val"}]},
}
VARIANTS: dict[str, Any] = {"projection": None, "lora": {"train.language": "lora"}}


def write(folder: Path, **values: Any) -> Path:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({"recipe": RECIPE, "variants": VARIANTS, **values}, sort_keys=False))
    return path


def test_a_run_is_the_recipe_with_the_changes_of_its_variant_and_its_seed(tmp_path: Path) -> None:
    experiment = load_experiment(write(tmp_path, seeds=2), output=tmp_path / "out")
    names = ["projection-seed0", "projection-seed1", "lora-seed0", "lora-seed1"]
    assert [run.folder_name for run in experiment.runs] == names
    last = experiment.runs[-1]
    assert experiment.folder_of(last) == tmp_path / "out" / "lora-seed1"
    expected = {**RECIPE, "train": {"epochs": 2.0, "language": "lora", "seed": 1}}
    assert recipe_to_dict(last.recipe) == {**expected, "name": "lora", "output": str(tmp_path / "out")}
    assert last.changes == {"train.language": "lora"}


def test_the_folder_is_named_after_the_experiment_in_the_recipes_output(tmp_path: Path) -> None:
    path = write(tmp_path, recipe={**RECIPE, "output": str(tmp_path / "runs")})
    assert load_experiment(path).folder == tmp_path / "runs" / "mine"
    path = write(tmp_path, recipe={**RECIPE, "output": str(tmp_path / "runs")}, name="other")
    assert load_experiment(path).folder == tmp_path / "runs" / "other"
    assert load_experiment(write(tmp_path)).folder == Path.cwd() / "runs" / "mine"


def test_a_base_recipe_is_overlaid_key_by_key_and_its_paths_lie_beside_it(tmp_path: Path) -> None:
    (tmp_path / "recipes" / "photos").mkdir(parents=True)
    base = {**RECIPE, "data": {**RECIPE["data"], "train": [{"source": "folder", "path": "photos"}]}}
    (tmp_path / "recipes" / "base.yaml").write_text(yaml.safe_dump(base))
    path = write(tmp_path, base="recipes/base.yaml", recipe={"train": {"epochs": 3, "schedule": "cosine"}})
    recipe = load_experiment(path).runs[0].recipe
    assert (recipe.train.epochs, recipe.train.schedule, recipe.model.template) == (3.0, "cosine", "plain")
    assert recipe.data.train[0].path == str(tmp_path / "recipes" / "photos")


def test_every_variant_meets_every_point_of_the_grid(tmp_path: Path) -> None:
    grid = {"model.image_attention": ["bidirectional", "causal"], "train.learning_rate": [1e-3, "1e-4"]}
    runs = load_experiment(write(tmp_path, grid=grid)).runs
    assert [run.variant for run in runs[4:6]] == [
        "lora,image_attention=bidirectional,learning_rate=0.001",
        "lora,image_attention=bidirectional,learning_rate=1e-4",
    ]
    settings = {(r.recipe.model.image_attention, r.recipe.train.learning_rate, r.recipe.train.language) for r in runs}
    assert len(runs) == len(settings) == 8
    [run] = load_experiment(write(tmp_path, grid={"train.schedule": ["cosine"]}, variants={})).runs
    assert (run.variant, run.recipe.train.schedule) == ("schedule=cosine", "cosine")


def test_overrides_come_over_the_variants(tmp_path: Path) -> None:
    path = write(tmp_path, variants={"long": {"train.max_steps": 100}})
    [run] = load_experiment(path, overrides=["train.max_steps=3"]).runs
    assert run.recipe.train.max_steps == 3


def test_seeds_begin_at_the_recipes_own(tmp_path: Path) -> None:
    path = write(tmp_path, recipe={**RECIPE, "train": {"seed": 5}})
    assert [run.seed for run in load_experiment(path, seeds=2, only=["lora"]).runs] == [5, 6]


SECOND = {"model.start_from": {"variant": "lora"}, "train.epochs": 4}


def test_a_variant_that_starts_from_another_comes_behind_it_with_its_parts(tmp_path: Path) -> None:
    path = write(tmp_path, variants={"second": SECOND, **VARIANTS}, seeds=2)
    experiment = load_experiment(path, output=tmp_path / "out")
    names = [run.folder_name for run in experiment.runs]
    assert names[:4] == ["lora-seed0", "second-seed0", "lora-seed1", "second-seed1"]
    run = experiment.runs[3]
    assert run.starts_from == "lora-seed1"
    assert recipe_to_dict(run.recipe)["model"] == {
        "start_from": str(tmp_path / "out" / "lora-seed1"),
        "template": "plain",
    }
    assert [r.folder_name for r in load_experiment(path, only=["second"], seeds=1).runs] == names[:2]


def test_with_a_grid_it_starts_from_the_other_at_the_same_point(tmp_path: Path) -> None:
    path = write(tmp_path, variants={**VARIANTS, "second": SECOND}, grid={"train.schedule": ["linear", "cosine"]})
    sources = {run.variant: run.starts_from for run in load_experiment(path).runs}
    assert sources["second,schedule=cosine"] == "lora,schedule=cosine-seed0"


@pytest.mark.parametrize(
    ("only", "expected"),
    [(["lora"], ["lora"]), (["l*", "projection"], ["projection", "lora"]), (["lora-seed0"], ["lora"])],
)
def test_only_takes_names_and_patterns(tmp_path: Path, only: list[str], expected: list[str]) -> None:
    assert [run.variant for run in load_experiment(write(tmp_path), only=only).runs] == expected


def variant(**changes: Any) -> dict[str, Any]:
    return {"variants": {"a": {key.replace("__", "."): value for key, value in changes.items()}}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"varaints": {}}, r"varaints: unknown key; did you mean variants\?"),
        ({"seeds": 0}, r"seeds: got 0, need a whole number of at least 1"),
        ({"recipe": {}}, "names no recipe; give base"),
        ({"base": "nowhere.yaml"}, r"nowhere\.yaml: no such base recipe; need a YAML file beside this one"),
        ({"recipe": {"train": {"epoch": 3}}}, r"recipe: train\.epoch: unknown key; did you mean train\.epochs\?"),
        (variant(train__epoch=3), r"variants\.a: train\.epoch: unknown key; did you mean train\.epochs\?"),
        (variant(train__language="loar"), r"variants\.a: train\.language: got 'loar', .*did you mean lora\?"),
        (variant(train={"epochs": 3}), r"variants\.a: got 'train', need a dotted setting of model, train, data"),
        (variant(trian__epochs=3), r"variants\.a: got 'trian\.epochs', need a dotted setting"),
        (variant(train__seed=3), r"variants\.a: train\.seed: an experiment sets it itself"),
        (variant(output="x"), r"variants\.a: output: an experiment sets it itself"),
        (variant(data__train__7__limit=3), r"variants\.a: data\.train\.7: got '7', need the number of an entry"),
        ({"variants": {"a/b": None}}, r"variants: got the name 'a/b', need letters, digits and"),
        (variant(model__start_from={"run": "a"}), r"variants\.a: model\.start_from: got .*need \{variant: NAME\}"),
        (
            {"variants": {**VARIANTS, "b": {"model.start_from": {"variant": "lara"}}}},
            r"variants\.b: model\.start_from: no variant is named 'lara'; did you mean lora\?",
        ),
        (
            {"variants": {x: {"model.start_from": {"variant": y}} for x, y in ("ab", "ba")}},
            r"variants: they start from one another \(a -> b -> a\)",
        ),
        ({"grid": {"train.epochs": []}}, r"grid\.train\.epochs: got an empty list"),
        ({"grid": {"train.lora": [{"r": 4}]}}, r"grid\.train\.lora: got .*; what takes several settings is a variant"),
        ({"grid": {"train.epochs": [1, 1]}}, r"grid: two of its values are both named projection,epochs=1"),
        ({"grid": {"epochs": [1]}}, r"grid: got 'epochs', need a dotted setting"),
        ({"recipe": {**RECIPE, "data": {}}}, r"recipe: data\.validation: missing; an experiment compares"),
        (
            {"variants": {**VARIANTS, "b": {"data.validation.0.limit": 3}}},
            r"variants\.b: data\.validation: is another than that of projection",
        ),
        (
            {"variants": {**VARIANTS, "b": {"data.sample_prompts": [{"image": "x.png"}]}}},
            r"variants\.b: data\.sample_prompts: is another than that of projection",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_experiment(write(tmp_path, **values))


def test_what_is_wrong_on_the_command_line_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--only: no variant is named 'lorra'; did you mean lora\?"):
        load_experiment(write(tmp_path), only=["lorra"])
    with pytest.raises(ConfigError, match=r"^train\.epoch: unknown key; did you mean train\.epochs\?"):
        load_experiment(write(tmp_path), overrides=["train.epoch=3"])
    with pytest.raises(ConfigError, match=r"no such experiment; need a YAML file"):
        load_experiment(tmp_path / "nowhere.yaml")
