import json
from io import BytesIO

import pytest
from PIL import Image

from visgraft.config import DataSettings, SourceSettings
from visgraft.data import prepare as module
from visgraft.data.images.opening import open_image
from visgraft.data.prepare import prepare
from visgraft.data.sample import Sample, Turn
from visgraft.data.sources import open_sources
from visgraft.errors import ConfigError, DataError


@pytest.fixture
def rows(tmp_path):
    """Ten texts about three different pictures, under five names and inlined, and one frame of a folder of frames."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(5):
        Image.new("RGB", (8, 8), (number % 3, 0, 0)).save(folder / f"{number}.png")
    (folder / "clip").mkdir()
    Image.new("RGB", (8, 8), (9, 0, 0)).save(folder / "clip" / "0.png")
    rows = [{"image": f"{i % 5}.png", "question": f"Q{i}", "answer": f"A{i}", "references": ["R"]} for i in range(9)]
    rows += [
        {"image": "clip", "text": "a clip"},
        {"question": "Q", "answer": "no image"},
        {"image": "gone.png", "text": "x"},
    ]
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder / "rows.jsonl"


def opened(path):
    return open_sources([SourceSettings("parquet", path=str(path))], settings=DataSettings())


def texts(sources):
    return [[dialog[0].answer for dialog in sources[i].dialogs] for i in range(len(sources))]


def test_each_picture_is_written_once_with_all_its_texts(tmp_path, rows):
    shards = prepare(opened(rows), tmp_path / "out", split="train", fingerprint="x")
    assert [shard.name for shard in shards] == ["train-00000.parquet"]
    back = opened(tmp_path / "out")
    assert texts(back) == [["A0", "A5", "A3", "A8"], ["A1", "A6", "A4"], ["A2", "A7"], ["a clip"], ["no image"]]
    assert back[0].dialogs[0][0].references == ("R",) and back[0].id == "parquet:parquet:0"
    assert [open_image(back[i].images[0]).getpixel((0, 0))[0] for i in range(4)] == [0, 1, 2, 9]
    assert back[4].images == ()
    assert json.loads((tmp_path / "out" / "quarantine.jsonl").read_text())["reason"] == "image file is missing"


def test_an_interrupted_call_goes_on_with_the_shards_that_are_missing(tmp_path, rows, monkeypatch):
    monkeypatch.setattr(module, "SAMPLES_PER_SHARD", 2)
    out = tmp_path / "out"
    told = []
    whole = [path.read_bytes() for path in prepare(opened(rows), tmp_path / "whole", split="train", fingerprint="x")]
    written = []

    def stop_after_two(path, *args, **kwargs):
        if len(written) == 2:
            (path.parent / f".{path.name}.1234.new").write_bytes(b"cut off")
            raise KeyboardInterrupt
        written.append(path)
        return write_parquet(path, *args, **kwargs)

    write_parquet = module.write_parquet
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "write_parquet", stop_after_two)
        prepare(opened(rows), out, split="train", fingerprint="x")
    shards = prepare(opened(rows), out, split="train", fingerprint="x", progress=told.append)
    assert [path.read_bytes() for path in shards] == whole and sum(told) == 6 and len(shards) == 3
    assert sorted(path.name for path in (out / "data").iterdir()) == [path.name for path in shards]
    assert len((out / "quarantine.jsonl").read_text().splitlines()) == 1


def test_a_folder_of_something_else_is_left_alone(tmp_path, rows):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    with pytest.raises(ConfigError, match=r"is not empty and was not begun by `data prepare`"):
        prepare(opened(rows), tmp_path / "out", split="train", fingerprint="x")
    prepare(opened(rows), tmp_path / "new", split="train", fingerprint="x")
    prepare(opened(rows), tmp_path / "new", split="validation", fingerprint="y")
    with pytest.raises(ConfigError, match="was begun with other data for train"):
        prepare(opened(rows), tmp_path / "new", split="train", fingerprint="y")


def test_too_many_bad_samples_stop_it(tmp_path):
    (tmp_path / "rows.jsonl").write_text("{oops\n" * 7)
    with pytest.raises(DataError, match=r"line is not JSON \(6\)"):
        prepare(opened(tmp_path / "rows.jsonl"), tmp_path / "out", split="train", fingerprint="x")
    assert len((tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()) == 6


def test_what_a_kill_left_of_its_own_files_is_mended(tmp_path, rows, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".prepared.json.1234.new").write_text("{")  # killed before anything was there
    monkeypatch.setattr(module, "SAMPLES_PER_SHARD", 2)
    prepare(opened(rows), out, split="train", fingerprint="x")
    log = out / "quarantine.jsonl"
    [record] = log.read_text().splitlines()
    log.write_text(record[:20])  # killed in the middle of a line; the shard that it is of was not written
    (out / "data" / "train-00002.parquet").unlink()
    for _ in range(2):
        prepare(opened(rows), out, split="train", fingerprint="x")
        assert log.read_text() == f"{record}\n"
    assert not list(out.rglob(".*"))
    (out / "prepared.json").write_text("{")
    with pytest.raises(ConfigError, match=r"prepared\.json: is not JSON .*; name a new folder"):
        prepare(opened(rows), out, split="train", fingerprint="x")


def test_what_is_no_file_becomes_a_png_and_a_file_keeps_its_bytes():
    image = Image.new("RGB", (3, 2), (1, 2, 3))
    buffer = BytesIO()
    image.save(buffer, "JPEG")
    dialogs = [[Turn("", "a square")]]
    row = module._row(Sample([image, {"bytes": buffer.getvalue(), "path": None}], dialogs), max_pixels=100)
    png, jpeg = (stored["bytes"] for stored in row["images"])
    assert png.startswith(b"\x89PNG") and open_image(png).getpixel((0, 0)) == (1, 2, 3)
    assert jpeg == buffer.getvalue()


def test_words_that_look_like_placeholders_are_the_same_when_they_are_read_again(tmp_path):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "a.png")
    row = {"image": "a.png", "question": "<image>\nWhat is an <image> tag?", "answer": "<image>"}
    (tmp_path / "photos" / "rows.jsonl").write_text(json.dumps(row))
    before = opened(tmp_path / "photos" / "rows.jsonl")
    assert before[0].dialogs[0][0].prompt == "What is an <image> tag?"
    prepare(before, tmp_path / "out", split="train", fingerprint="x")
    assert opened(tmp_path / "out")[0].dialogs == before[0].dialogs
