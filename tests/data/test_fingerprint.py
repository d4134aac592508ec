"""Files are known by size and time of change, many images by one line, and nothing is read for it."""

import os
from pathlib import Path

import numpy as np
import pytest

from tests.training.tiny import save_data
from visgraft.config import DataSettings, SourceSettings
from visgraft.data import fingerprint
from visgraft.data.fingerprint import Fingerprint, ImagePaths, describe_images, in_words, stamp, unpack
from visgraft.data.readers.tables import write_parquet
from visgraft.data.sources import Sources, open_sources


def test_a_time_is_written_with_all_its_digits() -> None:
    assert in_words(1_700_000_000_000_000_001) == "2023-11-14 22:13:20.000000001"


def test_files_are_described_by_their_place_in_the_folder_of_all(tmp_path: Path) -> None:
    for name in ("a/1.tar", "b/1.tar"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"abc")
        os.utime(tmp_path / name, ns=(0, 0))
    words = "3 bytes of 1970-01-01 00:00:00.000000000"
    both = stamp([tmp_path / "a/1.tar"]) + stamp([tmp_path / "b/1.tar"], marks=["x"])
    assert both.described() == {"a/1.tar": words, "b/1.tar": words, "version": "x"}
    assert stamp([tmp_path / "b/1.tar"]).described() == {"1.tar": words}
    assert Fingerprint().described() == {}


@pytest.mark.parametrize("change", ["content", "time", "gone", "other name"])
def test_images_are_one_line_that_any_change_of_a_file_changes(tmp_path: Path, change: str) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(20)]
    for path in paths:
        path.write_bytes(b"abcd")
        os.utime(path, ns=(0, 0))
    before = describe_images(paths)
    assert before is not None and before.startswith("20 files, 80 bytes, the newest ")
    assert describe_images(reversed(paths)) == before
    match change:
        case "content":
            paths[7].write_bytes(b"abcde")
            os.utime(paths[7], ns=(0, 0))
        case "time":
            os.utime(paths[7], ns=(5, 5))
        case "gone":
            paths[7].unlink()
        case "other name":
            paths[7] = paths[7].rename(tmp_path / "x.png")
    after = describe_images(paths)
    assert after is not None and after != before
    assert ("1 missing" in after) is (change == "gone")
    assert ("the newest 7.png" in after) is (change == "time")


def test_a_folder_of_frames_stands_for_its_files(tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    for number in range(3):
        (tmp_path / "clip" / f"{number}.png").write_bytes(b"a")
    before = describe_images([tmp_path / "clip"])
    assert before is not None and before.startswith("3 files, 3 bytes, the newest clip/")
    os.utime(tmp_path / "clip" / "1.png", ns=(1, 1))
    assert describe_images([tmp_path / "clip"]) != before


def test_no_image_files_are_no_line_and_impossible_names_are_missing() -> None:
    assert describe_images([]) is None
    assert str(describe_images(["a\0b", "x" * 5000])).startswith("0 files, 0 bytes, 2 missing; sum ")


def test_of_very_many_images_a_part_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "MOST_IMAGES", 10)
    paths = ImagePaths()
    for number in range(45):
        paths.add(f"{number}.png")
    assert unpack(paths.packed()) == [f"{number}.png" for number in range(0, 45, 8)]
    assert str(describe_images(str(number) for number in range(45))).startswith("0 files, 0 bytes, 9 missing")
    assert unpack(np.zeros(0, dtype=np.uint8)) == []


def opened(path: Path | str, source: str = "folder", **settings: object) -> Sources:
    return open_sources([SourceSettings(source=source, path=str(path), **settings)])  # type: ignore[arg-type]


def test_texts_have_a_name_that_changes_with_files_and_options(tmp_path: Path) -> None:
    path = save_data(tmp_path / "data", num_images=8)
    names = [
        opened(path).fingerprint,
        opened(path, limit=3).fingerprint,
        opened(path, dialogs="conversation").fingerprint,
        opened(path, split={"validation": "50%"}).fingerprint,
    ]
    os.utime(tmp_path / "data" / "metadata.jsonl", ns=(1, 1))
    names.append(opened(path).fingerprint)
    assert None not in names and len(set(names)) == 5
    assert opened(path).fingerprint == names[-1]
    assert opened(path, group="content").fingerprint is None


def test_sources_gathered_into_one_are_described_one_by_one(tmp_path: Path) -> None:
    path = save_data(tmp_path / "data", num_images=8)
    entries = [SourceSettings(source="folder", path=path), SourceSettings(source="parquet", path=path)]
    write_parquet(tmp_path / "data" / "train.parquet", [{"image": "1.png", "text": "again"}])
    both = open_sources(entries, settings=DataSettings(group_across_sources=True)).described()
    assert list(both) == ["all", "folder", "parquet"]
    assert both["folder"]["samples"] == "8" and "metadata.jsonl" in both["folder"]
    assert both["parquet"]["images"].startswith("1 files, ")
    assert both["all"]["images"].startswith("8 files, ")


@pytest.mark.parametrize("group", ["auto", "none", "path"])
def test_rows_tell_their_image_files_however_they_are_grouped(tmp_path: Path, group: str) -> None:
    save_data(tmp_path, num_images=4)
    write_parquet(tmp_path / "train.parquet", [{"image": f"{n % 3}.png", "text": f"text {n}"} for n in range(6)])
    sources = opened(tmp_path / "train.parquet", "parquet", group=group)
    assert sources.described()["parquet"]["images"].startswith("3 files, ")
    assert len(sources) == (6 if group == "none" else 3)
    assert sources.num_texts == {"parquet": 6}


def test_names_that_no_file_can_have_are_left_out():
    paths = ImagePaths()
    paths.add("a.png", "b\0.png", "c\ud83d.png", "d\udcff.png", "\u00e9.png")
    assert unpack(paths.packed()) == ["a.png", "d\udcff.png", "\u00e9.png"]  # the third is a name that is no UTF-8
