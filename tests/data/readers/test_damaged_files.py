"""2,000 damaged files of every format: a reader gives samples or names bad ones, and nothing else ever happens.

Seeds are plain numbers, so that a failure comes back: `damaged(seed)` is the same file on every machine. Counts and the
time of the slowest file are printed (`pytest -s`).
"""

import base64
import io
import json
import random
import resource
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import pytest
from PIL import Image

from visgraft.config import DataSettings, SourceSettings
from visgraft.data.readers import webdataset
from visgraft.data.readers.tables import write_parquet
from visgraft.data.sources import open_sources
from visgraft.errors import BadSampleError, VisgraftError

FIRST_SEED, NUM_FILES = 20_000, 2_000
MOST_SECONDS = 10.0  # of one file; the slowest takes a fraction of a second
MOST_BYTES_MORE = 400 * 2**20  # that the whole may add to the process


def png() -> bytes:
    Image.new("RGB", (4, 4), (200, 30, 30)).save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()


PNG = png()
CHAT = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Où est-il ?"}]}]
CHAT += [{"role": "assistant", "content": [{"type": "text", "text": "Là."}]}]
SAID = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]
FORMS = [
    {"image": "a.png", "text": "a cat"},
    {"image": "a.png", "question": "What?", "answers": ["a", "b", "a"], "id": 7},
    {"images": ["a.png"], "messages": CHAT},
    {"image": "a.png", "conversations": SAID},
    {"images": [], "texts": [{"user": "Q", "assistant": "A"}]},
    {"prompt": "Q", "completion": "A", "image": "a.png"},
    {"image": "a.png", "dialogs": [[{"prompt": "Q", "answer": "A"}]], "split": "train"},
    {"image_base64_str": [base64.b64encode(PNG).decode()], "instruction": "I", "inputs": "", "outputs": "A"},
]


def rows(rng: random.Random) -> list[dict]:
    form = rng.choice(FORMS)
    return [dict(form) for _ in range(rng.randint(1, 6))]


def json_lines(folder: Path, rng: random.Random) -> list[tuple[str, Path]]:
    path = folder / rng.choice(["train.jsonl", "x.jsonl", "x.json", "x.ndjson"])
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows(rng)), encoding="utf-8")
    return [(source, path) for source in ("parquet", "llava", "messages", "texts", "prompt_completion")]


def json_list(folder: Path, rng: random.Random) -> list[tuple[str, Path]]:
    path, content = folder / "x.json", rows(rng)
    whole = {"info": {}, "data": content} if rng.random() < 0.5 else content
    path.write_text(json.dumps(whole, indent=rng.choice([None, 2])))
    return [("parquet", path), ("messages", path)]


def table(folder: Path, rng: random.Random) -> list[tuple[str, Path]]:
    path = folder / rng.choice(["x.csv", "x.tsv", "metadata.csv"])
    separator = rng.choice(",;\t")
    lines = [separator.join(("file_name", "text")), *(separator.join(("a.png", '"a ""cat"""')) for _ in range(4))]
    path.write_text(rng.choice(["\n", "\r\n", "\r"]).join(lines), encoding=rng.choice(["utf-8", "utf-8-sig", "utf-16"]))
    return [("folder", folder) if path.stem == "metadata" else ("parquet", path)]


def folder_with_metadata(folder: Path, rng: random.Random) -> list[tuple[str, Path]]:
    lines = [{"file_name": name, "text": "a cat"} for name in ("a.png", "train/a.png", "val/a.png")]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return [("folder", folder)]


def texts_beside(folder: Path, rng: random.Random) -> list[tuple[str, Path]]:
    (folder / "a.txt").write_text("a café", encoding="utf-8")
    return [("folder", folder)]


def parquet(folder: Path, rng: random.Random) -> list[tuple[str, Path]]:
    content = rows(rng)
    write_parquet(folder / "x.parquet", [{**row, "image": {"bytes": PNG, "path": None}} for row in content])
    return [("parquet", folder / "x.parquet")]


def saved(folder: Path, rng: random.Random) -> list[tuple[str, Path]]:
    datasets.Dataset.from_list([{"image": "a.png", "text": "a cat"}] * 3).save_to_disk(folder / "saved")
    return [("hf", folder / "saved")]


def tar(folder: Path, rng: random.Random) -> list[tuple[str, Path]]:
    row = json.dumps({"question": "Q", "answer": "A"}).encode()
    members = {"0.png": PNG, "0.txt": b"a cat", "1.png": PNG, "1.mask.png": PNG, "1.json": row, "2.txt": b"alone"}
    with tarfile.open(folder / "x.tar", "w") as opened:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            opened.addfile(entry, io.BytesIO(data))
    return [("webdataset", folder / "x.tar")]


def coco(folder: Path, rng: random.Random) -> list[tuple[str, Path]]:
    images = [{"id": number, "file_name": "a.png"} for number in range(3)]
    captions = [{"image_id": number, "caption": "a cat"} for number in range(3)]
    (folder / "captions_train2017.json").write_text(json.dumps({"images": images, "annotations": captions}))
    return [("coco", folder)]


def karpathy(folder: Path, rng: random.Random) -> list[tuple[str, Path]]:
    entries = [{"filename": "a.png", "split": "train", "sentences": [{"raw": "a cat"}], "cocoid": n} for n in range(3)]
    (folder / "dataset_coco.json").write_text(json.dumps({"images": entries, "dataset": "coco"}))
    return [("karpathy", folder)]


def easy_vqa(folder: Path, rng: random.Random) -> list[tuple[str, Path]]:
    (folder / "train" / "images").mkdir(parents=True)
    (folder / "train" / "questions.json").write_text(json.dumps([["What?", "red", number] for number in range(8)]))
    return [("easy_vqa", folder)]


def m3it(folder: Path, rng: random.Random) -> list[tuple[str, Path]]:
    (folder / "viquae").mkdir()
    (folder / "viquae" / "train.jsonl").write_text("\n".join(json.dumps(FORMS[-1]) for _ in range(3)))
    return [("m3it", folder)]


MAKERS: list[Callable[[Path, random.Random], list[tuple[str, Path]]]] = [
    *(json_lines, json_lines, json_list, json_list, table, table, folder_with_metadata, texts_beside),
    *(parquet, tar, tar, coco, karpathy, easy_vqa, m3it, saved),
]
VALUES = [
    None,
    True,
    3,
    -1.5,
    float("nan"),
    "",
    "x",
    "\ud800",
    "a\0b",
    [],
    [None],
    {},
    {"type": "image"},
    [[[]]],
    "[" * 9,
]


def flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 2, 8, 64])):
        if changed:
            changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def cut(data: bytes, rng: random.Random) -> bytes:
    first, last = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return rng.choice([data[:last], data[first:], data[:first] + data[last:]])


def join(data: bytes, rng: random.Random) -> bytes:
    return rng.choice(
        [data + data, data + flip(data, rng), b"\xef\xbb\xbf" + data, data + b"\0" * 600, cut(data, rng) + data]
    )


def nest(data: bytes, rng: random.Random) -> bytes:
    deep = rng.choice([50, 5_000])
    return rng.choice([b"[" * deep + data, b'{"data":' * deep + data + b"}" * deep, b"[" + data + b"]" * deep])


def odd(data: bytes, rng: random.Random) -> bytes:
    """Put a value of another kind in the place of one that is there."""
    value = json.dumps(rng.choice(VALUES)).encode()
    places = [i for i in range(len(data)) if data[i : i + 1] == b":"]
    if not places:
        return data.replace(b"a cat", value)
    start = rng.choice(places) + 1
    end = min((data.find(mark, start) for mark in (b",", b"}") if data.find(mark, start) > 0), default=len(data))
    return data[:start] + value + data[end:]


DAMAGES = [flip, cut, join, nest, odd]


def damaged(seed: int, folder: Path) -> Iterator[tuple[str, Path]]:
    """Write a file of some format and damage it, or give it another's name; what a recipe would say of it."""
    rng = random.Random(seed)
    (folder / "a.png").write_bytes(PNG)
    named = MAKERS[seed % len(MAKERS)](folder, rng)
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != "a.png")
    file = rng.choice(files)
    if rng.random() < 0.1:
        other = file.with_suffix(rng.choice([".json", ".jsonl", ".csv", ".parquet", ".tar", ".txt"]))
        file.rename(other)
        named += [(source, other if path == file else path) for source, path in named]
    else:
        file.write_bytes(rng.choice(DAMAGES)(file.read_bytes(), rng))
    yield from named


def read_all(source: str, path: Path, split: str) -> Counter[str]:
    """Read everything of a source; what is no good sample and no named bad one raises."""
    try:
        sources = open_sources([SourceSettings(source, path=str(path), split=split)], settings=DataSettings())
    except VisgraftError as error:
        assert str(error).strip()
        return Counter(refused=1)
    found: Counter[str] = Counter()
    for index in range(len(sources)):
        try:
            sample = sources[index]
            assert all(turn.answer.strip() for dialog in sample.dialogs for turn in dialog)
            found["good"] += 1
        except BadSampleError as error:
            assert sources.bad_sample(index, str(error)).where
            assert 0 < len(str(error)) < 400, "a reason is a short line"
            found["bad"] += 1
    return found


def read_stream(path: Path) -> Counter[str]:
    """Read tars from beginning to end, as a stream."""
    try:
        stream = webdataset.read(path, split="train", streaming=True)
        read = [stream.sample(row) for row in stream.rows.read(seed=0, epoch=0, place=None)]
    except VisgraftError:
        return Counter(refused=1)
    return Counter("bad" if isinstance(sample, str) else "good" for sample in read)


def most_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.slow
def test_damaged_files_give_samples_or_named_bad_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VISGRAFT_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()
    before, counts, slowest = most_memory(), Counter(), (0.0, 0)
    for seed in range(FIRST_SEED, FIRST_SEED + NUM_FILES):
        folder = tmp_path / str(seed)
        folder.mkdir()
        start = time.monotonic()
        for number, (source, path) in enumerate(damaged(seed, folder)):
            split = ("train", "validation", "train[:2]", "train[50%:]")[(seed + number) % 7 % 4]
            try:
                counts += read_all(source, path, split)
                if source == "webdataset":
                    counts += read_stream(path)
            except Exception as error:
                raise AssertionError(f"seed {seed}, {source} {split} of {path.name}: {error!r}") from error
        seconds = time.monotonic() - start
        assert seconds < MOST_SECONDS, f"seed {seed} took {seconds:.1f} s"
        slowest = max(slowest, (seconds, seed))
    with capsys.disabled():
        line = f"seeds {FIRST_SEED} to {FIRST_SEED + NUM_FILES - 1}: {dict(counts)}"
        sys.stdout.write(f"\n{line}; slowest {slowest[0]:.2f} s (seed {slowest[1]})\n")
    assert min(counts[kind] for kind in ("good", "bad", "refused")) > 500
    assert most_memory() - before < MOST_BYTES_MORE
