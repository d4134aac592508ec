import hashlib
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from visgraft.disk_cache import cache_folder
from visgraft.errors import ConfigError, MissingAssetError
from visgraft.starter import assets, easy_vqa_folder, resolve
from visgraft.starter.assets import Asset
from visgraft.starter.packages import Package, fetch


def copy_greeting(unpacked: Path, folder: Path) -> None:
    (folder / "greeting.txt").write_text((unpacked / "tiny_asset/greeting.txt").read_text())


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asset:
    """An asset in an index of its own that pip finds through its own settings; it stands in for easy-VQA."""
    index = tmp_path / "index"
    index.mkdir()
    wheel = index / "tiny_asset-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_asset/greeting.txt", "hello")
        archive.writestr("tiny_asset-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-asset\nVersion: 1.0\n")
        archive.writestr("tiny_asset-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_asset-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    package = Package(
        name="tiny-asset",
        version="1.0",
        file=wheel.name,
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        megabytes=0.1,
        license="MIT",
    )
    asset = Asset(packages=(package,), folder="tiny", convert=copy_greeting)
    monkeypatch.setitem(assets.ASSETS, "easy_vqa", asset)
    return asset


def use(monkeypatch: pytest.MonkeyPatch, asset: Asset) -> None:
    monkeypatch.setitem(assets.ASSETS, "easy_vqa", asset)


def test_a_name_that_is_no_starter_name_comes_back_unchanged():
    assert resolve("openai/clip-vit-base-patch16") == "openai/clip-vit-base-patch16"
    assert resolve("/opt/models/starter") == "/opt/models/starter"


def test_an_unknown_starter_name_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"got 'starter:audio', need one of starter:vision, starter:language"):
        resolve("starter:audio")


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("VISGRAFT_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache/visgraft"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg/visgraft"
    monkeypatch.setenv("VISGRAFT_CACHE", "~/own")
    assert cache_folder() == tmp_path / "own"


def test_the_first_call_downloads_and_prepares_and_the_second_does_neither(tiny: Asset, tmp_path: Path):
    said: list[str] = []
    folder = resolve("starter:easy_vqa", cache=tmp_path / "cache", say=said.append)
    assert said == ["downloading tiny-asset 1.0 (0.1 MB)", "preparing tiny (once)"]
    assert (Path(folder) / "greeting.txt").read_text() == "hello"
    assert {path.name for path in Path(folder).iterdir()} == {"greeting.txt", "starter.json"}
    assert easy_vqa_folder(cache=tmp_path / "cache", say=said.append) == Path(folder)
    assert len(said) == 2


def test_an_interrupted_preparation_leaves_only_the_download(
    tiny: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def interrupted(unpacked: Path, folder: Path) -> None:
        copy_greeting(unpacked, folder)
        raise KeyboardInterrupt

    use(monkeypatch, replace(tiny, convert=interrupted))
    with pytest.raises(KeyboardInterrupt):
        easy_vqa_folder(cache=tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["downloads"]
    assert [path.name for path in (tmp_path / "cache/downloads").iterdir()] == [tiny.packages[0].file]


def test_a_folder_of_an_older_format_is_made_again(tiny: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = easy_vqa_folder(cache=tmp_path / "cache")
    (folder / "greeting.txt").write_text("outdated")
    assert (easy_vqa_folder(cache=tmp_path / "cache") / "greeting.txt").read_text() == "outdated"
    monkeypatch.setattr(assets, "FORMAT", assets.FORMAT + 1)
    assert (easy_vqa_folder(cache=tmp_path / "cache") / "greeting.txt").read_text() == "hello"
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["downloads", "tiny"]


def test_the_second_of_two_processes_takes_the_folder_of_the_first(
    tiny: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def overtaken(unpacked: Path, folder: Path) -> None:
        use(monkeypatch, tiny)
        first = easy_vqa_folder(cache=tmp_path / "cache")
        (first / "greeting.txt").write_text("from the first")
        copy_greeting(unpacked, folder)

    use(monkeypatch, replace(tiny, convert=overtaken))
    assert (easy_vqa_folder(cache=tmp_path / "cache") / "greeting.txt").read_text() == "from the first"


def test_a_failed_download_says_what_pip_said_and_both_ways_out(
    tiny: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    with pytest.raises(MissingAssetError) as error:
        easy_vqa_folder(cache=tmp_path / "cache")
    assert "tiny-asset 1.0 could not be downloaded: No matching distribution found" in str(error.value)
    assert "Check the network and pip's index settings" in str(error.value)
    assert f"or put {tiny.packages[0].file} into {tmp_path / 'cache/downloads'} by hand" in str(error.value)


def test_a_python_without_pip_gets_advice_how_to_get_it(tiny: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(MissingAssetError, match=r"has no pip: run `.*/python -m ensurepip`, or put tiny_asset"):
        easy_vqa_folder(cache=tmp_path / "cache")


def test_a_wheel_put_in_by_hand_is_checked(tiny: Asset, tmp_path: Path):
    wheel = tmp_path / "cache/downloads" / tiny.packages[0].file
    wheel.parent.mkdir(parents=True)
    wheel.write_bytes(b"half a download")
    with pytest.raises(
        MissingAssetError, match=rf"has sha256 .*, need {tiny.packages[0].sha256}. Delete .* and try again"
    ):
        easy_vqa_folder(cache=tmp_path / "cache")


def test_a_wheel_that_the_index_changed_is_not_kept(tiny: Asset, tmp_path: Path):
    expected = replace(tiny.packages[0], sha256="0" * 64)
    with pytest.raises(MissingAssetError, match="The package index served another file; do not use it"):
        fetch(expected, cache=tmp_path / "cache")
    assert list((tmp_path / "cache/downloads").iterdir()) == []


def test_a_cache_that_cannot_be_written_names_the_variable_to_set(tiny: Asset, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MissingAssetError, match=r"tiny could not be written to .*Set VISGRAFT_CACHE to a folder"):
        easy_vqa_folder(cache=tmp_path / "file")


def test_names_are_resolved_without_importing_torch():
    code = "import sys, visgraft.starter as s; s.resolve('a'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.slow
@pytest.mark.starter
def test_easy_vqa_unpacks_to_the_layout_of_its_package(tmp_path: Path):
    try:
        folder = easy_vqa_folder(cache=tmp_path)
    except MissingAssetError as error:
        if "could not be downloaded" not in str(error):
            raise
        pytest.skip(f"NOT CHECKED, no easy-VQA: {error}")
    assert len(list(folder.glob("train/images/*.png"))) == 4000
    assert len(list(folder.glob("test/images/*.png"))) == 1000
    assert (folder / "test/questions.json").read_text().startswith('[["what is the red shape?", "triangle", 0]')
    assert len((folder / "answers.txt").read_text().split()) == 13
    assert list(folder.glob(".*")) == []
