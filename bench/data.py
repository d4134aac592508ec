"""Images a second from JPEG files to a batch of tensors, beside plain `datasets` and PyTorch's DataLoader.

    python bench/data.py                             # writes bench/results/data.json
    python bench/data.py --images 64 --rounds 1
    python bench/data.py --texts 20000               # writes bench/results/data_texts.json

640 x 480 JPEGs of quality 90 become 224 px tensors as CLIP wants them, with a caption each, in batches of 32, by two
worker processes. All variants read the same files and give the same batches:

    datasets   a `datasets` image folder, CLIP's image processor and the tokenizer in its transform, DataLoader
    exact      visgraft's reader, encoder and collator; pixels bit for bit those of CLIP's image processor
    quick      the same with `data.exact_pixels: false`, where a byte may differ by 1 of 255
    pillow     decoding, Pillow's resizing and the crop alone: what nothing with exact pixels can be quicker than

With `--texts`: texts that a process plans a second, and the share of a step that it spends waiting for data, as one
process and as one of eight. Rows are JSON Lines with an image inlined, five texts an image; a step is 2,048 text tokens
a process and takes a twentieth of a second besides, in which the processor is free:

    before     each text of all processes is read and encoded to plan the step, and again where the batch is made
    first      each text is read and encoded once, when the plan gets to it
    counted    plans are made of counts that are known, and a process reads and encodes its own share alone
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from harness import interleave, machine, positive, ratio, write
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPImageProcessorPil, PreTrainedTokenizerFast

from visgraft import Processor
from visgraft.config import SourceSettings
from visgraft.data.batch import Batch
from visgraft.data.sources import Sources, open_sources
from visgraft.errors import BadSampleError
from visgraft.training.plan import Block, Planner, Position
from visgraft.training.steps import LoaderSettings, load_steps

BATCH, WIDTH, HEIGHT, QUALITY, SIDE = 32, 640, 480, 90, 224
TEXTS_PER_IMAGE, STEP_TOKENS, STEP_S = 5, 2048, 0.05
WARM_UP_STEPS, WAITED_STEPS = 6, 20
CAPTION = "a cat on a sofa beside a large window"


def write_images(folder: Path, *, number: int) -> None:
    """Write photos of the right size and weight (about 100 kB each), and a caption for each."""
    rng = np.random.default_rng(0)
    lines = []
    for index in range(number):
        coarse = Image.fromarray(rng.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8))
        name = f"{index:06d}.jpg"
        coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(folder / name, quality=QUALITY)
        lines.append(json.dumps({"file_name": name, "text": CAPTION}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer of whole words."""
    words = {word: index for index, word in enumerate(["</s>", "<unk>", *sorted(set(CAPTION.split()))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>", unk_token="<unk>")


class Encoded(Dataset[Batch]):
    """Batches of visgraft, read, encoded and collated in the worker."""

    def __init__(self, sources: Sources, processor: Processor, *, exact: bool) -> None:
        self.sources, self.processor, self.exact = sources, processor, exact

    def __getitem__(self, indices: list[int]) -> Batch:
        torch.set_num_threads(1)
        encode, sources = self.processor.encode, self.sources
        return self.processor.collate([encode(sources[i], exact_pixels=self.exact, as_bytes=True) for i in indices])


def visgraft_pass(folder: Path, *, exact: bool, num_workers: int) -> Callable[[], None]:
    """Make a pass over all images with visgraft."""
    sources = open_sources([SourceSettings("folder", path=str(folder))])
    processor = Processor.from_parts(CLIPImageProcessorPil(), make_tokenizer(), num_image_tokens=197)
    chunks = [list(range(first, min(first + BATCH, len(sources)))) for first in range(0, len(sources), BATCH)]
    dataset = Encoded(sources, processor, exact=exact)

    def run() -> None:
        loader = DataLoader(dataset, sampler=chunks, batch_size=None, num_workers=num_workers)
        batches = (processor.finish(batch) for batch in loader)
        total = sum(len(batch.vision_inputs["pixel_values"]) for batch in batches)
        assert total == len(sources)

    return run


def datasets_pass(folder: Path, *, cache: Path, num_workers: int) -> Callable[[], None]:
    """Make a pass over all images with `datasets` and the DataLoader, as their documentation shows it."""
    data = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train", cache_dir=str(cache))
    image_processor, tokenizer = CLIPImageProcessorPil(), make_tokenizer()

    def transform(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        torch.set_num_threads(1)
        images = [image.convert("RGB") for image in rows["image"]]
        pixels = image_processor(images=images, return_tensors="pt")["pixel_values"]
        return {"pixel_values": list(pixels), "input_ids": [tokenizer(text)["input_ids"] for text in rows["text"]]}

    def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
        texts = tokenizer.pad({"input_ids": [sample["input_ids"] for sample in samples]}, return_tensors="pt")
        return {"pixel_values": torch.stack([sample["pixel_values"] for sample in samples]), **texts}

    data.set_transform(transform)

    def run() -> None:
        loader = DataLoader(data, batch_size=BATCH, num_workers=num_workers, collate_fn=collate)
        assert sum(len(batch["pixel_values"]) for batch in loader) == len(data)

    return run


class Resized(Dataset[int]):
    """Images decoded, resized by Pillow and cropped; nothing is made of them."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __getitem__(self, indices: list[int]) -> int:
        for index in indices:
            with Image.open(self.paths[index]) as image:
                width, height = WIDTH * SIDE // HEIGHT, SIDE
                left = (width - SIDE) // 2
                image.resize((width, height), Image.Resampling.BICUBIC).crop((left, 0, left + SIDE, height)).load()
        return len(indices)


def pillow_pass(folder: Path, *, num_workers: int) -> Callable[[], None]:
    """Make a pass over all images with Pillow alone."""
    paths = sorted(folder.glob("*.jpg"))
    chunks = [list(range(first, min(first + BATCH, len(paths)))) for first in range(0, len(paths), BATCH)]

    def run() -> None:
        loader = DataLoader(Resized(paths), sampler=chunks, batch_size=None, num_workers=num_workers)
        assert sum(loader) == len(paths)

    return run


class AsBefore(Planner):
    """A planner that encodes each text to see how long it is, and forgets it."""

    def look(self, cursor: int, *, epoch: int) -> Block:
        """Encode the texts of a group."""
        group = self.group(cursor, epoch=epoch)
        bad: dict[int, str] = {}
        number = 0
        try:
            number = sum(len(dialog.input_ids) for dialog in self.processor.encode_text(self.sample(group)))
        except BadSampleError as error:
            bad[0] = str(error)
        tokens = np.array([number], np.int64)
        return Block(epoch, cursor, tokens, tokens, bad)


def write_rows(path: Path, *, number: int) -> None:
    """Write rows of a question and an answer, five about each image, which is inlined (a small JPEG)."""
    rng = np.random.default_rng(0)
    words = CAPTION.split()
    with path.open("w") as file:
        for index in range(number):
            if index % TEXTS_PER_IMAGE == 0:
                pixels = Image.fromarray(rng.integers(0, 256, (28, 28, 3), dtype=np.uint8)).resize((SIDE, SIDE))
                buffer = BytesIO()
                pixels.save(buffer, "JPEG", quality=QUALITY)
                image = base64.b64encode(buffer.getvalue()).decode()
            answer = " ".join(rng.choice(words, size=int(rng.integers(4, 16))))
            row = {"instruction": "", "inputs": f"what is {CAPTION} ?", "outputs": answer, "image_base64_str": [image]}
            file.write(json.dumps(row) + "\n")


def measure_texts(path: Path, *, num_texts: int, rounds: int, num_workers: int) -> dict[str, Any]:
    """Measure planning and waiting, with texts planned in each of the three ways."""
    sources = open_sources([SourceSettings("parquet", path=str(path))])
    processor = Processor.from_parts(CLIPImageProcessorPil(), make_tokenizer(), num_image_tokens=197)

    def planner(kind: type[Planner], number: int) -> Planner:
        sizes = {"seed": 0, "max_dialogs": 8, "text_tokens_per_step": STEP_TOKENS * number}
        return kind(sources, processor, **sizes)

    def plan(chosen: Planner) -> list[Any]:
        return list(chosen.steps(Position(0, 0), epochs=1.0))

    def uncounted(number: int) -> Planner:
        os.environ["VISGRAFT_CACHE"] = tempfile.mkdtemp(dir=path.parent)  # where nothing was kept yet
        return planner(Planner, number)

    counted = uncounted(1)
    plan(counted)
    passes: dict[str, Callable[[], Any]] = {
        "before": lambda: plan(planner(AsBefore, 1)),
        "first": lambda: plan(uncounted(1)),
        "counted": lambda: plan(counted),
    }
    planned = interleave(passes, rounds=rounds, units=num_texts, unit="texts", clock=time.process_time)
    waiting: dict[str, Any] = {}
    for number in (1, 8):
        known = planner(Planner, number)
        plan(known)
        makers = {"before": planner(AsBefore, number), "counted": known}
        makers |= {"first": uncounted(1)} if number == 1 else {}
        waiting[f"one of {number}"] = {
            name: waited(chosen, number=number, num_workers=num_workers) for name, chosen in makers.items()
        }
    plans = {f"{name} / before": ratio(planned, slow="before", fast=name) for name in ("first", "counted")}
    return {"planned": planned, "ratios": plans, "waiting": waiting}


def waited(planner: Planner, *, number: int, num_workers: int) -> dict[str, float]:
    """Take some steps as one of so many processes; say which share of their time goes into waiting for the next."""
    settings = LoaderSettings("shared", 10**6, num_workers=num_workers, num_processes=number, exact_pixels=False)
    steps = iter(load_steps(planner, Position(0, 0), epochs=9.0, settings=settings))
    for _ in range(WARM_UP_STEPS):
        next(steps)
        time.sleep(STEP_S)
    waits = []
    for _ in range(WAITED_STEPS):
        start = time.perf_counter()
        next(steps)
        waits.append(time.perf_counter() - start)
        time.sleep(STEP_S)
    return {
        "wait_s_a_step": round(sum(waits) / len(waits), 4),
        "share": round(sum(waits) / sum(waits, STEP_S * len(waits)), 3),
    }


def main() -> None:
    """Run the variants and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=positive, default=512)
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--texts", type=positive, help="measure so many texts instead of images")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    results = Path(__file__).parent / "results"
    if arguments.texts:
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "rows.jsonl"
            write_rows(path, number=arguments.texts)
            measured = measure_texts(
                path, num_texts=arguments.texts, rounds=arguments.rounds, num_workers=arguments.workers
            )
        what = "texts planned per second of a processor, and the share of a step spent waiting for data"
        result = {"what": what, "texts": arguments.texts, "workers": arguments.workers, **measured}
        write({**result, "machine": machine()}, path=arguments.output or results / "data_texts.json")
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder, cache = Path(scratch) / "images", Path(scratch) / "cache"
        folder.mkdir()
        write_images(folder, number=arguments.images)
        workers = arguments.workers
        passes = {
            "datasets": datasets_pass(folder, cache=cache, num_workers=workers),
            "exact": visgraft_pass(folder, exact=True, num_workers=workers),
            "quick": visgraft_pass(folder, exact=False, num_workers=workers),
            "pillow": pillow_pass(folder, num_workers=workers),
        }
        measured = interleave(passes, rounds=arguments.rounds, units=arguments.images, unit="images")
    ratios = {
        f"{name} / datasets": ratio(measured, slow="datasets", fast=name) for name in ("exact", "quick", "pillow")
    }
    result = {
        "what": "images per second from 640 x 480 JPEG files to collated 224 px tensors",
        "images": arguments.images,
        "workers": arguments.workers,
        "ratios": ratios,
        "variants": measured,
        "machine": machine(),
    }
    write(result, path=arguments.output or results / "data.json")


if __name__ == "__main__":
    main()
