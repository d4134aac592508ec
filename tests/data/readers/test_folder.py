import csv
import json
import pickle

import pytest

from visgraft.data.readers import folder
from visgraft.data.readers.tables import write_parquet
from visgraft.data.sample import Turn
from visgraft.errors import BadSampleError, DataError, MissingAssetError


def write(path, *rows):
    path.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    (path / "metadata.jsonl").write_bytes(b"\n".join(lines))
    return path


def test_every_form_of_line_becomes_dialogs(tmp_path):
    write(
        tmp_path,
        {"file_name": "a.png", "text": " a cat\n"},
        {"file_name": "b.png", "question": "What is it?", "answer": "A dog.", "references": ["dog"]},
        {"file_name": "sub/c.png", "prompt": "Where?", "answer": "Here."},
        {
            "file_names": ["1.png", "2.png"],
            "dialogs": [
                [{"prompt": "What?", "answer": "Rain."}, {"question": "Why?", "answer": "Clouds."}],
                [{"prompt": "", "answer": "a rainy day"}],
            ],
        },
    )
    source = folder.read(tmp_path, split="train")
    samples = [source[i] for i in range(len(source))]
    assert [sample.id for sample in samples] == ["a.png", "b.png", "sub/c.png", "1.png+2.png"]
    assert samples[2].images == (tmp_path / "sub" / "c.png",)
    assert samples[3].images == (tmp_path / "1.png", tmp_path / "2.png")
    assert [sample.dialogs for sample in samples] == [
        ((Turn("", "a cat"),),),
        ((Turn("What is it?", "A dog.", ("dog",)),),),
        ((Turn("Where?", "Here."),),),
        ((Turn("What?", "Rain."), Turn("Why?", "Clouds.")), (Turn("", "a rainy day"),)),
    ]


def test_lines_about_the_same_image_are_gathered_in_order(tmp_path):
    write(
        tmp_path,
        {"file_name": "a.png", "text": "one"},
        {"file_name": "b.png", "text": "two"},
        b"",
        {"file_name": "a.png", "text": "three"},
        {"file_names": [], "question": "Q", "answer": "no image"},
        {"file_names": [], "question": "Q", "answer": "no image either"},
    )
    source = folder.read(tmp_path, split="train")
    texts = [[dialog[0].answer for dialog in source[i].dialogs] for i in range(len(source))]
    assert texts == [["one", "three"], ["two"], ["no image"], ["no image either"]]
    assert source.where(0) == "metadata.jsonl line 1, 4" and source[3].id == "line 6"


BAD_LINES = {
    b"{oops": "line is not JSON",
    b"\xff\xfe": "line is not UTF-8; set the source's encoding",
    b"[" * 100_000: "line is not JSON",
    b"[1]": "line is not a JSON object",
    b'{"text": "x"}': "caption has no image (columns: text)",
    b'{"question": "Q", "answer": "A"}': "line lacks file_name or file_names",
    b'{"foto": "a.png", "text": "x"}': "row has no image, but its column foto looks like one; set columns: {image: f",
    b'{"file_name": 3, "text": "x"}': "line lacks file_name or file_names",
    b'{"file_names": ["a.png", 3], "text": "x"}': "line lacks file_name or file_names",
    b'{"file_name": "a.png"}': "row has no text, question and answer, dialogs or messages",
    b'{"file_name": "a.png", "question": "x"}': "row has no text, question and answer",
    b'{"file_name": "a.png", "text": NaN}': "row has no text, question and answer",
    b'{"file_name": "a.png", "text": " "}': "answer is empty",
    b'{"file_name": "a.png", "question": 1, "answer": "x"}': "prompt is not a string",
    b'{"file_name": "a.png", "text": "x", "references": 5}': "references are not a list of strings",
    b'{"file_name": "a.png", "dialogs": []}': "row has no texts",
    b'{"file_name": "a.png", "dialogs": [[]]}': "dialog is not a list of turns",
    b'{"file_name": "a.png", "dialogs": ["x"]}': "dialog is not a list of turns",
    b'{"file_name": "a.png", "dialogs": [["x"]]}': "turn lacks prompt or answer",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_bad_line_is_a_bad_sample_and_its_image_keeps_the_good_ones(tmp_path, line):
    write(tmp_path, {"file_name": "a.png", "text": "one"}, line, {"file_name": "a.png", "text": "two"})
    source = folder.read(tmp_path, split="train")
    assert len(source) == 2 and len(source[0].dialogs) == 2
    with pytest.raises(BadSampleError) as caught:
        source[1]
    assert str(caught.value).startswith(BAD_LINES[line]) and source.where(1) == "metadata.jsonl line 2"


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path):
    (tmp_path / "metadata.jsonl").write_bytes(
        b'\xef\xbb\xbf{"file_name": "a.png", "text": "caf\xc3\xa9"}\r\n\r\n{"file_name": "b.png", "text": "x"}\r\n'
    )
    source = folder.read(tmp_path, split="train")
    assert [source[i].dialogs[0][0].answer for i in range(len(source))] == ["café", "x"]


def test_a_split_is_a_folder_of_its_own(tmp_path):
    write(tmp_path / "train", {"file_name": "a.png", "text": "one"})
    write(tmp_path / "val", {"file_name": "b.png", "text": "two"})
    assert folder.read(tmp_path, split="val")[0].images == (tmp_path / "val" / "b.png",)
    assert folder.read(tmp_path, split="train")[0].id == "a.png"


def test_one_file_is_not_handed_out_as_two_splits(tmp_path):
    write(tmp_path, {"file_name": "a.png", "text": "one"})
    with pytest.raises(DataError, match=r"got 'val', but .* has no folder val/ .* make a folder for each split"):
        folder.read(tmp_path, split="val")


def test_a_folder_without_metadata_is_refused(tmp_path):
    with pytest.raises(MissingAssetError, match=r"there is no metadata.jsonl in .*; write one with a line like"):
        folder.read(tmp_path, split="train")
    with pytest.raises(MissingAssetError, match=r"path: not set; name the folder that holds metadata.jsonl"):
        folder.read(None, split="train")
    write(tmp_path, b"\n\n")
    with pytest.raises(DataError, match="holds no samples"):
        folder.read(tmp_path, split="train")


def test_only_places_in_the_file_travel_to_a_worker(tmp_path):
    write(tmp_path, *({"file_name": f"{i}.png", "text": "x" * 1000} for i in range(200)))
    source = folder.read(tmp_path, split="train")
    assert len(pickle.dumps(source)) < 60_000
    assert pickle.loads(pickle.dumps(source))[150] == source[150]


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.tsv", "metadata.parquet"])
def test_a_table_says_the_same_as_json_lines(tmp_path, name):
    rows = [
        {"file_name": "a.png", "question": "What, exactly?", "answer": 'A "cat"\non a sofa.'},
        {"file_name": "b.png", "question": "Who?", "answer": "Me."},
        {"file_name": "a.png", "question": "Where?", "answer": "Here."},
        {"file_name": "a.png", "question": "Why?", "answer": ""},
    ]
    if name.endswith(".parquet"):
        write_parquet(tmp_path / name, rows)
    else:
        with (tmp_path / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t" if name.endswith("tsv") else ",")
            writer.writeheader()
            writer.writerows(rows)
    source = folder.read(tmp_path, split="train")
    assert [sample.images for sample in (source[0], source[1])] == [(tmp_path / "a.png",), (tmp_path / "b.png",)]
    assert source[0].dialogs == ((Turn("What, exactly?", 'A "cat"\non a sofa.'),), (Turn("Where?", "Here."),))
    assert source.num_dialogs.tolist() == [2, 1, 0]
    assert source.where(0) == (f"{name} row 0, 2" if "parquet" in name else f"{name} line 2, 5")
    with pytest.raises(BadSampleError, match="answer is empty"):
        source[2]


def test_images_with_a_text_beside_each_are_captions(tmp_path):
    for name in ("a.png", "sub/b.JPG", "sub/c.png", "d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a.txt").write_text("a cat, on a sofa\n")
    (tmp_path / "sub" / "b.caption").write_bytes("Café".encode("cp1252"))
    (tmp_path / "sub" / "c.txt").write_text("")
    (tmp_path / "README.txt").write_text("not a caption")
    source = pickle.loads(pickle.dumps(folder.read(tmp_path, split="train")))
    assert source[0].dialogs == ((Turn("", "a cat, on a sofa"),),) and source[0].images == (tmp_path / "a.png",)
    reasons = {}
    for index in range(1, len(source)):
        with pytest.raises(BadSampleError) as caught:
            source[index]
        reasons[source.where(index).split(" ")[-1]] = str(caught.value)
    assert reasons == {
        "d.png": "image has no text beside it",
        "sub/b.JPG": "text file is not UTF-8; set the source's encoding (encoding: cp1252, say)",
        "sub/c.png": "answer is empty",
    }
    assert folder.read(tmp_path, split="train", encoding="cp1252")[2].dialogs == ((Turn("", "Café"),),)
    before = source.fingerprint
    (tmp_path / "a.txt").write_text("another cat")
    assert folder.read(tmp_path, split="train").fingerprint != before


def test_the_image_column_of_a_metadata_file_may_have_any_usual_name(tmp_path):
    (tmp_path / "metadata.csv").write_text("Image;Caption\na.png;a cat\n")
    assert folder.read(tmp_path, split="train")[0].images == (tmp_path / "a.png",)


def test_parts_of_a_split_in_folders_of_their_own_are_two_sources(tmp_path):
    for split in ("train", "val"):
        write(tmp_path / split, {"file_name": "a.png", "text": split})
    with pytest.raises(DataError, match=r"got 'train\+val', whose parts lie in folders of their own; make a source of"):
        folder.read(tmp_path, split="train+val")


def test_columns_of_other_names_are_mapped(tmp_path):
    (tmp_path / "metadata.csv").write_text("foto,texto\ntrain/a.png,a cat\nval/b.png,a dog\n")
    options = {"columns": {"image": "foto", "caption": "texto"}}
    assert folder.read(tmp_path, split="train", **options)[0].dialogs == ((Turn("", "a cat"),),)
    assert folder.read(tmp_path, split="val", **options)[0].images == (tmp_path / "val" / "b.png",)
