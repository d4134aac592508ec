import base64
import json
import pickle

import numpy as np
import pytest

from visgraft import disk_cache as kept
from visgraft.data.grouping import Grouped, RowSource
from visgraft.data.readers.rows import JsonLinesRows, open_rows
from visgraft.data.readers.text_files import TextFile
from visgraft.data.sample import Turn
from visgraft.errors import BadSampleError


def source(tmp_path, *rows):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RowSource(open_rows([tmp_path / "a.jsonl"]), folder=tmp_path)


def texts(grouped):
    found = []
    for index in range(len(grouped)):
        try:
            found.append([dialog[0].answer for dialog in grouped[index].dialogs])
        except BadSampleError as error:
            found.append(str(error))
    return found


def test_texts_about_one_image_are_gathered_in_order_of_first_appearance(tmp_path):
    rows = [{"image": name, "text": f"{name}{i}"} for i, name in enumerate("abacab")]
    grouped = pickle.loads(pickle.dumps(Grouped(source(tmp_path, *rows), by_content=False)))
    assert texts(grouped) == [["a0", "a2", "a4"], ["b1", "b5"], ["c3"]]
    assert grouped[1].images == (tmp_path / "b",) and grouped.num_dialogs.tolist() == [3, 2, 1]
    assert grouped.where(1) == "a.jsonl line 2, a.jsonl line 6"
    assert grouped.members(0).tolist() == [0, 2, 4]


def test_bad_rows_and_rows_without_an_image_stand_alone(tmp_path):
    x, y = ({"question": "Q", "answer": answer} for answer in "xy")
    rows = [{"image": "a", "text": "1"}, x, {"image": "a", "text": ""}, y, {"image": "a"}]
    grouped = Grouped(source(tmp_path, *rows, {"image": "a", "text": "2"}), by_content=False)
    no_text = "row has no text, question and answer, dialogs or messages (columns: image)"
    assert texts(grouped) == [["1", "2"], ["x"], "answer is empty", ["y"], no_text]
    assert grouped.num_dialogs.tolist() == [2, 1, 0, 1, 0]


def test_inlined_images_are_gathered_by_what_they_hold(tmp_path):
    def text_of(data):
        return {"base64": base64.b64encode(data).decode()}

    one, two = text_of(b"one\0"), text_of(b"one")
    rows = [{"image": image, "text": str(i)} for i, image in enumerate([one, two, one, text_of(b"one\0")])]
    assert texts(Grouped(source(tmp_path, *rows), by_content=False)) == [["0", "2", "3"], ["1"]]


def test_several_images_are_the_same_only_in_the_same_order(tmp_path):
    rows = [{"images": list(names), "text": names} for names in ("ab", "ba", "ab", "a")]
    assert texts(Grouped(source(tmp_path, *rows), by_content=False)) == [["ab", "ab"], ["ba"], ["a"]]


def test_files_of_equal_content_are_gathered_when_asked(tmp_path):
    for name, data in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(data)
    rows = [{"image": name, "text": name} for name in "abcx"]
    grouped = Grouped(source(tmp_path, *rows), by_content=True)
    assert texts(grouped) == [["a", "b"], ["c"], ["x"]]  # the missing one is met when it is opened


def test_an_empty_source_has_no_groups(tmp_path):
    assert len(Grouped(source(tmp_path), by_content=False)) == 0


def test_multi_turn_dialogs_stay_whole(tmp_path):
    turns = [{"prompt": "Q", "answer": "A"}, {"prompt": "R", "answer": "B"}]
    grouped = Grouped(
        source(tmp_path, {"image": "a", "dialogs": [turns]}, {"image": "a", "text": "c"}), by_content=False
    )
    assert grouped[0].dialogs == ((Turn("Q", "A"), Turn("R", "B")), (Turn("", "c"),))


def test_a_scan_that_took_long_is_kept_until_the_file_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("VISGRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kept, "_WORTH_KEEPING_S", 0.0)
    data = tmp_path / "data"
    data.mkdir()
    assert len(Grouped(source(data, {"image": "a", "text": "1"}), by_content=False)) == 1
    scans = list((tmp_path / "cache" / "scans").iterdir())
    assert len(scans) == 1

    monkeypatch.setattr("visgraft.data.grouping._scan", lambda *a, **k: pytest.fail("scanned again"))
    same = Grouped(RowSource(JsonLinesRows(TextFile(data / "a.jsonl")), folder=data), by_content=False)
    assert texts(same) == [["1"]]
    monkeypatch.undo()
    monkeypatch.setenv("VISGRAFT_CACHE", str(tmp_path / "cache"))
    assert len(Grouped(source(data, *[{"image": str(i), "text": "1"} for i in range(3)]), by_content=False)) == 3
    scans[0].write_bytes(b"PK broken")
    arrays = kept.keep_arrays(lambda: {"a": np.arange(2)}, fingerprint=None)
    assert arrays["a"].tolist() == [0, 1]


def test_a_broken_scan_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("VISGRAFT_CACHE", str(tmp_path))
    monkeypatch.setattr(kept, "_WORTH_KEEPING_S", 0.0)
    kept.keep_arrays(lambda: {"a": np.arange(2)}, fingerprint="x")
    [path] = (tmp_path / "scans").iterdir()
    path.write_bytes(path.read_bytes()[:20])
    assert kept.keep_arrays(lambda: {"a": np.arange(3)}, fingerprint="x")["a"].tolist() == [0, 1, 2]
