"""Recipes: overrides, files, checks that no single type can say, and the way back to YAML."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from visgraft.config import (
    LanguageSettings,
    LoraSettings,
    ModelSettings,
    Recipe,
    SourceSettings,
    apply_override,
    flatten,
    load_recipe,
    recipe_to_dict,
    recipe_to_yaml,
    set_key,
)
from visgraft.config.renamed import VERSION
from visgraft.errors import ConfigError


def test_a_bare_language_name_stands_for_its_settings(recipe_values: dict[str, Any]) -> None:
    recipe = load_recipe(recipe_values)
    assert recipe.model.language == LanguageSettings("some/language", init="pretrained")
    assert recipe.train.projection == "full"
    assert recipe.train.language == recipe.train.vision == recipe.train.head == "frozen"


def test_the_example_of_the_public_contract_loads() -> None:
    text = """
model: {vision: openai/clip-vit-base-patch16, language: facebook/opt-350m, image_attention: bidirectional}
train: {vision: frozen, projection: full, language: lora, head: frozen,
        lora: {r: 8, lora_alpha: 32, target_modules: [q_proj, k_proj, v_proj]},
        epochs: 5, learning_rate: 1.0e-4, text_tokens_per_step: 2048, precision: auto, keep_checkpoints: 2}
data: {train: [{source: coco, path: ~/coco, split: train}],
       validation: [{source: coco, path: ~/coco, split: val, limit: 5000}]}
"""
    recipe = load_recipe(yaml.safe_load(text))
    assert recipe.train.lora_of("language").target_modules == ("q_proj", "k_proj", "v_proj")
    assert recipe.data.validation[0].limit == 5000
    assert recipe.data.train[0].path == str(Path("~/coco").expanduser())


def test_loading_does_not_change_the_dict_that_was_given(recipe_values: dict[str, Any]) -> None:
    load_recipe(recipe_values, overrides=["train.epochs=3", "model.language.init=random"])
    assert recipe_values == {"model": {"vision": "some/vision", "language": "some/language"}}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.epochs=3", {"train": {"epochs": 3.0}}),
        ("train.learning_rate=2e-3", {"train": {"learning_rate": 0.002}}),
        ("train.learning_rate.projection=2e-3", {"train": {"learning_rate": {"projection": 0.002}}}),
        ("train.vision.last_layers=2", {"train": {"vision": {"last_layers": 2}}}),
        ("train.language={patterns: ['layers.3']}", {"train": {"language": {"patterns": ["layers.3"]}}}),
        ("train.clip_norm=null", {"train": {"clip_norm": None}}),
        ("train.lora.language.r=4", {"train": {"lora": {"language": {"r": 4}}}}),
        ("data.train.0.source=coco", {"data": {"train": [{"source": "coco"}]}}),
        (
            "data.train=[{source: coco, columns: {a: b}}]",
            {"data": {"train": [{"source": "coco", "columns": {"a": "b"}}]}},
        ),
        ("name= first try ", {"name": "first try"}),
    ],
)
def test_an_override_sets_one_dotted_key(
    recipe_values: dict[str, Any], override: str, expected: dict[str, Any]
) -> None:
    assert recipe_to_dict(load_recipe(recipe_values, overrides=[override])) == {**recipe_values, **expected}


def test_an_override_keeps_the_name_when_it_sets_how_the_language_begins(recipe_values: dict[str, Any]) -> None:
    recipe = load_recipe(recipe_values, overrides=["model.language.init=random"])
    assert recipe.model.language == LanguageSettings("some/language", init="random")


def test_an_override_reaches_into_lists_and_may_add_one_entry(recipe_values: dict[str, Any]) -> None:
    recipe_values["data"] = {"train": [{"source": "coco"}]}
    recipe = load_recipe(recipe_values, overrides=["data.train.0.limit=5", "data.train.1.source=folder"])
    assert recipe.data.train == (SourceSettings("coco", limit=5), SourceSettings("folder"))


def test_an_override_applies_to_a_recipe_object_too(recipe_values: dict[str, Any]) -> None:
    recipe = load_recipe(load_recipe(recipe_values), overrides=["train.seed=7"])
    assert recipe.train.seed == 7


def test_a_recipe_object_is_checked_like_a_file() -> None:
    wrong = Recipe(model=ModelSettings(vision="a", language=LanguageSettings("b"), feature_layer="last"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"model\.feature_layer: got 'last', need a whole number"):
        load_recipe(wrong)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs", r"--set train\.epochs: need KEY=VALUE with a dotted key"),
        ("train..epochs=3", "need KEY=VALUE with a dotted key"),
        ("train.epochs=[3", "--set .*the value cannot be read: line 1, column 3"),
        (
            "train.epochs={a: 1, a: 2}",
            "--set .*the value cannot be read: line 1, column 8: the key 'a' is given twice; keep one",
        ),
        ("data.train.2.limit=5", r"--set data\.train\.2: got '2', need the number of an entry, 0 to 1"),
        ("data.train.first.limit=5", r"--set data\.train\.first: got 'first', need the number of an entry, 0 to 1"),
    ],
)
def test_a_wrong_override_says_what_is_wrong(recipe_values: dict[str, Any], override: str, message: str) -> None:
    recipe_values["data"] = {"train": [{"source": "coco"}]}
    with pytest.raises(ConfigError, match=message):
        load_recipe(recipe_values, overrides=[override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.vision=null", r"model\.vision: missing; name a model on the Hub or a local folder, or set start_from"),
        ("model.language=null", r"model\.language: missing; name a model"),
        ("model.start_from=runs/x", r"model\.vision: cannot be set with model\.start_from, which brings its own"),
        (
            "train.learning_rate={language: 1}",
            r"learning_rate: names no rate for projection, .* add train\.learning_rate",
        ),
        ("train.language={patterns: []}", r"train\.language\.patterns: got an empty list, need at least one pattern"),
        ("train.exact_match_samples=9", r"train\.exact_match_samples: got 9, but there is no data\.validation"),
        ("train.validate_every_steps=9", r"train\.validate_every_steps: got 9, but there is no data\.validation"),
        (
            "model.language={name: x, quantization: 4bit, init: random}",
            r"model\.language\.quantization: got 4bit with init: random, .* remove one",
        ),
        ("model.projection={pool: 2, pixel_shuffle: 2}", r"model\.projection: got pool 2 and pixel_shuffle 2"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    recipe_values: dict[str, Any], override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(recipe_values, overrides=[override])


@pytest.mark.parametrize("mode", ["full", "{last_layers: 1}"])
def test_weights_of_4_bits_cannot_train(recipe_values: dict[str, Any], mode: str) -> None:
    overrides = ["model.language.quantization=4bit", f"train.language={mode}"]
    with pytest.raises(ConfigError, match=r"train\.language: got .*, but weights of 4bit .* say lora or frozen"):
        load_recipe(recipe_values, overrides=overrides)
    load_recipe(recipe_values, overrides=[overrides[0], "train.language=lora"])


def test_start_from_needs_no_parts_and_takes_a_template() -> None:
    recipe = load_recipe({"model": {"start_from": "runs/x", "template": "chat", "attention": "eager"}})
    assert recipe.model.start_from == "runs/x"


def test_a_file_is_read_with_its_paths_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").mkdir()
    for folder in ("recipes/pictures", "pictures", "elsewhere"):
        (tmp_path / folder).mkdir()
    file = tmp_path / "recipes" / "mine.yaml"
    file.write_text(
        "model: {vision: some/vision, language: ../elsewhere}\n"
        "data: {train: [{source: x, path: pictures}, {source: x, path: elsewhere}, {source: x, path: a/b}]}\n"
    )
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(file)
    assert [Path(str(source.path)) for source in recipe.data.train] == [
        tmp_path / "recipes" / "pictures",
        tmp_path / "elsewhere",
        Path("a/b"),
    ]
    assert recipe.model.language is not None
    assert Path(recipe.model.language.name).resolve() == tmp_path / "elsewhere"
    assert recipe.model.vision == "some/vision"


def test_a_folder_that_holds_a_recipe_is_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("model: {vision: a, language: b}\n")
    assert load_recipe(tmp_path) == load_recipe(str(tmp_path / "recipe.yaml"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml: no such recipe; need a YAML file, a run folder"):
        load_recipe(tmp_path / "nothing.yaml")
    with pytest.raises(ConfigError, match=r"recipe\.yaml: no such recipe"):
        load_recipe(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"model: {vision: a\ntrain: 3\n", r"r\.yaml: cannot be read: line 2, column 6"),
        (b"- a\n- b\n", r"r\.yaml: got list, need a mapping with model, train, data, output, name"),
        (
            b"model: {vision: a, language: b}\nmodel: {vision: c}\n",
            r"r\.yaml: cannot be read: line 2, column 1: the key 'model' is given twice",
        ),
        (b"\xff\xfe\x00", r"r\.yaml: not a text file in UTF-8"),
        (b"", r"model\.vision: missing"),
        (b"1: 2\n", r"recipe: got the key 1, need text as keys"),
    ],
)
def test_a_file_that_is_no_recipe_says_where(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "r.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_recipe(tmp_path / "r.yaml")


def test_a_path_of_an_unknown_user_is_refused(recipe_values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"got the path '~no-such-user/x': .*write the folder in full"):
        load_recipe(recipe_values, overrides=["data.train=[{source: coco, path: ~no-such-user/x}]"])


def test_yaml_holds_only_what_differs_from_the_defaults(recipe_values: dict[str, Any]) -> None:
    recipe = load_recipe(recipe_values, overrides=["train.epochs=1", "train.seed=3"])
    assert yaml.safe_load(recipe_to_yaml(recipe)) == {"version": VERSION, **recipe_values, "train": {"seed": 3}}


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["model.language.init=random", "model.projection={type: mlp, pixel_shuffle: 2}", "name='2024'"],
        [
            "train.language=lora",
            "train.lora={language: {r: 4}, vision: {}}",
            "train.learning_rate={projection: 1e-3, language: 1e-5}",
        ],
        [
            "train.vision={last_layers: 2}",
            "train.language={patterns: [a, 'b.*']}",
            "train.betas=[0.9, 0.95]",
            "train.clip_norm=",
        ],
        ["data.train=[{source: hub, path: a/b, weight: 2, columns: {image: img}, deep: [1, {x: null}]}]"],
        ["train.learning_rate=1e-5", "model.vision_revision='12e4'", "model.template='USER: {prompt}\nASSISTANT:'"],
    ],
)
def test_yaml_loads_back_to_an_equal_recipe(
    recipe_values: dict[str, Any], overrides: list[str], tmp_path: Path
) -> None:
    recipe = load_recipe(recipe_values, overrides=overrides)
    (tmp_path / "recipe.yaml").write_text(recipe_to_yaml(recipe))
    assert load_recipe(tmp_path) == recipe


def test_rates_and_adapters_are_given_per_part(recipe_values: dict[str, Any]) -> None:
    same = load_recipe(recipe_values, overrides=["train.lora.r=4"]).train
    assert same.learning_rate_of("head") == 1e-4
    assert same.lora_of("language") == same.lora_of("vision") == LoraSettings(r=4)
    apart = load_recipe(
        recipe_values, overrides=["train.learning_rate={projection: 2, language: 1}", "train.lora={vision: {r: 2}}"]
    ).train
    assert (apart.learning_rate_of("projection"), apart.learning_rate_of("language")) == (2.0, 1.0)
    assert (apart.lora_of("vision"), apart.lora_of("language")) == (LoraSettings(r=2), LoraSettings())


def test_an_override_is_applied_in_place() -> None:
    values: dict[str, Any] = {"a": {"b": 1}}
    apply_override(values, "a.c.d=[1, 2]")
    assert values == {"a": {"b": 1, "c": {"d": [1, 2]}}}


def test_a_key_is_set_to_a_value_that_need_not_be_text() -> None:
    values: dict[str, Any] = {"a": {"b": [1]}}
    set_key(values, "a.b.1", {"c": None})
    assert values == {"a": {"b": [1, {"c": None}]}}
    with pytest.raises(ConfigError, match=r"^a\.b\.3: got '3', need the number of an entry, 0 to 2"):
        set_key(values, "a.b.3", 1)
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": {}}) == {"a.b": 1, "a.c.d": [2]}


def test_paths_in_a_dict_are_looked_for_in_a_folder(recipe_values: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    values = {**recipe_values, "data": {"train": [{"source": "folder", "path": "photos"}]}}
    assert load_recipe(values, folder=tmp_path).data.train[0].path == str(tmp_path / "photos")
    assert load_recipe(values).data.train[0].path == "photos"
