"""`visgraft init`: recipes that load, fit the data and are not written over others."""

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import Visgraft
from tests.training.tiny import save_data
from visgraft.config import load_recipe
from visgraft.data.sources import open_sources


def test_a_folder_becomes_a_recipe_that_reads_it(visgraft: Visgraft, tmp_path: Path) -> None:
    photos, recipe = Path(save_data(tmp_path / "photos", num_images=60)), tmp_path / "new" / "recipe.yaml"
    outcome = visgraft("init", "--data", photos, "-o", recipe)
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out == (
        f"{recipe}: a folder with metadata.jsonl, 60 images with 150 texts\n"
        f"next: visgraft show {recipe}, then visgraft train {recipe}\n"
    )
    loaded = load_recipe(recipe)
    assert (loaded.model.vision, loaded.model.image_size) == ("starter:vision", 128)
    assert loaded.train.language == "lora"
    assert len(open_sources(loaded.data.train)) + len(open_sources(loaded.data.validation, key="validation")) == 60
    assert loaded.data.validation[0].held_out == 0.05


def test_other_models_and_few_or_divided_images_are_written_as_they_are(visgraft: Visgraft, tmp_path: Path) -> None:
    photos, recipe = save_data(tmp_path / "photos", num_images=5), tmp_path / "recipe.yaml"
    visgraft("init", "--data", photos, "-o", recipe, "--vision", "openai/clip", "--language", "facebook/opt")
    loaded = load_recipe(recipe)
    assert (loaded.model.vision, loaded.model.language) != (None, None)
    assert (loaded.model.vision, loaded.model.image_size) == ("openai/clip", None)
    assert loaded.data.validation == ()
    for split in ("train", "val"):
        save_data(tmp_path / "divided" / split, num_images=50)
    assert visgraft("init", "--data", tmp_path / "divided", "-o", recipe, "--force").status == 0
    assert [source.split for source in load_recipe(recipe).data.validation] == ["val"]
    assert load_recipe(recipe).data.train[0].held_out == 0


def test_a_small_folder_is_seen_more_often_than_a_large_one(visgraft: Visgraft, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    epochs = []
    for number in (10, 400):
        lines = [json.dumps({"file_name": "a.png", "text": "a cat on a sofa, " * number})] * number
        (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
        visgraft("init", "--data", tmp_path, "-o", tmp_path / "recipe.yaml", "--force")
        epochs.append(load_recipe(tmp_path / "recipe.yaml").train.epochs)
    assert epochs == [20, 1]


def test_a_recipe_that_is_there_is_not_written_over(visgraft: Visgraft, tmp_path: Path) -> None:
    photos, recipe = save_data(tmp_path / "photos", num_images=2), tmp_path / "recipe.yaml"
    recipe.write_text("mine")
    outcome = visgraft("init", "--data", photos, "-o", recipe)
    assert outcome.status == 2
    assert outcome.err == f"error: {recipe}: already there; name another with -o, or say --force\n"
    assert recipe.read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "no such file or folder"),
        ("empty", "no format that is known here"),
        ("bad", "image file is missing"),
    ],
)
def test_data_that_cannot_be_used_is_said(visgraft: Visgraft, tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a cat"}\n')
    outcome = visgraft("init", "--data", tmp_path / name, "-o", tmp_path / "recipe.yaml")
    assert (outcome.status, outcome.out) == (2, "")
    assert message in outcome.err
    assert not (tmp_path / "recipe.yaml").exists()


def test_captions_are_written_from_the_names_of_class_folders_and_said(visgraft: Visgraft, tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("golden_retriever", "cat"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / "data" / split / name / "0.png")
    recipe = tmp_path / "recipe.yaml"
    outcome = visgraft("init", "--data", tmp_path / "data", "-o", recipe)
    assert outcome.status == 0
    written = tmp_path / "recipe-captions" / "train.jsonl"
    assert f"{written}: 2 captions, made of the names of folders" in outcome.out
    assert not any(tmp_path.glob("data/**/*.jsonl")), "the user's own folder stays as it was"
    loaded = load_recipe(recipe)
    sources = open_sources(loaded.data.train)
    assert [sources[i].dialogs[0][0].answer for i in range(2)] == ["cat", "golden retriever"]
    assert sources[1].images == (tmp_path / "data" / "train" / "golden_retriever" / "0.png",)
    assert len(open_sources(loaded.data.validation, key="data.validation")) == 2
    again = visgraft("init", "--data", tmp_path / "data", "-o", tmp_path / "recipe.yml")
    assert again.status == 2 and "recipe-captions: already there; name another recipe with -o" in again.err


def test_a_table_that_is_not_utf_8_is_read_as_windows_wrote_it_and_that_is_said(
    visgraft: Visgraft, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "data" / "a.png")
    (tmp_path / "data" / "all.csv").write_bytes("file_name;caption\na.png;Café au lait\n".encode("cp1252"))
    outcome = visgraft("init", "--data", tmp_path / "data", "-o", tmp_path / "recipe.yaml")
    assert outcome.status == 0 and "not UTF-8 and are read as cp1252; look at the accents" in outcome.out
    [source] = load_recipe(tmp_path / "recipe.yaml").data.train
    assert source.options == {"encoding": "cp1252"}
    assert open_sources([source])[0].dialogs[0][0].answer == "Café au lait"
