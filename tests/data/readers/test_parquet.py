"""llava, messages, prompt_completion, texts, parquet: rows that differ in their format alone."""

import base64
import json
import pickle
from io import BytesIO

import datasets
import pytest
from PIL import Image

from visgraft.config import SourceSettings
from visgraft.data.images.opening import open_image
from visgraft.data.sample import Turn
from visgraft.data.sources import open_sources
from visgraft.errors import BadSampleError, DataError, MissingAssetError


def png(colour=(255, 0, 0)):
    buffer = BytesIO()
    Image.new("RGB", (4, 4), colour).save(buffer, "PNG")
    return buffer.getvalue()


def opened(source, path, **options):
    names = {"split", "group", "dialogs", "limit", "weight"}
    fields = {key: options.pop(key) for key in list(options) if key in names}
    return pickle.loads(pickle.dumps(open_sources([SourceSettings(source, path=str(path), options=options, **fields)])))


def test_llava_json_is_read_with_images_several_images_and_none(tmp_path):
    said = [{"from": "human", "value": "What is it?\n<image>"}, {"from": "gpt", "value": "A cat."}]
    rows = [
        {"id": "7", "image": "coco/1.png", "conversations": said},
        {
            "id": 8,
            "image": ["coco/1.png", "coco/2.png"],
            "conversations": [{**said[0], "value": "<image><image>Q"}, said[1]],
        },
        {"id": "9", "conversations": [{**said[0], "value": "Hi"}, said[1]]},
        {"id": "10", "image": "coco/1.png", "conversations": said[::-1]},
        {"id": "11", "image": "coco/1.png", "conversations": [*said, {**said[0], "value": "Where?"}, said[1]]},
    ]
    (tmp_path / "mix.json").write_text(json.dumps(rows))
    (tmp_path / "images" / "coco").mkdir(parents=True)
    (tmp_path / "images" / "coco" / "1.png").write_bytes(png())
    sources = opened("llava", tmp_path / "mix.json", images="images")
    assert len(sources) == 4 and sources.num_dialogs.tolist() == [2, 1, 1, 0]
    turn = Turn("What is it?", "A cat.")
    assert sources[0].dialogs == ((turn,), (turn, Turn("Where?", "A cat."))) and sources[0].id == "llava:7"
    assert open_image(sources[0].images[0]).size == (4, 4)
    assert len(sources[1].images) == 2 and sources[1].dialogs == ((Turn("Q", "A cat."),),)
    assert sources[2].images == () and sources[2].dialogs == ((Turn("Hi", "A cat."),),)
    assert sources.bad_sample(3, "x").where == "mix.json entry 3"
    with pytest.raises(BadSampleError, match="roles are not user and assistant in turn"):
        sources[3]


def test_messages_are_read_with_images_beside_and_inside_them(tmp_path):
    inline = {"type": "image", "base64": base64.b64encode(png()).decode()}
    rows = [
        {
            "images": ["a.png"],
            "messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Q"}]}],
        },
        {"messages": [{"role": "user", "content": [inline, {"type": "text", "text": "Q"}]}]},
    ]
    for row in rows:
        row["messages"].append({"role": "assistant", "content": "A"})
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sources = opened("messages", tmp_path)
    assert [sources[i].dialogs for i in range(2)] == [((Turn("Q", "A"),),)] * 2
    assert sources[0].images == (tmp_path / "a.png",) and open_image(sources[1].images[0]).size == (4, 4)


def test_prompts_and_completions_are_read(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "Q", "completion": "A", "images": ["a.png"]}\n{"prompt": "Q"}\n')
    sources = opened("prompt_completion", tmp_path / "a.jsonl")
    assert sources[0].dialogs == ((Turn("Q", "A"),),)
    with pytest.raises(BadSampleError, match="row lacks completion"):
        sources[1]


def test_texts_of_the_cauldron_are_read_as_its_parquet_holds_them(tmp_path):
    features = datasets.Features(
        {
            "images": datasets.Sequence(datasets.Image()),
            "texts": [
                {
                    "user": datasets.Value("string"),
                    "assistant": datasets.Value("string"),
                    "source": datasets.Value("string"),
                }
            ],
        }
    )
    texts = [{"user": "Q", "assistant": "A", "source": "s"}, {"user": "R", "assistant": "B", "source": "s"}]
    rows = [{"images": [{"bytes": png(), "path": None}], "texts": texts}, {"images": [], "texts": texts[:1]}] * 2
    dataset = datasets.Dataset.from_list(rows, features=features)
    dataset.to_parquet(tmp_path / "train-00000-of-00001.parquet")
    sources = opened("texts", tmp_path)
    assert [len(sources[i].dialogs) for i in range(len(sources))] == [4, 1, 1]
    assert sources[0].dialogs[:2] == ((Turn("Q", "A"),), (Turn("R", "B"),))
    assert open_image(sources[0].images[0]).getpixel((0, 0)) == (255, 0, 0)
    one_chat = opened("texts", tmp_path, dialogs="conversation", group="none")
    assert len(one_chat) == 4 and [len(dialog) for dialog in one_chat[0].dialogs] == [2]


def test_parquet_of_other_columns_is_mapped(tmp_path):
    rows = [{"img": png((i // 2, 0, 0)), "q": f"Q{i}", "a": f"A{i}"} for i in range(4)]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "x.parquet")
    columns = {"image": "img", "question": "q", "answer": "a"}
    sources = opened("parquet", tmp_path / "x.parquet", columns=columns)
    assert len(sources) == 2 and sources[1].dialogs == ((Turn("Q2", "A2"),), (Turn("Q3", "A3"),))
    assert open_image(sources[1].images[0]).getpixel((0, 0)) == (1, 0, 0)
    sources = opened("parquet", tmp_path / "x.parquet", columns={"image": "pic"})
    with pytest.raises(BadSampleError, match="column pic is missing"):
        sources[0]


@pytest.mark.parametrize("source", ["llava", "messages", "prompt_completion", "texts", "parquet"])
def test_missing_and_empty_files_are_refused(tmp_path, source):
    with pytest.raises(MissingAssetError, match="path: not set; name a file"):
        open_sources([SourceSettings(source)])
    with pytest.raises(MissingAssetError, match="found no files of split 'train' in"):
        opened(source, tmp_path)
    (tmp_path / "train.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match="holds no samples"):
        opened(source, tmp_path)
