"""What is labelled: folders, recipes, sources, files and shards by a pattern; and what a newcomer gets wrong."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from tests.annotate.made import save_tars, write_lines
from visgraft.annotate.collection import Collection, open_collection
from visgraft.data.readers.tables import write_parquet
from visgraft.errors import BadSampleError, ConfigError, DataError, MissingAssetError


def names_of(collection: Collection) -> list[list[str | None]]:
    opened = [shard.open() for shard in collection.shards]
    return [[source[index].id for index in range(len(source))] for source in opened]


def test_a_folder_is_all_the_image_files_in_it_and_below_in_the_order_of_names(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / ".hidden").mkdir()
    for target in ("b.PNG", "old/a.png", ".hidden/c.png", ".d.png"):
        shutil.copy(photos / "0.png", tmp_path / target)
    (tmp_path / "notes.txt").write_text("nothing to see")
    collection = open_collection(str(tmp_path), with_texts=False)
    assert names_of(collection) == [["b.PNG", "old/a.png"]]
    assert names_of(open_collection(str(tmp_path), with_texts=False, limit=1)) == [["b.PNG", "old/a.png"]]
    assert open_collection(str(tmp_path), with_texts=False, limit=1).num_rows == 1


def test_files_and_patterns_of_images_are_taken_as_they_are_named(photos: Path) -> None:
    assert names_of(open_collection(str(photos / "0.png"), with_texts=False)) == [["0.png"]]
    assert names_of(open_collection(str(photos / "[01].png"), with_texts=False)) == [["0.png", "1.png"]]


@pytest.mark.parametrize("named", ["folder", "pattern", "range", "source"])
def test_tars_are_shards_of_their_own_which_nobody_has_opened_yet(photos: Path, tmp_path: Path, named: str) -> None:
    pattern = save_tars(tmp_path, photos, number=5, per_tar=2)
    data = {
        "folder": str(tmp_path), "pattern": pattern, "range": f"{tmp_path}/part-{{000..002}}.tar",
        "source": f"webdataset:{tmp_path}",
    }[named]  # fmt: skip
    collection = open_collection(data, with_texts=False)
    assert [shard.name for shard in collection.shards] == ["part-000.tar", "part-001.tar", "part-002.tar"]
    assert (collection.num_rows, collection.shards[0].num_rows) == (None, None)
    assert names_of(collection) == [["000", "001"], ["002", "003"], ["004"]]


def test_tables_without_texts_are_read_for_their_images(photos: Path, tmp_path: Path) -> None:
    for number in range(2):
        image = {"bytes": (photos / f"{number}.png").read_bytes(), "path": None}
        write_parquet(tmp_path / f"part-{number}.parquet", [{"image": image, "id": str(number)}])
    for data in (tmp_path, tmp_path / "part-*.parquet"):
        assert names_of(open_collection(str(data), with_texts=False)) == [["0", "1"]]
    [shard] = open_collection(str(tmp_path / "part-1.parquet"), with_texts=False).shards
    assert shard.open()[0].images[0]["bytes"] == (photos / "1.png").read_bytes()  # type: ignore[index,call-overload]
    with pytest.raises(DataError):
        open_collection(str(tmp_path), with_texts=True)


def test_rows_about_one_image_stay_rows_of_their_own_and_a_bad_one_is_bad(photos: Path, tmp_path: Path) -> None:
    rows = [{"image": "0.png", "question": text, "answer": "A"} for text in ("Q", "R")]
    path = write_lines(tmp_path / "train.jsonl", [*rows, {"image": "0.png", "question": "S"}])
    [shard] = open_collection(f"parquet:{path}", with_texts=True).shards
    source = shard.open()
    assert [source[index].dialogs[0][0].prompt for index in range(2)] == ["Q", "R"]
    with pytest.raises(BadSampleError, match="row has no text"):
        source[2]
    [shard] = open_collection(f"parquet:{path}", with_texts=False).shards
    assert shard.num_rows == 3
    assert shard.open()[2].dialogs == ()


def test_a_recipe_names_sources_and_one_of_its_lists_is_taken(photos: Path, tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [{"image": str(photos / "0.png"), "text": "a cat"}])
    write_lines(tmp_path / "b.jsonl", [{"image": str(photos / "1.png"), "text": "a dog"}] * 3)
    entries = [{"source": "parquet", "path": "a.jsonl"}, {"source": "parquet", "path": "b.jsonl", "limit": 2}]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"data": {"train": entries, "test": entries[:1]}}))
    collection = open_collection(str(recipe), with_texts=True)
    assert [(shard.source, shard.num_rows) for shard in collection.shards] == [("parquet", 1), ("parquet-2", 2)]
    assert open_collection(str(recipe), with_texts=True, part="test").num_rows == 1
    with pytest.raises(ConfigError, match=r"data\.validation: missing; name another list with --part"):
        open_collection(str(recipe), with_texts=True, part="validation")
    with pytest.raises(ConfigError, match="--split: got 'val' for a recipe, whose sources name their own"):
        open_collection(str(recipe), with_texts=True, split="val")
    recipe.write_text(yaml.safe_dump({"data": {"train": [{"source": "hf", "path": "x", "streaming": True}]}}))
    with pytest.raises(ConfigError, match=r"data\.train\.0\.streaming: true, but rows are labelled by their number"):
        open_collection(str(recipe), with_texts=True)


def test_a_source_by_its_reader_is_read_in_the_split_that_is_named(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    images = [{"id": number, "file_name": f"{number}.png"} for number in range(2)]
    captions = [{"id": number, "image_id": number, "caption": "a cat"} for number in range(2)]
    for split in ("train", "val"):
        (tmp_path / f"{split}2017").mkdir()
        for image in images:
            shutil.copy(photos / str(image["file_name"]), tmp_path / f"{split}2017")
        number = 2 if split == "train" else 1
        values = {"images": images[:number], "annotations": captions[:number]}
        (tmp_path / "annotations" / f"captions_{split}2017.json").write_text(json.dumps(values))
    assert open_collection(f"coco:{tmp_path}", with_texts=True).num_rows == 2
    assert open_collection(f"coco:{tmp_path}", with_texts=True, split="val").num_rows == 1
    assert open_collection(str(tmp_path), with_texts=True).shards[0].source == "coco"
    assert open_collection(str(tmp_path), with_texts=False).num_rows == 4, "every image file"


# --- What a newcomer gets wrong


def test_what_is_not_there_is_said_with_what_there_may_be(tmp_path: Path) -> None:
    with pytest.raises(MissingAssetError, match="nowhere: no such file or folder; need a folder of images, a recipe"):
        open_collection(str(tmp_path / "nowhere"), with_texts=False)
    with pytest.raises(MissingAssetError, match="nothing matches"):
        open_collection(str(tmp_path / "*.tar"), with_texts=False)


@pytest.mark.parametrize("with_texts", [True, False])
def test_an_empty_folder_is_said(tmp_path: Path, with_texts: bool) -> None:
    with pytest.raises(DataError, match="the folder is empty; need a folder of images"):
        open_collection(str(tmp_path), with_texts=with_texts)


def test_images_without_dialogs_need_a_prompt(photos: Path, tmp_path: Path) -> None:
    for data in (photos, photos / "0.png", photos / "*.png"):
        with pytest.raises(DataError, match='nothing is asked about them; give --prompt "What is in it'):
            open_collection(str(data), with_texts=True)
    for name in ("cats", "dogs"):
        shutil.copytree(photos, tmp_path / name)
    with pytest.raises(DataError, match="nothing is asked about them"):  # folders called like what they show
        open_collection(str(tmp_path), with_texts=True)


def test_files_of_another_kind_are_named(tmp_path: Path) -> None:
    for name in ("a.doc", "b.doc"):
        (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match=r"a\.doc is of another kind than can be labelled"):
        open_collection(str(tmp_path / "*.doc"), with_texts=False)
