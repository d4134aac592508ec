"""Images a second from JPEG files to a batch of tensors, beside plain `datasets` and PyTorch's DataLoader.

    python bench/data.py                             # writes bench/results/data.json
    python bench/data.py --images 64 --rounds 1

640 x 480 JPEGs of quality 90 become 224 px tensors as CLIP wants them, with a caption each, in batches of 32, by two
worker processes. All variants read the same files and give the same batches:

    datasets   a `datasets` image folder, CLIP's image processor and the tokenizer in its transform, DataLoader
    exact      visgraft's reader, encoder and collator; pixels bit for bit those of CLIP's image processor
    quick      the same with `data.exact_pixels: false`, where a byte may differ by 1 of 255
    pillow     decoding, Pillow's resizing and the crop alone: what nothing with exact pixels can be quicker than
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
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

BATCH, WIDTH, HEIGHT, QUALITY, SIDE = 32, 640, 480, 90, 224
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


def main() -> None:
    """Run the variants and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=positive, default=512)
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "data.json")
    arguments = parser.parse_args()
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
    write(result, path=arguments.output)


if __name__ == "__main__":
    main()
