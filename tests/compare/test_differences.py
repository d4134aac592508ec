"""What differs, what trains, and which losses compare."""

import json
from pathlib import Path

import pytest

from tests.compare.made_runs import save_run
from visgraft.compare.collect import collect
from visgraft.compare.differences import ABSENT, data_key, data_name, differences, has_one_tokenizer, what_trains
from visgraft.compare.results_table import loss_unit
from visgraft.config import load_recipe


def recipe(train: dict[str, object]):
    return load_recipe({"model": {"vision": "v", "language": "l"}, "train": train})


def test_only_what_differs_is_listed_with_the_defaults_of_those_that_say_nothing(tmp_path: Path) -> None:
    save_run(tmp_path / "a", name="a", num_steps=5)
    save_run(
        tmp_path / "b", name="b", seed=3, num_steps=5, train={"learning_rate": 0.01, "lora": {"language": {"r": 4}}}
    )
    found = differences(collect([tmp_path]).variants)
    assert found["train.learning_rate"] == {"a": 1e-4, "b": 0.01}
    assert found["train.lora.r"] == {"a": 8, "b": ABSENT}
    assert found["train.lora.language.r"] == {"a": ABSENT, "b": 4}
    assert not {"name", "output", "train.seed", "train.epochs"} & found.keys()


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ({}, "projection"),
        ({"projection": "frozen"}, "nothing"),
        ({"language": "lora", "vision": "full"}, "projection + vision + language (LoRA)"),
        (
            {"vision": {"last_layers": 2}, "head": {"patterns": ["a*"]}},
            "projection + vision (last 2) + head (patterns)",
        ),
    ],
)
def test_what_trains_is_said_in_a_few_words(train: dict[str, object], words: str) -> None:
    assert what_trains(recipe(train)) == words


def test_data_is_the_same_where_sources_are_and_is_named_shortly(tmp_path: Path) -> None:
    for name, data in (("a", "x"), ("b", "x"), ("c", "y")):
        save_run(tmp_path / name, name=name, num_steps=5, data=data, validation=None)
    a, b, c = collect([tmp_path]).runs
    assert data_key(a, "training") == data_key(b, "training") != data_key(c, "training")
    assert data_key(a, "validation") == ""
    assert data_name(a, "training") == "folder x (train)"
    assert data_name(a, "validation") == "none"


def test_losses_of_different_tokenizers_compare_only_per_character(tmp_path: Path) -> None:
    save_run(tmp_path / "a", name="a", num_steps=5)
    other = save_run(tmp_path / "b", name="b", num_steps=5, model={"language": "gpt2"})
    comparison = collect([tmp_path])
    assert not has_one_tokenizer(comparison.runs)
    assert loss_unit(comparison.variants) == "character"
    assert loss_unit(comparison.variants[:1]) == "token"
    for folder, vocab in ((tmp_path / "a", {"x": 0}), (other, {"x": 0})):
        (folder / "model").mkdir()
        (folder / "model" / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}}))
    assert has_one_tokenizer(collect([tmp_path]).runs)  # two names, one vocabulary
    (other / "model" / "tokenizer.json").write_text("[]")
    assert not has_one_tokenizer(collect([tmp_path]).runs)
