import json

import pytest

from visgraft.data.readers import coco
from visgraft.data.sample import Turn
from visgraft.errors import BadSampleError, DataError, MissingAssetError

CONTENT = {
    "info": {"year": 2017},
    "licenses": [],
    "images": [
        {"id": 9, "file_name": "000000000009.jpg", "height": 4, "width": 4, "license": 1},
        {"id": 25, "file_name": "000000000025.jpg", "height": 4, "width": 4, "license": 1},
        {"id": 30, "file_name": "000000000030.jpg", "height": 4, "width": 4, "license": 1},
    ],
    "annotations": [
        {"id": 1, "image_id": 25, "caption": "A giraffe. "},
        {"id": 2, "image_id": 9, "caption": "A plate of food."},
        {"id": 3, "image_id": 25, "caption": "Two giraffes\n"},
    ],
}


@pytest.fixture
def root(tmp_path):
    write(tmp_path / "annotations" / "captions_val2017.json", CONTENT)
    add_images(tmp_path / "val2017")
    return tmp_path


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def add_images(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for image in CONTENT["images"]:
        (folder / image["file_name"]).touch()
    return folder


def test_all_captions_of_an_image_are_dialogs_of_one_sample(root):
    source = coco.read(root, split="val")
    assert len(source) == 2  # the third image has no caption
    assert source[0].id == "9" and source[0].dialogs == ((Turn("", "A plate of food."),),)
    assert source[1].dialogs == ((Turn("", "A giraffe."),), (Turn("", "Two giraffes"),))
    assert source[1].images == (root / "val2017" / "000000000025.jpg",)
    assert source.where(1) == "captions_val2017.json image 25"


def test_the_option_prompt_stands_in_front_of_every_caption(root):
    source = coco.read(root, split="validation", prompt="Describe it.")
    assert source[1].dialogs[1] == (Turn("Describe it.", "Two giraffes"),)


@pytest.mark.parametrize("place", ["val2014", "images/val2014", "images", "."])
def test_images_are_found_in_the_usual_places(tmp_path, place):
    write(tmp_path / "annotations" / "captions_val2014.json", CONTENT)
    folder = add_images(tmp_path / place)
    assert coco.read(tmp_path, split="val")[0].images[0].resolve() == folder.resolve() / "000000000009.jpg"


def test_the_path_may_be_a_captions_file_with_its_images_near_by(tmp_path):
    captions = write(tmp_path / "mine.json", CONTENT)
    photos = add_images(tmp_path / "photos")
    for images in ("photos", str(photos)):
        assert coco.read(captions, split="train", images=images)[0].images == (photos / "000000000009.jpg",)
    add_images(tmp_path)
    assert coco.read(captions, split="train")[0].images == (tmp_path / "000000000009.jpg",)


def test_bad_entries_are_bad_samples_and_the_others_stay(root):
    broken = {
        "images": [*CONTENT["images"], {"id": 77}],
        "annotations": [
            *CONTENT["annotations"],
            {"image_id": 9, "caption": " "},
            {"image_id": 9, "caption": None},
            {"image_id": 404, "caption": "A ghost."},
            {"image_id": 9},
            "nothing",
            {"image_id": [9], "caption": "A list."},
        ],
    }
    write(root / "annotations" / "captions_val2017.json", broken)
    source = coco.read(root, split="val")
    assert len(source[0].dialogs) == 1 and len(source[1].dialogs) == 2
    found = []
    for index in range(2, len(source)):
        with pytest.raises(BadSampleError) as caught:
            source[index]
        found.append((source.where(index).removeprefix("captions_val2017.json "), str(caught.value)))
    assert found == [
        ("images[3]", "image entry lacks id or file_name"),
        ("annotations[3]", "answer is empty"),
        ("annotations[4]", "answer is not a string"),
        ("annotations[5]", "caption of an image that is not listed"),
        ("annotations[6]", "caption entry lacks image_id or caption"),
        ("annotations[7]", "caption entry lacks image_id or caption"),
        ("annotations[8]", "caption entry lacks image_id or caption"),
    ]


def test_a_missing_split_names_what_is_there(root):
    with pytest.raises(MissingAssetError, match=r"no captions file for split 'train' .* found captions_val2017\.json"):
        coco.read(root, split="train")
    with pytest.raises(MissingAssetError, match="found none"):
        coco.read(root / "nowhere", split="train")
    with pytest.raises(MissingAssetError, match="path: not set; name the folder that holds annotations"):
        coco.read(None, split="train")


def test_missing_images_name_the_folders_that_were_tried(tmp_path):
    write(tmp_path / "annotations" / "captions_val2017.json", CONTENT)
    with pytest.raises(
        MissingAssetError, match=r"looked for 000000000009\.jpg in .*val2017.*; set images to their fol"
    ):
        coco.read(tmp_path, split="val")


def test_one_missing_image_is_no_missing_folder(root):
    (root / "val2017" / "000000000009.jpg").unlink()
    assert len(coco.read(root, split="val")) == 2


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "is not JSON"),
        ("[]", "is not a COCO captions file"),
        ('{"images": []}', "is not a COCO captions file"),
        ('{"images": [], "annotations": []}', "holds no captions"),
    ],
)
def test_a_file_of_another_format_is_refused(root, text, message):
    (root / "annotations" / "captions_val2017.json").write_text(text)
    with pytest.raises(DataError, match=message):
        coco.read(root, split="val")


def test_a_file_with_bad_entries_alone_still_opens(root):
    write(
        root / "annotations" / "captions_val2017.json", {"images": [], "annotations": [{"image_id": 1, "caption": "x"}]}
    )
    source = coco.read(root, split="val")
    with pytest.raises(BadSampleError, match="caption of an image that is not listed"):
        source[0]


def test_an_image_id_with_two_files_is_refused_by_name(root):
    doubled = {**CONTENT, "images": [*CONTENT["images"], {"id": 25, "file_name": "other.jpg"}]}
    write(root / "annotations" / "captions_val2017.json", doubled)
    with pytest.raises(DataError, match=r"image id 25 twice, with the files 000000000025\.jpg and other\.jpg, so that"):
        coco.read(root, split="val")
    same = {**CONTENT, "images": [*CONTENT["images"], CONTENT["images"][0]]}
    write(root / "annotations" / "captions_val2017.json", same)
    assert len(coco.read(root, split="val")) == 2  # listed twice and the same each time is harmless


def test_true_is_no_image_id(root):
    broken = {"images": [*CONTENT["images"], {"id": True, "file_name": "x.jpg"}, {"id": 1, "file_name": "y.jpg"}]}
    write(
        root / "annotations" / "captions_val2017.json",
        {**broken, "annotations": [*CONTENT["annotations"], {"image_id": True, "caption": "not of y.jpg"}]},
    )
    source = coco.read(root, split="val")
    reasons = []
    for index in (2, 3):
        with pytest.raises(BadSampleError) as caught:
            source[index]
        reasons.append(str(caught.value))
    assert reasons == ["image entry lacks id or file_name", "caption of an image that is not listed"]


def test_captions_of_another_encoding_are_read_where_it_is_named(root):
    text = json.dumps({**CONTENT, "annotations": [{"image_id": 9, "caption": "Café"}]}, ensure_ascii=False)
    (root / "annotations" / "captions_val2017.json").write_bytes(text.encode("cp1252"))
    with pytest.raises(DataError, match="the file is not UTF-8; set the source's encoding"):
        coco.read(root, split="val")
    assert coco.read(root, split="val", encoding="cp1252")[0].dialogs == ((Turn("", "Café"),),)
