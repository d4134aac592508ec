import json
import pickle

import pytest

from visgraft.data.readers import karpathy
from visgraft.data.sample import Turn
from visgraft.errors import BadSampleError, DataError, MissingAssetError


def entry(number, split, *captions, folder="val2014"):
    return {
        "filepath": folder,
        "sentids": [1],
        "filename": f"COCO_{number}.jpg",
        "imgid": number,
        "split": split,
        "sentences": [{"tokens": text.split(), "raw": text, "imgid": number, "sentid": 1} for text in captions],
        "cocoid": 100 + number,
    }


@pytest.fixture
def coco(tmp_path):
    entries = [
        entry(0, "test", "a cat", "cats "),
        entry(1, "train", "a dog"),
        entry(2, "restval", 'a "bird" [sic]', folder="train2014"),
        entry(3, "train"),
        {"filename": "x.jpg", "sentences": []},
        entry(4, "val", "a cow"),
    ]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": entries, "dataset": "coco"}))
    (tmp_path / "images" / "val2014").mkdir(parents=True)
    (tmp_path / "images" / "val2014" / "COCO_1.jpg").touch()
    (tmp_path / "images" / "val2014" / "COCO_0.jpg").touch()
    (tmp_path / "images" / "val2014" / "COCO_4.jpg").touch()
    return tmp_path


def test_the_images_of_a_split_come_with_all_their_captions(coco):
    source = pickle.loads(pickle.dumps(karpathy.read(coco, split="test")))
    assert source[0].images == (coco / "images" / "val2014" / "COCO_0.jpg",) and source[0].id == "100"
    assert source[0].dialogs == ((Turn("", "a cat"),), (Turn("", "cats"),))
    assert source.where(0) == "dataset_coco.json entry 0"
    assert karpathy.read(coco / "dataset_coco.json", split="validation", prompt="Describe.")[1].dialogs == (
        (Turn("Describe.", "a cow"),),
    )


def test_splits_are_joined_by_a_plus(coco):
    source = karpathy.read(coco, split="train+restval")
    assert len(source) == 4
    assert source[1].images == (coco / "images" / "train2014" / "COCO_2.jpg",)
    reasons = []
    for index in (2, 3):
        with pytest.raises(BadSampleError) as caught:
            source[index]
        reasons.append(str(caught.value))
    assert reasons == ["image has no captions", "image entry lacks filename or split"]


def test_what_cannot_be_read_says_why(coco, tmp_path):
    with pytest.raises(DataError, match="karpathy: split: got 'minival', allowed are train, restval, val, test"):
        karpathy.read(coco, split="minival")
    with pytest.raises(MissingAssetError, match="karpathy: path: not set"):
        karpathy.read(None, split="train")
    with pytest.raises(MissingAssetError, match=r"there is no dataset_coco.json in"):
        karpathy.read(coco / "images", split="train")
    with pytest.raises(MissingAssetError, match=r"looked for val2014/COCO_0.jpg in .*nowhere; set images"):
        karpathy.read(coco, split="test", images="nowhere")
    (coco / "dataset_coco.json").write_text(json.dumps({"images": [entry(0, "test", "a")]}))
    with pytest.raises(DataError, match="holds no image of split 'train'"):
        karpathy.read(coco, split="train")
