"""Every format that `visgraft init` knows becomes a recipe that trains: a step runs and a model is written."""

import io
import json
import tarfile
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from tests.cli.conftest import Visgraft
from tests.training.tiny import save_data

pytestmark = pytest.mark.slow

CHAT = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "a cat on a sofa"}]
TURNS = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "a cat on a sofa"}]


def png(number: int) -> bytes:
    Image.new("RGB", (24, 24), (40 * number, 90, 200)).save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


def photos(folder: Path, *, number: int = 3) -> list[str]:
    for index in range(number):
        write(folder / f"{index}.png", png(index % 6))
    return [f"{index}.png" for index in range(number)]


def easy_vqa(folder: Path) -> None:
    names = photos(folder / "train" / "images", number=12)
    write(folder / "train" / "questions.json", [["What is it?", "a cat", number] for number in range(len(names))])


def with_metadata(folder: Path) -> None:
    save_data(folder, num_images=3)


def coco(folder: Path) -> None:
    names = photos(folder / "train2017")
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    captions = [{"image_id": number, "caption": "a cat on a sofa"} for number in range(len(names))]
    write(folder / "annotations" / "captions_train2017.json", {"images": images, "annotations": captions})


def karpathy(folder: Path) -> None:
    rows = [{"filename": name, "split": "train", "sentences": [{"raw": "a cat on a sofa"}]} for name in photos(folder)]
    write(folder / "dataset_flickr8k.json", {"images": rows})


def m3it(folder: Path) -> None:
    row = {"instruction": "Look.", "inputs": "", "outputs": "a cat", "image_base64_str": [b64encode(png(0)).decode()]}
    write(folder / "coco" / "train.jsonl", row)


def webdataset(folder: Path) -> None:
    folder.mkdir(parents=True)
    with tarfile.open(folder / "0000.tar", "w") as tar:
        for name, content in (("0.png", png(0)), ("0.txt", b"a cat"), ("1.png", png(1)), ("1.txt", b"a dog")):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def saved_to_disk(folder: Path) -> None:
    rows = [{"image": {"bytes": png(number), "path": None}, "text": "a cat on a sofa"} for number in range(3)]
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    datasets.Dataset.from_list(rows, features=features).save_to_disk(folder)


def parquet(folder: Path) -> None:
    rows = [{"image": {"bytes": png(number), "path": None}, "question": "?", "answer": "a cat"} for number in range(3)]
    (folder / "data").mkdir(parents=True)
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), folder / "data" / "train-00000-of-00001.parquet")


def texts_beside(folder: Path) -> None:
    for name in photos(folder / "10_cat"):
        write(folder / "10_cat" / name.replace(".png", ".txt"), b"a cat on a sofa")


def class_folders(folder: Path) -> None:
    for name in ("tabby_cat", "dog"):
        photos(folder / name)


def rows_of(form: dict[str, Any]) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        write(folder / "data.json", [{"image": name, **form} for name in photos(folder / "photos")])

    return save


FORMATS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "easy-VQA": ("easy_vqa", easy_vqa),
    "metadata": ("folder", with_metadata),
    "COCO": ("coco", coco),
    "Karpathy": ("karpathy", karpathy),
    "M3IT": ("m3it", m3it),
    "WebDataset": ("webdataset", webdataset),
    "save_to_disk": ("hf", saved_to_disk),
    "parquet": ("parquet", parquet),
    "a text beside each": ("folder", texts_beside),
    "class folders": ("parquet", class_folders),
    "LLaVA": ("llava", rows_of({"conversations": CHAT})),
    "messages": ("messages", rows_of({"messages": TURNS})),
    "texts": ("texts", rows_of({"texts": [{"user": "What is it?", "assistant": "a cat"}]})),
    "prompt and completion": ("prompt_completion", rows_of({"prompt": "What is it?", "completion": "a cat"})),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_becomes_a_recipe_that_trains(visgraft: Visgraft, folder: Path, tmp_path: Path, name: str) -> None:
    source, save = FORMATS[name]
    save(tmp_path / "data")
    recipe = tmp_path / "recipe.yaml"
    models = ("--vision", folder / "tiny-clip", "--language", folder / "tiny-llama")
    written = visgraft("init", "--data", tmp_path / "data", "-o", recipe, *models)
    assert (written.status, written.err) == (0, "")
    assert f"source: {source}" in recipe.read_text()
    settings = ("train.max_steps=1", "train.precision=fp32", f"output={tmp_path / 'runs'}")
    trained = visgraft("train", recipe, *(part for setting in settings for part in ("--set", setting)))
    assert trained.status == 0, trained.err
    assert (Path(trained.out.strip()) / "model" / "config.json").is_file()
