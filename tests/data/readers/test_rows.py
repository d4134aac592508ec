import json
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from visgraft.data.readers.files import find_split, open_files
from visgraft.data.readers.json_places import entries_of_list
from visgraft.data.readers.rows import JsonListRows, open_rows
from visgraft.data.readers.tables import ParquetRows, write_parquet
from visgraft.data.readers.text_files import TextFile
from visgraft.errors import BadSampleError, DataError, MissingAssetError


def read_all(rows):
    return [rows[i] for i in range(len(rows))]


def test_json_lines_are_rows_and_blank_lines_are_none(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes('\ufeff{"a": 1}\n\n  \r\n{"a": "é"}\n{oops\n[1]\n\xff'.encode("utf-8", "surrogateescape"))
    rows = pickle.loads(pickle.dumps(open_rows([path])))
    assert len(rows) == 5 and rows[0] == {"a": 1} and rows[1] == {"a": "é"}
    assert rows.where(1) == "a.jsonl line 4"
    for index, reason in ((2, "line is not JSON"), (3, "line is not a JSON object")):
        with pytest.raises(BadSampleError, match=reason):
            rows[index]


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_list_is_read_entry_by_entry(tmp_path, indent):
    entries = [{"a": i, "t": 'br]ack{et "quoted\\" \u00e9', "deep": [{"b": [i]}]} for i in range(5)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(entries, indent=indent))
    rows = pickle.loads(pickle.dumps(open_rows([path])))
    assert read_all(rows) == entries and rows.where(3) == "a.json entry 3"


def test_a_json_list_inside_an_object_is_found_by_its_key(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"info": {"x": [{}]}, "other": [{"a": 0}], "images": [{"a": 1}, {"a": 2}], "z": [{}]}))
    file = TextFile(path)
    assert read_all(JsonListRows(file, entries_of_list(file, inside="images"))) == [
        {"a": 1},
        {"a": 2},
    ]


def test_an_entry_that_is_not_json_is_bad_alone(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[{"a": 1}, {"a": }, {"a": 3}]')
    rows = open_rows([path])
    assert (rows[0], rows[2]) == ({"a": 1}, {"a": 3})
    with pytest.raises(BadSampleError, match="entry is not JSON"):
        rows[1]


@pytest.mark.parametrize("text", ['[{"a": 1}, {"a"', "["])
def test_a_json_list_that_was_cut_off_is_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match="is not a whole JSON list"):
        open_rows([tmp_path / "a.json"])


def test_a_json_file_of_lines_is_read_as_lines(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}\n{"a": 2}\n')
    assert read_all(open_rows([tmp_path / "a.json"])) == [{"a": 1}, {"a": 2}]


def test_csv_records_may_span_lines_and_lack_cells(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes('\ufefffile_name,text\r\na.png,"one\ntwo, ""three"""\r\n\r\nb.png\r\nc.png,é\r\n'.encode())
    rows = pickle.loads(pickle.dumps(open_rows([path])))
    assert len(rows) == 3 and rows[0] == {"file_name": "a.png", "text": 'one\ntwo, "three"'}
    assert rows[2] == {"file_name": "c.png", "text": "é"} and rows.where(2) == "a.csv line 6"
    with pytest.raises(BadSampleError, match="line has another number of columns than the header"):
        rows[1]


def test_files_of_other_kinds_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(DataError, match="has no header"):
        open_rows([tmp_path / "a.csv"])
    with pytest.raises(DataError, match=r"got the suffix '.xml', need one of .jsonl, .json"):
        open_rows([tmp_path / "a.xml"])
    (tmp_path / "a.parquet").write_bytes(b"PAR0")
    with pytest.raises(DataError, match="is no parquet file that can be read"):
        ParquetRows([tmp_path / "a.parquet"])


def test_parquet_rows_are_reached_by_number_over_row_groups_and_files(tmp_path):
    for name, first, number in (("a.parquet", 0, 70), ("b.parquet", 70, 5)):
        assert write_parquet(tmp_path / name, ({"i": first + i, "t": [str(i)]} for i in range(number))) == number
    rows = pickle.loads(pickle.dumps(ParquetRows([tmp_path / "a.parquet", tmp_path / "b.parquet"])))
    assert len(rows) == 75 and [rows[i]["i"] for i in (0, 31, 32, 69, 70, 74)] == [0, 31, 32, 69, 70, 74]
    assert rows[33] == {"i": 33, "t": ["33"]} and rows.where(72) == "b.parquet row 2"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "b.parquet"]


def test_a_parquet_file_cut_off_while_it_is_read_is_a_bad_sample(tmp_path):
    write_parquet(tmp_path / "a.parquet", [{"i": 1}])
    rows = ParquetRows([tmp_path / "a.parquet"])
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(BadSampleError, match="parquet row group cannot be read"):
        rows[0]


@pytest.mark.parametrize(
    "names, split, found",
    [
        (["train.jsonl", "val.jsonl"], "train", ["train.jsonl"]),
        (["train.jsonl", "val.jsonl"], "validation", ["val.jsonl"]),
        (["train-1.parquet", "train-0.parquet", "test-0.parquet"], "train", ["train-0.parquet", "train-1.parquet"]),
        (["data/test-0.parquet"], "test", ["data/test-0.parquet"]),
        (["validation/b.json", "validation/a.json"], "val", ["validation/a.json", "validation/b.json"]),
    ],
)
def test_the_files_of_a_split_are_found_where_people_put_them(tmp_path, names, split, found):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_split(tmp_path, split=split, reader="x") == [tmp_path / name for name in found]


def test_missing_files_say_what_was_looked_for(tmp_path):
    (tmp_path / "train.jsonl").touch()
    with pytest.raises(MissingAssetError, match=r"no files of split 'test' .* looked for test.jsonl .* is train.jsonl"):
        find_split(tmp_path, split="test", reader="x")
    with pytest.raises(MissingAssetError, match="x: path: not set"):
        find_split(None, split="test", reader="x")


def test_files_of_several_kinds_follow_one_another(tmp_path):
    write_parquet(tmp_path / "a.parquet", [{"i": 0}])
    for number in (1, 2):
        (tmp_path / f"{number}.jsonl").write_text(json.dumps({"i": number}))
    rows = open_files([tmp_path / "1.jsonl", tmp_path / "a.parquet", tmp_path / "2.jsonl"])
    assert [row["i"] for row in read_all(rows)] == [0, 1, 2]
    assert rows.where(2) == "2.jsonl line 1" and len(str(rows.fingerprint)) > 20


def test_a_parquet_file_that_names_a_column_twice_is_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="names the column 'text' twice; rename one of them"):
        ParquetRows([tmp_path / "a.parquet"])
