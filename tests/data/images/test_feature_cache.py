"""Features come back as they were written, whoever wrote them and however many at once, or not at all."""

import errno
import multiprocessing
import os
import pickle
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.full_disk import Disk
from visgraft.data.images import feature_cache
from visgraft.data.images.feature_cache import FeatureCache, image_version
from visgraft.data.images.opening import FilePart
from visgraft.data.images.remote import RemoteImage
from visgraft.data.images.video import VideoFrame
from visgraft.errors import BadSampleError, DiskError

SHAPE = (3, 5)


def features(seed: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)).to(dtype)


def version(number: int) -> bytes:
    return number.to_bytes(16, "little")


def opened(folder: Path, dtype: torch.dtype = torch.bfloat16) -> FeatureCache:
    return FeatureCache(folder, shape=SHAPE, dtype=dtype)


def write(folder: Path, numbers: range) -> None:
    with opened(folder).writer() as add:
        for number in numbers:
            add(version(number), features(number))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_was_written_is_read_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    cache = opened(tmp_path / "new", dtype)
    with cache.writer() as add:
        for number in range(7):  # a version may end in zeros, or be all zeros
            add(version(number), features(number, dtype))
    for reader in (cache, opened(tmp_path / "new", dtype), pickle.loads(pickle.dumps(cache))):
        assert len(reader) == 7
        for number in range(7):
            found = reader.get(version(number))
            assert found is not None and found.dtype == dtype
            assert torch.equal(found, features(number, dtype))
        assert reader.get(version(8)) is None
        assert reader.get(None) is None


def test_a_full_file_is_there_for_others_before_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_cache, "FILE_BYTES", 2 * 3 * 5 * 2)
    with opened(tmp_path).writer() as add:
        for number in range(5):
            add(version(number), features(number))
        assert len(opened(tmp_path)) == 4
    assert len(opened(tmp_path)) == 5


def test_what_was_written_before_ctrl_c_is_kept(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), opened(tmp_path).writer() as add:
        add(version(1), features(1))
        raise KeyboardInterrupt
    assert len(opened(tmp_path)) == 1
    assert not list(tmp_path.glob("*.part"))


def test_two_processes_may_write_the_same_images_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")  # a second at most: nothing is imported again
    writers = [context.Process(target=write, args=(tmp_path, range(start, start + 60))) for start in (0, 30)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    cache = opened(tmp_path)
    assert len(cache) == 90
    for number in range(90):
        found = cache.get(version(number))
        assert found is not None and torch.equal(found, features(number))


@pytest.mark.parametrize("end", ["features", "index"])
@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_damage_is_noticed_and_what_is_written_anew_counts(tmp_path: Path, end: str, damage: str) -> None:
    write(tmp_path, range(4))
    [path] = tmp_path.glob(f"*.{end}")
    data = bytearray(path.read_bytes())
    path.write_bytes(data[:-1] if damage == "cut" else data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    cache = opened(tmp_path)
    lost = [number for number in range(4) if cache.get(version(number)) is None]
    assert lost == [3]
    time.sleep(0.01)
    write(tmp_path, range(3, 4))
    for number in range(4):
        found = opened(tmp_path).get(version(number))
        assert found is not None and torch.equal(found, features(number))


def test_files_that_nobody_closed_are_removed_after_a_day(tmp_path: Path) -> None:
    for name, age_s in (("old.features.part", 90_000), ("new.features.part", 10)):
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (time.time() - age_s,) * 2)
    write(tmp_path, range(1))
    assert [path.name for path in tmp_path.glob("*.part")] == ["new.features.part"]


def test_a_file_that_another_process_closes_meanwhile_is_no_error(tmp_path: Path) -> None:
    writing, gone = tmp_path / ".a.index.new", tmp_path / "b.features.part"
    for path in (writing, gone):
        path.symlink_to(tmp_path / "renamed away")  # listed, and not there when it is looked at
    write(tmp_path, range(1))
    assert len(opened(tmp_path)) == 1


def test_a_sample_is_found_when_all_its_images_are(tmp_path: Path) -> None:
    images = [tmp_path / "a.png", tmp_path / "b.png"]
    for number, path in enumerate(images):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(path)
    cache = opened(tmp_path / "cache")
    versions = [image_version(path) for path in images]
    with cache.writer() as add:
        add(versions[0] or b"", features(0))
    assert cache.find(images) is None
    with cache.writer() as add:
        add(versions[1] or b"", features(1))
    found = cache.find(images)
    assert found is not None and torch.equal(found["features"], torch.stack([features(0), features(1)]))
    assert cache.find([]) is None


def test_the_version_of_an_image_changes_when_the_image_does(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(path)
    first = image_version(path)
    assert first == image_version(str(path)) == image_version({"path": str(path)})
    os.utime(path, (1, 1))
    assert image_version(path) != first
    data = path.read_bytes()
    assert image_version(data) == image_version({"bytes": data, "path": None}) != first
    parts = {image_version(FilePart(path, 0, 10)), image_version(FilePart(path, 0, 11))}
    parts |= {image_version(VideoFrame(path, place=0.1)), image_version(VideoFrame(path, place=0.2))}
    assert len(parts) == 4 and None not in parts
    assert image_version(RemoteImage("https://a/1.png")) != image_version(RemoteImage("https://a/2.png"))
    with pytest.raises(BadSampleError, match="image file is missing"):
        image_version(tmp_path / "none.png")


@pytest.mark.parametrize("call", ["open", "write", "fsync", "rename"])
def test_a_full_disk_is_told_and_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    disk = Disk(monkeypatch)
    disk.refuse(call, errno.ENOSPC, match=".features.part", after_bytes=40)
    with pytest.raises(DiskError, match=r"\.features: cannot be written: the disk is full; needs .* bytes"):
        write(tmp_path, range(3))
    disk.repair()
    assert list(tmp_path.iterdir()) == []
    write(tmp_path, range(3))
    assert len(opened(tmp_path)) == 3
