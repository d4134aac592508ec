"""Draw the lengths of texts that the GPU ladder trains on: captions as COCO's, and a mix as M3IT's.

    python bench/make_lengths.py                 # writes bench/lengths/coco.json and bench/lengths/m3it.json

Neither dataset is here, so nothing was counted: lengths are drawn, always the same, around what is published. COCO has
five captions an image, of 8 words or more and 10.5 on average (Chen et al. 2015, arXiv 1504.00325), which is about 14
tokens with start, full stop and end. The mix has the tasks of the set `git-llm` in the shares in which M3IT's card
counts their rows. How many rows are about one image and how long texts are is estimated for each task (`TASKS_LIKE`);
instructions stand in every prompt, as M3IT writes them. `REPEATS` was set so that a text takes 129 positions with 197
image tokens, which is what GIT-LLM's 1,361,650 rows are said to take once they share their images.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from visgraft.data.readers.m3it_tasks import NAMED_SETS, TASKS

FOLDER = Path(__file__).parent / "lengths"
NUM_IMAGES = 512
IMAGE_TOKENS = 197
REPEATS = 1.29  # times the rows about an image that TASKS_LIKE estimates, where those are more than one

# task -> rows about one image, tokens of a prompt with its instruction, tokens of an answer
TASKS_LIKE: dict[str, tuple[float, int, int]] = {
    "coco": (5, 22, 14),
    "textcap": (5, 24, 16),
    "image-paragraph-captioning": (1, 24, 80),
    "coco-goi": (1, 45, 4),
    "coco-text": (6, 40, 5),
    "imagenet": (1, 40, 6),
    "coco-itm": (1, 50, 3),
    "snli-ve": (1, 60, 4),
    "mocheg": (1, 200, 4),
    "iqa": (1, 40, 3),
    "vqa-v2": (1, 30, 3),
    "shapes": (1, 35, 3),
    "docvqa": (4, 35, 7),
    "ocr-vqa": (1, 35, 8),
    "st-vqa": (1.4, 33, 5),
    "text-vqa": (1.6, 33, 5),
    "gqa": (1, 33, 12),
    "okvqa": (1, 32, 4),
    "a-okvqa": (1, 60, 30),
    "viquae": (1, 45, 6),
    "clevr": (2, 48, 3),
    "vcr": (1.3, 110, 20),
    "visual-mrc": (1.5, 45, 14),
    "visual-dialog": (1, 170, 10),
    "multi30k": (3, 45, 20),
}


def draw_coco(draw: random.Random) -> list[list[list[int]]]:
    """Draw five captions an image, [prompt, answer] each; the prompt is the start token."""
    return [
        [[1, max(11, min(40, round(draw.lognormvariate(2.58, 0.17))))] for _ in range(5)] for _ in range(NUM_IMAGES)
    ]


def draw_m3it(draw: random.Random) -> list[list[list[int]]]:
    """Draw images in the shares of M3IT's tasks, each with its texts, [prompt, answer] each."""
    tasks = NAMED_SETS["git-llm"]
    repeats = {task: max(1.0, TASKS_LIKE[task][0] * REPEATS if TASKS_LIKE[task][0] > 1 else 1) for task in tasks}
    shares = [(TASKS[task].train or 0) / repeats[task] for task in tasks]

    def length(mean: int) -> int:
        return max(2, min(400, round(draw.gauss(mean, mean / 4))))

    images = []
    for task in draw.choices(tasks, weights=shares, k=NUM_IMAGES):
        whole, part = divmod(repeats[task], 1)
        _, prompt, answer = TASKS_LIKE[task]
        images.append([[length(prompt), length(answer)] for _ in range(int(whole) + (draw.random() < part))])
    return images


def positions_of_a_text(images: list[list[list[int]]]) -> float:
    """Say how many positions a text takes with its share of the image."""
    texts = [sum(text) for image in images for text in image]
    return (IMAGE_TOKENS * len(images) + sum(texts)) / len(texts)


DRAWN = {
    "coco": (draw_coco, "drawn, not counted: five captions an image, about 14 tokens each, as COCO's"),
    "m3it": (
        draw_m3it,
        "drawn, not counted: the tasks of M3IT's set git-llm in the shares of their rows, lengths estimated",
    ),
}


def write(folder: Path) -> None:
    """Write both files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (draw, source) in DRAWN.items():
        images = draw(random.Random(0))
        facts = {
            "what": "tokens of each prompt and of its answer (end-of-text counted), image by image",
            "source": source,
            "positions_of_a_text_with_197_image_tokens": round(positions_of_a_text(images), 1),
        }
        (folder / f"{name}.json").write_text(json.dumps({**facts, "images": images}) + "\n")


def main() -> None:
    """Write both files where they are committed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=FOLDER)
    write(parser.parse_args().output)


if __name__ == "__main__":
    main()
