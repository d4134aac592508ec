"""Several processes open data together: each reads its part alone, and all know what one would know."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.in_threads import Threads, in_threads
from tests.data.test_windows import write_tars
from tests.training.tiny import save_data
from visgraft import disk_cache
from visgraft.config import SourceSettings
from visgraft.data.fingerprint import ImagePaths, unpack
from visgraft.data.grouping import RowSource
from visgraft.data.processes import ALONE, Processes
from visgraft.data.readers import tars
from visgraft.data.sources import Sources, open_sources
from visgraft.errors import BadSampleError


@pytest.mark.parametrize("number", [1, 2, 3, 7])
def test_shares_are_the_whole_in_order(number: int) -> None:
    shares = [Processes(index, number).share(20) for index in range(number)]
    assert [place for share in shares for place in share] == list(range(20))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def told(sources: Sources) -> list[Any]:
    samples: list[Any] = []
    for index in range(len(sources)):
        try:
            sample = sources[index]
            samples.append((sample.id, [str(image) for image in sample.images], sample.dialogs))
        except BadSampleError as error:
            samples.append(str(error))
    places = [sources.where(index) for index in range(len(sources))]
    return [samples, sources.num_dialogs.tolist(), sources.described(), places, [e.notes for e in sources.opened]]


def entries_of(folder: Path, kind: str) -> list[SourceSettings]:
    if kind == "webdataset":
        pattern = write_tars(folder / "tars")
        return [SourceSettings("webdataset", path=pattern, group=group) for group in ("content", "none", "auto")]  # type: ignore[arg-type]
    path = save_data(folder / "images", num_images=9)
    rows = folder / "rows.jsonl"
    rows.write_text("".join(f'{{"image": "images/{n % 9}.png", "text": "a {n}"}}\n' for n in range(20)) + "damaged\n")
    return [
        SourceSettings("parquet", path=str(rows), group=group, dialogs=dialogs)  # type: ignore[arg-type]
        for group in ("path", "content", "none")
        for dialogs in ("as_given", "independent")
    ] + [SourceSettings("folder", path=path)]


@pytest.mark.parametrize("kind", ["webdataset", "rows"])
def test_processes_that_open_together_each_read_their_part_and_know_the_same(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, entry in enumerate(entries_of(tmp_path, kind)):
        monkeypatch.setenv("VISGRAFT_CACHE", str(tmp_path / f"cache-{number}"))
        alone = told(open_sources([entry]))
        reads: Counter[int] = Counter()
        with monkeypatch.context() as patch:
            patch.setattr(RowSource, "__getitem__", counting(reads))
            opened = in_threads(3, partial(open_and_count, entry))
        assert [told(sources) for sources in opened] == [alone] * 3
        most = 2 if entry.dialogs == "independent" else 1
        assert max(reads.values(), default=0) <= most


def counting(reads: Counter[int]) -> Callable[[RowSource, int], Any]:
    getitem = RowSource.__getitem__

    def counted(self: RowSource, index: int) -> Any:
        reads[index] += 1
        return getitem(self, index)

    return counted


def open_and_count(entry: SourceSettings, processes: Threads) -> Sources:
    sources = open_sources([entry], processes=processes)
    assert len(sources.num_dialogs) == len(sources)
    return sources


def test_a_tar_is_indexed_by_one_process_and_a_row_scanned_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pattern = write_tars(tmp_path)
    indexed: Counter[str] = Counter()
    go_through = tars.samples_of_tar

    def counted(path: Path) -> Any:
        indexed[path.name] += 1
        return go_through(path)

    monkeypatch.setattr(tars, "samples_of_tar", counted)
    in_threads(2, lambda processes: open_sources([SourceSettings("webdataset", path=pattern)], processes=processes))
    assert len(indexed) > 1 and set(indexed.values()) == {1}


def test_only_the_first_process_looks_into_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISGRAFT_CACHE", str(tmp_path))
    monkeypatch.setattr(disk_cache, "_WORTH_KEEPING_S", 0.0)
    made: list[range] = []

    def make(stretch: range) -> Any:
        made.append(stretch)
        return {"a": np.array(stretch)}

    def join(parts: Any) -> Any:
        return {"a": np.concatenate([part["a"] for part in parts])}

    def work(processes: Processes) -> Any:
        return processes.make_arrays(make, length=5, join=join, fingerprint="numbers")["a"].tolist()

    assert in_threads(2, work) == [[0, 1, 2, 3, 4]] * 2
    assert sorted(made, key=lambda stretch: stretch.start) == [range(0, 2), range(2, 5)]
    assert in_threads(3, work) == [[0, 1, 2, 3, 4]] * 3 and work(ALONE) == [0, 1, 2, 3, 4]
    assert len(made) == 2


@pytest.mark.parametrize("most", [3, 7, 1000])
def test_image_files_kept_of_very_many_do_not_depend_on_how_many_processes_looked(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visgraft.data.fingerprint.MOST_IMAGES", most)

    def kept(rows: range) -> ImagePaths:
        images = ImagePaths()
        for row in rows:
            images.add(*[f"{row}-{n}.png" for n in range(row % 3)], row=row)
        return images

    alone = unpack(kept(range(40)).packed())
    for number in (2, 3, 5):
        parts = [kept(Processes(index, number).share(40)).part() for index in range(number)]
        assert unpack(ImagePaths.joined(parts).packed()) == alone
    assert 0 < len(alone) <= most
