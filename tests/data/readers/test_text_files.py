"""What a file of text is, whatever it is called: encodings, line ends, separators, wrappings; one rule for all."""

import gzip
import json
import pickle

import pytest

from visgraft.data.readers.rows import open_rows
from visgraft.data.readers.text_files import decode_text, text_lines
from visgraft.errors import BadSampleError, ConfigError, DataError

ROWS = [{"image": "a.png", "text": "Café"}, {"image": "b.png", "text": "x"}]
TABLE = "image,text\na.png,Café\nb.png,x\n"
LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VISGRAFT_CACHE", str(tmp_path / "cache"))


def opened(folder, name, content, **options):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return pickle.loads(pickle.dumps(open_rows([path], **options)))


def read_all(rows):
    return [rows[index] for index in range(len(rows))]


@pytest.mark.parametrize("name, content", [("x.csv", TABLE), ("x.jsonl", LINES), ("x.json", json.dumps(ROWS))])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_decides_by_itself(tmp_path, name, content, encoding):
    assert read_all(opened(tmp_path, name, content.encode(encoding))) == ROWS


@pytest.mark.parametrize("name, content", [("x.csv", TABLE), ("x.jsonl", LINES)])
def test_what_is_not_utf_8_is_a_bad_line_until_its_encoding_is_named(tmp_path, name, content):
    rows = opened(tmp_path, name, content.encode("cp1252"))
    with pytest.raises(BadSampleError, match=r"line is not UTF-8; set the source's encoding \(encoding: cp1252, say\)"):
        rows[0]
    assert rows[1] == ROWS[1]
    again = opened(tmp_path, name, content.encode("cp1252"), encoding="cp1252")
    assert read_all(again) == ROWS and again.where(0) == rows.where(0)
    assert again.fingerprint != rows.fingerprint


@pytest.mark.parametrize("encoding", ["shift_jis", "gbk", "utf-16-le", "utf-16-be"])
def test_encodings_whose_bytes_look_like_brackets_are_read(tmp_path, encoding):
    rows = [{"image": "a.png", "text": '表 [ソ] {能} "構" \\ ー'}]
    content = json.dumps(rows, ensure_ascii=False).encode(encoding)
    assert read_all(opened(tmp_path, "x.json", content, encoding=encoding)) == rows


def test_what_the_named_encoding_does_not_know_is_a_bad_line_by_itself(tmp_path):
    content = TABLE.encode("cp1252").replace(b"x\n", b"\x81\n")
    rows = opened(tmp_path, "x.csv", content, encoding="cp1252")
    assert rows[0] == ROWS[0]
    with pytest.raises(BadSampleError, match="line is not cp1252; set the source's encoding to what it is"):
        rows[1]


def test_utf_16_without_a_mark_is_told_by_its_nul_bytes(tmp_path):
    with pytest.raises(DataError, match=r"header holds NUL bytes; of UTF-16, set .* \(encoding: utf-16-le\)"):
        opened(tmp_path, "x.csv", TABLE.encode("utf-16-le"))
    with pytest.raises(BadSampleError, match="text holds NUL bytes"):
        decode_text("ab".encode("utf-16-be"))
    with pytest.raises(DataError, match=r"x\.csv: its header is not UTF-8"):
        opened(tmp_path, "x.csv", "légende\n".encode("cp1252"))


@pytest.mark.parametrize("name", ["cp99", "base64", ""])
def test_an_encoding_that_there_is_not_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="which is no encoding that Python knows; try cp1252"):
        opened(tmp_path, "x.csv", TABLE, encoding=name)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name, content", [("x.csv", TABLE), ("x.jsonl", LINES)])
def test_lines_end_as_pythons_universal_newlines_do(tmp_path, name, content, end):
    assert read_all(opened(tmp_path, name, content.replace("\n", end))) == ROWS


def test_a_bare_carriage_return_ends_a_record_and_a_quoted_one_does_not(tmp_path):
    rows = opened(tmp_path, "x.csv", 'image,text\na.png,a ca\rt\nb.png,"x\ry"\n')
    assert len(rows) == 3 and rows[0]["text"] == "a ca" and rows[2]["text"] == "x\ry"
    with pytest.raises(BadSampleError, match="another number of columns"):
        rows[1]


def test_lines_of_every_end_may_be_mixed(tmp_path):
    content = b"a\r\r\nbb\n\n\rccc\r\nd"
    (tmp_path / "x").write_bytes(content)
    with (tmp_path / "x").open("rb") as file:
        assert list(text_lines(file)) == content.splitlines(keepends=True)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_the_header_tells_the_separator(tmp_path, separator, suffix):
    content = f'image{separator}text\na.png{separator}"a, b; c"\n'
    assert read_all(opened(tmp_path, f"x.{suffix}", content)) == [{"image": "a.png", "text": "a, b; c"}]


def test_the_line_that_excel_puts_above_the_header_tells_the_separator(tmp_path):
    rows = opened(tmp_path, "x.csv", "\ufeffsep=|\r\nimage|text\r\na.png|a;b\r\n")
    assert read_all(rows) == [{"image": "a.png", "text": "a;b"}] and rows.where(0) == "x.csv line 3"


def test_another_separator_is_named(tmp_path):
    assert read_all(opened(tmp_path, "x.csv", "image~text\na~b\n", separator="~")) == [{"image": "a", "text": "b"}]
    with pytest.raises(DataError, match="separator: got '~~', need one character"):
        opened(tmp_path, "x.csv", "a~~b", separator="~~")


def test_a_quotation_mark_that_is_not_closed_spoils_its_own_line(tmp_path):
    rows = opened(tmp_path, "x.csv", 'image,text\na,"one\nb,two\nc,"three\nd,"fo\nur"\ne,"five\n')
    good, bad = [], []
    for index in range(len(rows)):
        try:
            good.append(rows[index]["text"])
        except BadSampleError as error:
            bad.append((rows.where(index), str(error)))
    reason = "line has a quotation mark that is not closed"
    assert good == ["two", "fo\nur"] and bad == [(f"x.csv line {n}", reason) for n in (2, 4, 7)]


@pytest.mark.parametrize(
    "content, message",
    [
        ("image,text,text\na,b,c\n", "its header names the column 'text' twice"),
        ("a.png,a cat\nb.png,x\n", r"has no header; its first line is a row \(a.png, a cat\); put a line such as"),
        ('"image,text\na,b\n', "has no header"),
    ],
)
def test_a_header_that_is_none_is_refused(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        opened(tmp_path, "x.csv", content)


@pytest.mark.parametrize("key", ["data", "annotations", "samples", "rows"])
@pytest.mark.parametrize("name", ["x.json", "x.jsonl"])
@pytest.mark.parametrize("indent", [None, 1])
def test_the_one_list_of_objects_inside_an_object_is_read(tmp_path, key, name, indent):
    content = json.dumps({"version": 1, "labels": ["a"], key: ROWS, "info": {"rows": 2}}, indent=indent)
    rows = opened(tmp_path, name, content)
    assert read_all(rows) == ROWS and rows.where(1) == f"{name} entry 1"


@pytest.mark.parametrize("indent", [None, 1])
def test_a_list_is_a_list_whatever_its_file_is_called(tmp_path, indent):
    assert read_all(opened(tmp_path, "x.jsonl", json.dumps(ROWS, indent=indent))) == ROWS


def test_objects_over_several_lines_are_rows(tmp_path):
    content = "\n".join(json.dumps(row, indent=2) for row in ROWS)
    rows = opened(tmp_path, "x.jsonl", content)
    assert read_all(rows) == ROWS and rows.where(1) == "x.jsonl object 1"
    assert read_all(opened(tmp_path, "x.json", json.dumps(ROWS[0], indent=2))) == ROWS[:1]


def test_a_damaged_first_line_does_not_hide_the_others(tmp_path):
    for start in ('{"image": "a.png", "te', '{"image": ["a.png"', '["image"', "[[["):
        rows = opened(tmp_path, "x.jsonl", f"{start}\n{LINES}")
        assert len(rows) == 3 and [rows[1], rows[2]] == ROWS
        with pytest.raises(BadSampleError, match="line is not"):
            rows[0]


def test_what_stands_in_a_list_and_is_no_object_is_bad_and_counted(tmp_path):
    rows = opened(tmp_path, "x.json", json.dumps([ROWS[0], 1, "x", None, [ROWS[1]], ROWS[1]]))
    assert len(rows) == 6 and (rows[0], rows[5]) == tuple(ROWS)
    for index in range(1, 5):
        with pytest.raises(BadSampleError, match="entry is not a JSON object"):
            rows[index]


def test_two_objects_on_one_line_are_said(tmp_path):
    rows = opened(tmp_path, "x.jsonl", json.dumps(ROWS[0]) + "\n" + json.dumps(ROWS[0]) * 2)
    with pytest.raises(BadSampleError, match="line holds more than one JSON object"):
        rows[1]


@pytest.mark.parametrize(
    "content, message",
    [
        ({"images": [{"id": 1}], "annotations": [{"image_id": 1}]}, "looks like COCO captions .*; use source: coco"),
        ({"dataset": "coco", "images": [{"filename": "a"}]}, "looks like Karpathy's captions .*use source: karpathy"),
        ({"data": ROWS, "rows": ROWS}, r"is one object with several lists \(data, rows\); keep the one"),
        ({"items": ROWS}, r"is one JSON object with the keys items, not rows; write one object a line or a list"),
        ({"data": {"rows": ROWS}}, "is one JSON object with the keys data, not rows"),
        ({"image": ["a.png", "b.png"], "text": ["x", "y"]}, r"of pandas: to_json\(orient='records', lines=True\)"),
        ({"image": {"0": "a.png"}, "text": {"0": "x"}}, r"of pandas: to_json\(orient='records', lines=True\)"),
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_a_file_that_is_something_else_says_what_it_looks_like(tmp_path, content, message, indent):
    with pytest.raises(DataError, match=message):
        opened(tmp_path, "x.json", json.dumps(content, indent=indent))


@pytest.mark.parametrize(
    "content, message",
    [
        (gzip.compress(b"{}", mtime=0), "is compressed with gzip; unpack it first"),
        (b"PK\x03\x04..", "is a zip archive or a spreadsheet"),
        (b"PAR1....", "is a parquet file; let its name end in .parquet"),
    ],
)
def test_what_is_no_text_says_what_it_is(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        opened(tmp_path, "x.jsonl", content)


def test_suffixes_may_be_written_large_and_packed_files_are_refused_by_name(tmp_path):
    assert read_all(opened(tmp_path, "X.JSONL", LINES)) == ROWS
    with pytest.raises(DataError, match=r"got the suffix '.gz', need one of .jsonl, .*; unpack what is compressed"):
        opened(tmp_path, "x.jsonl.gz", gzip.compress(b"{}"))
