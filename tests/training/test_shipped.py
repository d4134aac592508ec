"""The shipped recipes of single runs: each loads strictly, and COCO's trains and captions on tiny look-alikes."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import visgraft
from tests.experiment.look_alikes import save_model
from tests.training.tiny import COLOURS
from visgraft import Sample, Turn, train
from visgraft.config import load_recipe
from visgraft.inference import answer, load
from visgraft.runs import Run

RECIPES = Path(str(visgraft.__file__)).parent / "recipes"


def save_coco(folder: Path) -> str:
    """Save a few images with five captions each in COCO's layout of 2017."""
    (folder / "annotations").mkdir(parents=True)
    for split, number in (("train", 6), ("val", 3)):
        (folder / f"{split}2017").mkdir()
        content: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": []}
        for index in range(number):
            word, colour = list(COLOURS.items())[index % len(COLOURS)]
            name = f"{index:012}.jpg"
            Image.new("RGB", (48, 36), colour).save(folder / f"{split}2017" / name)
            content["images"].append({"id": index, "file_name": name})
            content["annotations"] += [{"image_id": index, "caption": f"a {word} cat, {n}"} for n in range(5)]
        (folder / "annotations" / f"captions_{split}2017.json").write_text(json.dumps(content))
    return str(folder)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_recipe_is_valid_and_its_first_lines_name_itself(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.data.train
    assert bool(recipe.data.validation) == (path.stem != "demo")
    assert f"visgraft train {path.stem}" in path.read_text()


def test_cocos_recipe_trains_and_captions_on_look_alikes(tmp_path: Path) -> None:
    shipped = load_recipe(RECIPES / "coco_opt.yaml")
    assert shipped.model.language is not None
    names = (shipped.model.vision, shipped.model.language.name)
    assert names == ("openai/clip-vit-base-patch16", "facebook/opt-350m")
    coco = save_coco(tmp_path / "coco")
    vision, language = (save_model(tmp_path, str(name), is_language=name is names[1]) for name in names)
    recipe = load_recipe(
        RECIPES / "coco_opt.yaml",
        overrides=[
            *(f"model.vision={vision}", f"model.language={language}", f"output={tmp_path / 'runs'}"),
            *(f"data.train.0.path={coco}", f"data.validation.0.path={coco}"),
            *("train.max_steps=2", "train.validate_every_steps=2", "train.text_tokens_per_step=80"),
            *("train.precision=fp32", "train.max_new_tokens=2"),
        ],
    )
    run = train(recipe)
    log = Run.open(run).read_metrics()
    assert [line["step"] for line in log if "loss" in line] == [1, 2]
    assert any("validation_loss" in line for line in log)
    model, processor = load(str(run))
    image = Path(coco) / "val2017" / f"{0:012}.jpg"
    assert len(answer(model, processor, [Sample(images=[image], dialogs=[[Turn("", "")]])], max_new_tokens=2)) == 1
