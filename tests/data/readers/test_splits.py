"""`split:` means one thing for every reader: names with their synonyms, slices as `datasets` cuts them, or an error."""

import io
import json
import tarfile

import datasets
import pytest
from datasets.arrow_reader import ReadInstruction

from visgraft.config import SourceSettings
from visgraft.data.readers.splits import parse_split, told_by
from visgraft.data.sources import open_sources
from visgraft.errors import DataError, VisgraftError

SLICES = [
    "[:10%]",
    "[4:]",
    "[:-3]",
    "[-5:]",
    "[10%:20%]",
    "[-25%:]",
    "[:150]",
    "[3:3]",
    "[:33%]",
    "[66%:]",
    "[7:2]",
    "",
]


@pytest.mark.parametrize("length", [0, 1, 3, 7, 99, 100, 101, 12_345])
@pytest.mark.parametrize("text", SLICES)
def test_a_slice_takes_what_datasets_takes(text, length):
    [part] = parse_split(f"train{text}", reader="x")
    [theirs] = ReadInstruction.from_spec(f"train{text}").to_absolute({"train": length})
    ours = part.bounds(length)
    assert (len(ours), ours.start if len(ours) else None) == (
        max(0, theirs.to - theirs.from_),
        theirs.from_ if theirs.to > theirs.from_ else None,
    )


def test_whole_percents_are_rounded_as_datasets_rounds_them():
    [part] = parse_split("train[10%:20%](pct1_dropremainder)", reader="x")
    [theirs] = ReadInstruction.from_spec("train[10%:20%](pct1_dropremainder)").to_absolute({"train": 1234})
    assert (part.bounds(1234).start, part.bounds(1234).stop) == (theirs.from_, theirs.to)


@pytest.mark.parametrize(
    "split", ["train[", "train[:10%", "train[a:b]", "train[10:20%]", "train[:200%]", "", "+", "tr ain"]
)
def test_what_is_no_split_is_refused_with_examples(split):
    with pytest.raises(DataError, match=r"x: split: got .*; write a name .*, a slice of it such as train\[:10%\]"):
        parse_split(split, reader="x")


@pytest.mark.parametrize(
    "path, split",
    [
        ("captions_val2017.json", "validation"),
        ("llava-train.json", "train"),
        ("test.csv", "test"),
        ("dev/rows.jsonl", "validation"),
        ("train_val.json", None),
        ("mix.json", None),
        ("training_notes/x.json", None),
    ],
)
def test_a_files_name_may_tell_its_split(tmp_path, path, split):
    assert told_by(tmp_path / path) == split


def caption(name):
    return {"image": f"{name}.png", "text": name}


def write_lines(path, names, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps({**caption(name), **more}) for name in names))


def write_tar(path, names):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, name in enumerate(names):
            for suffix, data in (("png", b"x"), ("txt", name.encode())):
                entry = tarfile.TarInfo(f"{number}.{suffix}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))


def one_file(folder):
    write_lines(folder / "mix.jsonl", "abcd")
    return folder / "mix.jsonl"


def files_by_split(folder):
    write_lines(folder / "train.jsonl", "abcd")
    write_lines(folder / "val.jsonl", "vw")
    return folder


def column_of_splits(folder):
    rows = [{**caption(name), "split": "train" if name in "abcd" else "val"} for name in "avbwcd"]
    (folder / "mix.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "mix.jsonl"


def keys_of_splits(folder):
    content = {"train": [caption(name) for name in "abcd"], "val": [caption(name) for name in "vw"]}
    (folder / "mix.json").write_text(json.dumps(content))
    return folder / "mix.json"


def one_saved(folder):
    datasets.Dataset.from_list([caption(name) for name in "abcd"]).save_to_disk(folder / "saved")
    return folder / "saved"


def saved_by_split(folder):
    for split, names in (("train", "abcd"), ("val", "vw")):
        datasets.Dataset.from_list([caption(name) for name in names]).save_to_disk(folder / "saved" / split)
    return folder / "saved"


def parquet_for_datasets(folder):
    for split, names in (("train", "abcd"), ("validation", "vw")):
        datasets.Dataset.from_list([caption(name) for name in names]).to_parquet(folder / f"{split}-0.parquet")
    return folder


def metadata_above(folder):
    rows = [{"file_name": f"{'train' if name in 'abcd' else 'val'}/{name}.png", "text": name} for name in "avbwcd"]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def texts_beside(folder):
    for split, names in (("train", "abcd"), ("val", "vw")):
        for name in names:
            (folder / split).mkdir(exist_ok=True)
            (folder / split / f"{name}.png").touch()
            (folder / split / f"{name}.txt").write_text(name)
    return folder


def tars_by_name(folder):
    write_tar(folder / "train-0.tar", "ab")
    write_tar(folder / "train-1.tar", "cd")
    write_tar(folder / "val-0.tar", "vw")
    return folder


def tars_by_folder(folder):
    write_tar(folder / "train" / "0.tar", "abcd")
    write_tar(folder / "val" / "0.tar", "vw")
    return folder


def plain_tars(folder):
    write_tar(folder / "0.tar", "abcd")
    return folder


def coco(folder):
    for split, names in (("train", "abcd"), ("val", "vw")):
        images = [{"id": number, "file_name": f"{name}.png"} for number, name in enumerate(names)]
        captions = [{"image_id": number, "caption": name} for number, name in enumerate(names)]
        content = {"images": images, "annotations": captions}
        (folder / f"captions_{split}2017.json").write_text(json.dumps(content))
    for name in "av":
        (folder / f"{name}.png").touch()
    return folder


def karpathy(folder):
    entries = [
        {"filename": f"{name}.png", "split": "train" if name in "abcd" else "val", "sentences": [{"raw": name}]}
        for name in "avbwcd"
    ]
    (folder / "dataset_coco.json").write_text(json.dumps({"images": entries}))
    for name in "abv":
        (folder / f"{name}.png").touch()
    return folder


def m3it(folder):
    for split, names in (("train", "abcd"), ("val", "vw")):
        rows = [{"instruction": "I", "inputs": "", "outputs": name, "image_base64_str": [name]} for name in names]
        path = folder / "viquae" / f"{split}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(map(json.dumps, rows)))
    return folder


UNDIVIDED = {one_file: "parquet", one_saved: "hf", plain_tars: "webdataset"}
DIVIDED = {
    **{
        files_by_split: "parquet",
        column_of_splits: "parquet",
        keys_of_splits: "parquet",
        saved_by_split: "hf",
        parquet_for_datasets: "hf",
    },
    **{metadata_above: "folder", texts_beside: "folder", tars_by_name: "webdataset", tars_by_folder: "webdataset"},
    **{coco: "coco", karpathy: "karpathy", m3it: "m3it"},
}


def answers(source, path, split):
    sources = open_sources([SourceSettings(source, path=str(path), split=split, group="none")])
    return "".join(sources[index].dialogs[0][0].answer for index in range(len(sources)))


@pytest.mark.parametrize("make", [*UNDIVIDED, *DIVIDED], ids=lambda make: make.__name__)
def test_train_and_its_slices_are_the_same_for_every_reader(tmp_path, make):
    source, path = (UNDIVIDED | DIVIDED)[make], make(tmp_path)
    expected = {"train": "abcd", "train[:50%]": "ab", "train[3:]": "d", "train[-2:]": "cd", "train[:1]+train[3:]": "ad"}
    assert {split: answers(source, path, split) for split in expected} == expected


@pytest.mark.parametrize("make", DIVIDED, ids=lambda make: make.__name__)
def test_the_names_of_validation_are_one_thing_for_every_reader(tmp_path, make):
    path = make(tmp_path)
    for split in ("validation", "val", "dev", "valid"):
        assert answers(DIVIDED[make], path, split) == "vw", split
    assert answers(DIVIDED[make], path, "train[:1]+val[1:]") == "aw"


@pytest.mark.parametrize("make", DIVIDED, ids=lambda make: make.__name__)
def test_a_split_that_is_not_there_is_an_error_that_lists_what_there_is(tmp_path, make):
    path = make(tmp_path)
    listed = {karpathy: "train, restval, val, test", m3it: "has no .*split"}.get(make, "train")
    with pytest.raises(VisgraftError, match=listed) as caught:
        answers(DIVIDED[make], path, "minitest")
    assert "minitest" in str(caught.value)


@pytest.mark.parametrize("make", UNDIVIDED, ids=lambda make: make.__name__)
@pytest.mark.parametrize("split", ["validation", "test", "train[:2]+test"])
def test_what_is_not_divided_is_not_handed_out_as_two_splits(tmp_path, make, split):
    with pytest.raises(DataError, match=r"split: got '(validation|test)', but .*(slices|slice)"):
        answers(UNDIVIDED[make], make(tmp_path), split)


def test_the_named_file_of_a_split_is_that_split(tmp_path):
    write_lines(tmp_path / "my_val.jsonl", "vw")
    assert answers("parquet", tmp_path / "my_val.jsonl", "validation") == "vw"
    assert answers("parquet", tmp_path / "my_val.jsonl", "train") == "vw"  # a file that is named is what was meant
    with pytest.raises(DataError, match=r"got 'test', but .*my_val\.jsonl is not divided"):
        answers("parquet", tmp_path / "my_val.jsonl", "test")


def test_how_rows_were_chosen_is_said(tmp_path):
    [opened] = open_sources([SourceSettings("parquet", path=str(column_of_splits(tmp_path)), split="val")]).opened
    assert opened.notes == ["2 of 6 rows are of split val, as the column split of mix.jsonl says"]
    (tmp_path / "photos").mkdir()
    [opened] = open_sources([SourceSettings("folder", path=str(metadata_above(tmp_path / "photos")))]).opened
    assert opened.notes == ["4 of 6 rows of metadata.jsonl are of split train, by their images' folder"]


def test_a_stream_cannot_be_sliced(tmp_path):
    write_tar(tmp_path / "train-0.tar", "ab")
    entry = SourceSettings("webdataset", path=str(tmp_path), split="train[:2]", options={"streaming": True})
    with pytest.raises(VisgraftError, match="a stream has no length and no slices"):
        open_sources([entry])
    datasets.Dataset.from_list([caption("a")]).to_parquet(tmp_path / "train-0.parquet")
    entry = SourceSettings("hf", path=str(tmp_path), split="train[:10%]", options={"streaming": True})
    with pytest.raises(VisgraftError, match="a stream's length is not known, so take one split of it"):
        open_sources([entry])


def test_tars_that_tell_no_split_are_of_train_beside_those_that_do(tmp_path):
    tars_by_name(tmp_path)
    write_tar(tmp_path / "more.tar", "x")
    assert sorted(answers("webdataset", tmp_path, "train")) == list("abcdx")
    assert answers("webdataset", tmp_path, "val") == "vw"
