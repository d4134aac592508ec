"""Every usual format is known by what lies in its folder, and what is found can be read."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from visgraft.config import DataSettings, SourceSettings
from visgraft.data.readers.detect import DetectedDataset, detect
from visgraft.data.sources import open_sources
from visgraft.errors import DataError, MissingAssetError

CAPTION = {"file_name": "a.png", "text": "a cat"}


def photo(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def first_answer(settings: SourceSettings) -> str:
    sample = open_sources([settings], settings=DataSettings())[0]
    return sample.dialogs[0][-1].answer


def check(found: DetectedDataset, source: str, *, train: str = "train", validation: str | None = None) -> None:
    assert (found.train.source, found.train.split) == (source, train)
    assert (None if found.validation is None else found.validation.split) == validation
    assert first_answer(found.train) == "a cat"
    assert found.validation is None or first_answer(found.validation) == "a cat"


def test_easy_vqa(tmp_path: Path) -> None:
    write(tmp_path / "train" / "questions.json", [["What?", "a cat", index] for index in range(8)])
    photo(tmp_path / "train" / "images" / "0.png")
    check(detect(tmp_path), "easy_vqa", validation="validation")


@pytest.mark.parametrize(
    "names", [["metadata.jsonl"], ["train/metadata.jsonl", "val/metadata.jsonl"], ["metadata.csv"]]
)
def test_a_folder_with_metadata(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        write(tmp_path / name, CAPTION if name.endswith("jsonl") else "file_name,text\na.png,a cat\n")
    check(detect(tmp_path), "folder", validation="val" if len(names) > 1 else None)
    if len(names) == 1:
        check(detect(tmp_path / names[0]), "folder")


@pytest.mark.parametrize(
    ("names", "train", "validation"),
    [
        (["captions_train2017.json", "captions_val2017.json"], "train", "val"),
        (["captions_val2014.json"], "val", None),
        (["captions_mine.json"], "train", None),
    ],
)
def test_coco_captions(tmp_path: Path, names: list[str], train: str, validation: str | None) -> None:
    content = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 1, "caption": "a cat"}]}
    for name in names:
        write(tmp_path / "annotations" / name, content)
    photo(tmp_path / "annotations" / "a.png")
    check(detect(tmp_path), "coco", train=train, validation=validation)
    check(detect(tmp_path / "annotations" / names[0]), "coco")


def test_karpathys_splits(tmp_path: Path) -> None:
    images = [{"filename": "a.png", "split": split, "sentences": [{"raw": "a cat"}]} for split in ("train", "val")]
    write(tmp_path / "dataset_coco.json", {"images": images})
    photo(tmp_path / "a.png")
    check(detect(tmp_path), "karpathy", validation="val")
    write(tmp_path / "dataset_coco.json", {"images": images[:1]})
    check(detect(tmp_path), "karpathy")


ROWS = {
    "llava": {"conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "a cat"}]},
    "messages": {"messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "a cat"}]},
    "texts": {"texts": [{"user": "What?", "assistant": "a cat"}]},
    "prompt_completion": {"prompt": "What?", "completion": "a cat"},
    "parquet": {"caption": "a cat"},
}


@pytest.mark.parametrize("reader", list(ROWS))
def test_rows_of_every_usual_form(tmp_path: Path, reader: str) -> None:
    row = {"image": "a.png", **ROWS[reader]}
    write(tmp_path / "data.json", [row])
    photo(tmp_path / "photos" / "a.png")
    found = detect(tmp_path)
    check(found, reader)
    assert found.train.options == {"images": str(tmp_path / "photos")}
    assert detect(tmp_path / "data.json").train == found.train
    write(tmp_path / "both" / "train.jsonl", row)
    write(tmp_path / "both" / "val.jsonl", row)
    photo(tmp_path / "both" / "a.png")
    found = detect(tmp_path / "both")
    check(found, reader, validation="validation")
    assert found.train.options == {}


def test_parquet_with_images_inside(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    table = pa.Table.from_pylist(
        [{"image": {"bytes": buffer.getvalue(), "path": None}, "question": "?", "answer": "a cat"}]
    )
    (tmp_path / "data").mkdir()
    pyarrow.parquet.write_table(table, tmp_path / "data" / "train-00000-of-00001.parquet")
    check(detect(tmp_path), "parquet")


def test_m3it_tasks(tmp_path: Path) -> None:
    row = {"instruction": "Say.", "inputs": "", "outputs": "a cat", "image_base64_str": []}
    write(tmp_path / "coco" / "train.jsonl", row)
    write(tmp_path / "coco" / "validation.jsonl", row)
    check(detect(tmp_path), "m3it", validation="validation")


def test_webdataset_shards(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0000.tar", "w") as tar:
        for name, content in (("0.png", b"x"), ("0.txt", b"a cat")):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    check(detect(tmp_path), "webdataset")
    check(detect(tmp_path / "0000.tar"), "webdataset")


def test_a_dataset_that_was_saved_to_disk(tmp_path: Path) -> None:
    part = datasets.Dataset.from_list([{"image": "a.png", "text": "a cat"}])
    part.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": part, "test": part, "val": part}).save_to_disk(tmp_path / "several")
    check(detect(tmp_path / "one"), "hf")
    check(detect(tmp_path / "several"), "hf", validation="val")


def test_what_no_reader_knows_is_said_with_what_is_there(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        photo(tmp_path / name)
    write(tmp_path / "notes.json", [{"nothing": 1}])
    with pytest.raises(
        DataError, match=r"no format that is known here; .*found 2 \.png, 1 \.json\. Write a metadata\.js"
    ):
        detect(tmp_path)
    with pytest.raises(
        MissingAssetError, match="no such file or folder; name the one that holds your images and texts"
    ):
        detect(tmp_path / "nowhere")


def test_images_with_a_text_beside_each(tmp_path: Path) -> None:
    for place in ("00000", "00001"):  # as img2dataset leaves them
        photo(tmp_path / place / "0.jpg")
        write(tmp_path / place / "0.txt", "a cat")
        write(tmp_path / place / "0.json", {"caption": "another", "url": "https://example.org/0.jpg"})
    check(detect(tmp_path), "folder")
    for split in ("train", "val"):  # as kohya's scripts read them
        photo(tmp_path / "kohya" / split / "10_cat" / "0.jpg")
        write(tmp_path / "kohya" / split / "10_cat" / "0.txt", "a cat")
    check(detect(tmp_path / "kohya"), "folder", validation="validation")


def test_class_folders_become_captions(tmp_path: Path) -> None:
    for name in ("golden_retriever", "cat"):
        photo(tmp_path / name / "0.png")
    found = detect(tmp_path)
    assert found.format == "folders of images whose names become captions (cat, golden retriever)"
    assert found.captions == {
        "train": [
            {"image": "cat/0.png", "text": "cat"},
            {"image": "golden_retriever/0.png", "text": "golden retriever"},
        ]
    }


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16-le"])
def test_tables_of_other_encodings_and_separators(tmp_path: Path, encoding: str) -> None:
    photo(tmp_path / "a.png")
    (tmp_path / "all.csv").write_bytes("file_name;caption\na.png;a cat\na.png;Café\n".encode(encoding))
    check(found := detect(tmp_path), "parquet")
    assert found.train.options == {"encoding": encoding}


def test_a_coco_or_llava_file_deep_inside(tmp_path: Path) -> None:
    photo(tmp_path / "coco" / "photos" / "all" / "a.png")
    content = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 1, "caption": "a cat"}]}
    write(tmp_path / "coco" / "labels" / "v2" / "mine_train.json", content)
    write(tmp_path / "coco" / "labels" / "v2" / "mine_val.json", content)
    check(found := detect(tmp_path / "coco"), "coco", validation="validation")
    assert found.train.options == {"images": str(tmp_path / "coco" / "photos" / "all")}
    photo(tmp_path / "llava" / "pictures" / "train2017" / "a.png")
    write(tmp_path / "llava" / "x" / "y" / "mix.json", [{"image": "train2017/a.png", **ROWS["llava"]}])
    check(found := detect(tmp_path / "llava"), "llava")
    assert found.train.options == {"images": str(tmp_path / "llava" / "pictures")}


def test_splits_saved_each_by_itself(tmp_path: Path) -> None:
    for split in ("train", "test", "validation"):
        datasets.Dataset.from_list([{"image": "a.png", "text": "a cat"}]).save_to_disk(tmp_path / split)
    check(detect(tmp_path), "hf", validation="validation")


def test_splits_inside_one_file_or_above_folders(tmp_path: Path) -> None:
    rows = [{"image": "a.png", "text": "a cat", "split": split} for split in ("train", "val", "test")]
    write(tmp_path / "one" / "all.jsonl", "\n".join(map(json.dumps, rows)))
    check(detect(tmp_path / "one"), "parquet", validation="val")
    lines = [{"file_name": f"{split}/a.png", "text": "a cat"} for split in ("train", "val")]
    write(tmp_path / "two" / "metadata.jsonl", "\n".join(map(json.dumps, lines)))
    check(detect(tmp_path / "two"), "folder", validation="validation")


@pytest.mark.parametrize("names", [["train-0.tar", "val-0.tar"], ["train/0.tar", "val/0.tar"]])
def test_shards_that_tell_their_split(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        with tarfile.open(tmp_path / name, "w") as tar:
            for member, content in (("0.png", b"x"), ("0.txt", b"a cat")):
                entry = tarfile.TarInfo(member)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    check(detect(tmp_path), "webdataset", validation="validation")
