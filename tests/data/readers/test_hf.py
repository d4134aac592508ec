import json
import pickle

import datasets
import pytest
from PIL import Image

from visgraft.config import SourceSettings
from visgraft.data.images.opening import open_image
from visgraft.data.readers import hf
from visgraft.data.sample import Turn
from visgraft.data.sources import open_sources
from visgraft.errors import ConfigError, DataError, MissingAssetError


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder that `load_dataset` reads like a dataset of the Hub, and caches of the test's own."""
    monkeypatch.setenv("VISGRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "arrow")
    rows = [
        {"image": Image.new("RGB", (4, 4), (i // 2, 0, 0)), "question": f"Q{i}", "label": i % 2, "name": "n"}
        for i in range(6)
    ]
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "question": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["no", "yes"]),
            "name": datasets.Value("string"),
        }
    )
    dataset = datasets.Dataset.from_list(rows, features=features)
    (tmp_path / "hub").mkdir()
    dataset.to_parquet(tmp_path / "hub" / "train-00000-of-00001.parquet")
    dataset.save_to_disk(tmp_path / "disk")
    datasets.DatasetDict({"train": dataset}).save_to_disk(tmp_path / "dict")
    return tmp_path


def opened(path, **options):
    return open_sources([SourceSettings("hf", path=str(path), options={"columns": {"answer": "label"}, **options})])


@pytest.mark.parametrize("folder", ["hub", "disk", "dict"])
def test_any_dataset_is_read_with_its_images_undecoded_and_labels_by_name(hub, folder):
    sources = opened(hub / folder)
    assert len(sources) == 3 and sources[1].dialogs == ((Turn("Q2", "no"),), (Turn("Q3", "yes"),))
    assert isinstance(sources[1].images[0]["bytes"], bytes)
    assert open_image(sources[1].images[0]).getpixel((0, 0)) == (1, 0, 0)
    assert "row 2" in sources.where(1)


def test_a_stream_is_read_once_and_kept(hub, monkeypatch):
    sources = opened(hub / "hub", streaming=True, take=4)
    assert len(sources) == 2 and open_image(sources[1].images[0]).getpixel((0, 0)) == (1, 0, 0)
    assert len(list((hub / "cache" / "streams").iterdir())) == 1
    monkeypatch.setattr(datasets, "load_dataset", lambda **k: pytest.fail("read again"))
    again = opened(hub / "hub", streaming=True, take=4)
    assert [again[i].dialogs for i in range(2)] == [sources[i].dialogs for i in range(2)]


def test_what_cannot_be_had_says_why(hub, monkeypatch):
    with pytest.raises(ConfigError, match=r"hf: streaming: true, but this needs .* \(hf: or add take: N\)"):
        opened(hub / "hub", streaming=True)
    with pytest.raises(ConfigError, match="hf: got take 3 without streaming: true"):
        opened(hub / "hub", take=3)
    with pytest.raises(MissingAssetError, match="hf: path: not set"):
        hf.read(None, split="train")
    with pytest.raises(DataError, match=r"hf: split: got 'nowhere', but .*dict has train"):
        hf.read(hub / "dict", split="nowhere")
    with pytest.raises(MissingAssetError, match=r"split nowhere\) cannot be loaded: "):
        hf.read(hub / "hub", split="nowhere")
    with pytest.raises(MissingAssetError, match="cannot be loaded"):
        hf.read(hub / "no such dataset", split="train")
    empty = datasets.Dataset.from_list([{"a": 1}]).select([])
    monkeypatch.setattr(datasets, "load_dataset", lambda **k: empty)
    with pytest.raises(DataError, match="holds no samples"):
        hf.read(hub / "empty", split="train")


MIXED = [
    {"image": "a.png", "messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Q"}]}]},
    {"image": "b.png", "messages": [{"role": "user", "content": "Q"}]},
]


@pytest.mark.skipif(not hasattr(datasets, "Json"), reason="an older datasets refuses a column of two types")
@pytest.mark.parametrize("way", ["files", "saved", "parquet", "take", "stream"])
def test_contents_of_two_types_are_what_they_were(tmp_path, monkeypatch, way):
    """`datasets` keeps a column that is a text here and a list there as JSON in text."""
    monkeypatch.setenv("VISGRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "arrow")
    rows = [{**row, "messages": [*row["messages"], {"role": "assistant", "content": "A"}]} for row in MIXED]
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    path, source, options = tmp_path / "rows", "hf", {}
    if way in ("saved", "parquet"):
        dataset = datasets.load_dataset(str(path), split="train")
        path = tmp_path / way
        if way == "saved":
            dataset.save_to_disk(path)
        else:
            source = "parquet"
            dataset.to_parquet(path / "train.parquet")
    elif way == "take":
        options = {"streaming": True, "take": 2}
    if way == "stream":
        stream = hf.read(path, split="train", streaming=True)
        samples = [stream.sample(row) for row in stream.rows.read(seed=None, epoch=0, place=None)]
    else:
        sources = pickle.loads(pickle.dumps(open_sources([SourceSettings(source, path=str(path), options=options)])))
        samples = [sources[index] for index in range(2)]
    assert [sample.dialogs for sample in samples] == [((Turn("Q", "A"),),)] * 2
    assert [len(sample.images) for sample in samples] == [1, 1]


def test_files_that_datasets_cannot_read_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "arrow")
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "train.jsonl").write_text('{"image": "a.png", "text": "x"}\n{"image": oops\n')
    with pytest.raises(MissingAssetError, match=r"cannot be loaded: .*JSON parse error"):
        hf.read(tmp_path / "rows", split="train")
    stream = hf.read(tmp_path / "rows", split="train", streaming=True)
    with pytest.raises(DataError, match=r"rows cannot be read behind row 0 \(JSON parse error"):
        list(stream.rows.read(seed=None, epoch=0, place=None))
