"""The article's experiments at every scale: the author's variants, his settings, and only what a scale says besides."""

from pathlib import Path

import pytest
import yaml

from visgraft.config import SourceSettings, recipe_to_dict
from visgraft.config.shipped import shipped_recipe
from visgraft.data.readers.m3it_tasks import NAMED_SETS, tasks_of
from visgraft.data.sources import open_sources
from visgraft.experiment import Experiment, load_experiment
from visgraft.reproduce.article import ARTICLE, MODELS, NEEDED, SCALES, Scale, write_experiment_file
from visgraft.reproduce.look_alikes import make_rows


def planned(name: str, folder: Path, scale: Scale) -> Experiment:
    path = write_experiment_file(ARTICLE[name], folder, data=folder / "m3it", scale=scale)
    return load_experiment(path, output=folder / name)


@pytest.mark.parametrize("name", ARTICLE)
def test_the_full_scale_is_the_shipped_experiment_but_for_where_the_data_are(tmp_path: Path, name: str) -> None:
    ours = planned(name, tmp_path, "full")
    shipped = load_experiment(shipped_recipe(f"experiments/{name}") or "", only=ARTICLE[name].variants)
    shipped_values = {run.variant: recipe_to_dict(run.recipe) for run in shipped.runs}
    assert [run.variant for run in ours.runs] == list(ARTICLE[name].variants)
    for run in ours.runs:
        values = recipe_to_dict(run.recipe)
        for each in (values, shipped_values[run.variant]):
            del each["output"]
            for entry in (*each["data"]["train"], *each["data"]["validation"]):
                del entry["path"]
        assert values == shipped_values[run.variant]


def test_the_article_is_nine_choices_three_models_and_its_set() -> None:
    assert [len(each.variants) for each in ARTICLE.values()] == [9, 3, 1]
    assert not {"vision-lora", "random-language", "random-all", "second-stage"} & {
        variant for each in ARTICLE.values() for variant in each.variants
    }
    assert set(NEEDED) == set(NAMED_SETS["article"])


@pytest.mark.parametrize("scale", SCALES)
def test_no_run_names_a_model_that_is_not_known_before(tmp_path: Path, scale: Scale) -> None:
    for name in ARTICLE:
        for run in planned(name, tmp_path, scale).runs:
            assert run.recipe.model.language is not None
            assert {run.recipe.model.vision, run.recipe.model.language.name} <= set(MODELS)


def test_what_stands_in_a_models_place_is_named_in_every_variant(tmp_path: Path) -> None:
    in_place_of = {name: f"/tiny/{number}" for number, name in enumerate(MODELS)}
    path = write_experiment_file(ARTICLE["language"], tmp_path, data=tmp_path, scale="smoke", in_place_of=in_place_of)
    values = yaml.safe_load(path.read_text())
    assert values["recipe"]["model"]["vision"] == "/tiny/0"
    assert [of["model.language"] for of in values["variants"].values()] == ["/tiny/2", "/tiny/3", "/tiny/4"]


def test_no_question_is_about_an_image_that_training_learned_from_or_chose_a_model_by(tmp_path: Path) -> None:
    data = make_rows(tmp_path / "m3it")
    for experiment in ARTICLE.values():
        for asked in experiment.asked:
            images: list[set[str]] = []
            for split, limit in (
                (asked.split, None),
                ("train", None),
                ("validation", 500 if asked.task != "coco" else 8),
            ):
                limit = 4 if limit == 500 else limit  # of eight images, as 500 are less than half of the real ones
                entry = SourceSettings(
                    source="m3it", path=str(data), split=split, limit=limit, options={"tasks": asked.task}
                )
                sources = open_sources([entry], key="data.test")
                images.append({str(sources[number].images) for number in range(len(sources))})
            assert images[0] and not images[0] & (images[1] | images[2])
    assert tasks_of("article")
