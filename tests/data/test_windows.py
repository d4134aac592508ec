import io
import json
import pickle
import tarfile
from collections import Counter
from itertools import chain

import datasets
import pytest
from PIL import Image

from visgraft.config import DataSettings, SourceSettings
from visgraft.data.images.opening import open_image
from visgraft.data.sources import open_sources
from visgraft.data.windows import open_streams
from visgraft.errors import BadSampleError, ConfigError

NUM_TARS, PER_TAR = 3, 5


def png(value):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write_tars(folder, *, name="a", num_tars=NUM_TARS, per_tar=PER_TAR):
    """Write tars whose n-th sample (over all) shows the image n // 2 and says `text n`."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(num_tars):
        with tarfile.open(folder / f"{name}-{number}.tar", "w") as tar:
            for inside in range(per_tar):
                n = number * per_tar + inside
                for suffix, data in (("png", png(n // 2)), ("txt", f"text {n}".encode())):
                    info = tarfile.TarInfo(f"{n:03d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return str(folder / f"{name}-*.tar")


def opened(*entries, key="data.train", **settings):
    entries = [SourceSettings(**entry) for entry in entries]
    return open_streams(entries, key=key, settings=DataSettings(**{"stream_window": 4, **settings}))


def tars(path, **more):
    options = {"streaming": True, **more.pop("options", {})}
    return {"source": "webdataset", "path": path, "options": options, **more}


def windows_of(streams, *, seed=0, epoch=0, place=None):
    """Read windows until the streams end."""
    found = []
    while True:
        window = streams.window(seed=seed, epoch=epoch, place=place)
        found.append((window, place))
        place = window.after
        if place is None:
            return found


def texts_of(window):
    return [turn.answer for i in range(len(window.sources)) for [turn] in window.sources[i].dialogs]


def test_windows_hold_every_sample_once_and_tars_come_in_another_order_each_epoch(tmp_path):
    streams = opened(tars(write_tars(tmp_path)))
    epochs = [[text for window, _ in windows_of(streams, epoch=e) for text in texts_of(window)] for e in range(4)]
    assert all(sorted(epoch) == sorted(f"text {n}" for n in range(15)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert [len(texts_of(window)) for window, _ in windows_of(streams)] == [4, 4, 4, 3]
    again = opened(tars(write_tars(tmp_path)))
    assert [text for window, _ in windows_of(again, epoch=2) for text in texts_of(window)] == epochs[2]


def test_any_window_can_be_read_alone_from_its_place(tmp_path):
    path, other = write_tars(tmp_path), write_tars(tmp_path, name="b", num_tars=1)
    entries = (tars(path), tars(other))
    for window, place in windows_of(opened(*entries)):
        place = json.loads(json.dumps(place))  # as a checkpoint holds it
        fresh = pickle.loads(pickle.dumps(opened(*entries)))
        alone = fresh.window(seed=0, epoch=0, place=place)
        assert texts_of(alone) == texts_of(window)
        assert (alone.num_read, alone.after) == (window.num_read, window.after)


def test_several_streams_take_turns_until_all_have_ended(tmp_path):
    path, other = write_tars(tmp_path), write_tars(tmp_path, name="b", num_tars=1, per_tar=2)
    found = windows_of(opened(tars(path), tars(other)))
    names = [[window.sources[i].source for i in range(len(window.sources))] for window, _ in found]
    assert names[0] == ["webdataset", "webdataset", "webdataset-2", "webdataset-2"]
    assert Counter(chain.from_iterable(names)) == {"webdataset": 15, "webdataset-2": 2}


def test_texts_about_one_image_are_gathered_inside_a_window(tmp_path):
    path = write_tars(tmp_path, num_tars=1, per_tar=8)
    by_content = windows_of(opened(tars(path, group="content")))
    assert [[len(w.sources[i].dialogs) for i in range(len(w.sources))] for w, _ in by_content] == [[2, 2], [2, 2], []]
    alone = windows_of(opened(tars(path, group="none")))
    assert [len(w.sources) for w, _ in alone] == [4, 4, 0]  # that the stream has ended, only its end tells


def test_a_limit_reads_the_first_rows_in_their_own_order_in_every_epoch(tmp_path):
    streams = opened(tars(write_tars(tmp_path), limit=6))
    for epoch in range(3):
        texts = [text for window, _ in windows_of(streams, epoch=epoch) for text in texts_of(window)]
        assert texts == [f"text {n}" for n in range(6)]


def test_a_bad_row_and_a_damaged_tar_are_bad_samples_and_the_reading_goes_on(tmp_path):
    path = write_tars(tmp_path)
    whole = (tmp_path / "a-1.tar").read_bytes()
    (tmp_path / "a-1.tar").write_bytes(whole[:2500])  # the second sample is cut off
    with tarfile.open(tmp_path / "a-2.tar", "w") as tar:
        info = tarfile.TarInfo("x.json")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"{a}"))
    streams = opened(tars(path))
    bad, good = [], []
    for window, _ in windows_of(streams):
        for i in range(len(window.sources)):
            try:
                good.append(window.sources[i].dialogs)
            except BadSampleError as error:
                bad.append(window.sources.bad_sample(i, str(error)))
    assert {(b.reason, b.where, b.index) for b in bad} == {
        ("tar is damaged", "a-1.tar", 1_000_000_001),
        ("json member is not JSON", "a-2.tar sample x", 2_000_000_000),
    }
    assert len(good) == 6


def test_a_streamed_hub_dataset_goes_on_from_its_place(tmp_path, monkeypatch):
    rows = [{"image": {"bytes": png(n // 2), "path": None}, "text": f"text {n}", "label": n % 2} for n in range(10)]
    features = datasets.Features(
        {"image": datasets.Image(), "text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    for number in range(2):
        part = datasets.Dataset.from_list(rows[5 * number : 5 * number + 5], features=features)
        part.to_parquet(tmp_path / f"train-{number}.parquet")
    entry = {"source": "hf", "path": str(tmp_path), "options": {"streaming": True}}
    found = windows_of(opened(entry, stream_window=4))
    assert [text for window, _ in found for text in texts_of(window)] == [f"text {n}" for n in range(10)]
    assert [len(window.sources) for window, _ in found] == [2, 2, 1]  # gathered by what the images hold
    assert open_image(found[1][0].sources[0].images[0]).getpixel((0, 0)) == (2, 0, 0)
    for window, place in found:
        alone = opened(entry, stream_window=4).window(seed=0, epoch=0, place=json.loads(json.dumps(place)))
        assert texts_of(alone) == texts_of(window)


def test_what_only_the_end_of_a_stream_would_tell_is_refused(tmp_path):
    path = write_tars(tmp_path)
    assert opened({"source": "webdataset", "path": path}) is None
    plain = {"source": "webdataset", "path": path}
    with pytest.raises(ConfigError, match=r"data\.train\.1: is a stream, and data\.train\.0 is not; streams go with"):
        opened(plain, tars(path))
    with pytest.raises(ConfigError, match=r"data\.train\.0\.weight: got 2\.0, which a stream cannot have"):
        opened(tars(path, weight=2.0))
    with pytest.raises(ConfigError, match=r"data\.train\.0\.stage: got 2, which a stream cannot have"):
        opened(tars(path, stage=2))
    with pytest.raises(ConfigError, match=r"data\.train\.0\.split: got \{'validation': .*, which a stream cannot have"):
        opened(tars(path, split={"validation": 0.5}))
    with pytest.raises(ConfigError, match=r"which data\.group_across_sources and data\.mixing_temperature do not fit"):
        opened(tars(path), mixing_temperature=2.0)
    with pytest.raises(
        ConfigError, match="webdataset: streaming: true, but this needs samples that can be read by number"
    ):
        open_sources([SourceSettings(**tars(path))])
