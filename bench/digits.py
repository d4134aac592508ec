"""Are digits of 8 pixels in a picture of 1,024 read? The starter pair, with tiles and without them, on drawn pages.

    python bench/digits.py                         # about 15 minutes of one core, 1 GB in the cache; runs/digits/
    python bench/digits.py --pages 16 --set train.max_steps=1 -o /tmp/smoke
    python bench/keep_runs.py runs/digits          # what is kept of it in bench/results

A page is grey, 1,024 x 1,024 pixels, and strewn with copies of one digit, each 8 pixels high, lighter or darker than
the paper by chance; all digits have the same amount of ink, so from afar pages are alike. Which digit is it? Chance is
10 %.
`tiles` cuts a page into 16 tiles of 256 x 256 pixels, as it is; `whole` shows the encoder the page in 256 x 256 pixels,
in which a digit is two pixels high.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console

from visgraft.experiment import load_experiment, run_experiment
from visgraft.experiment.display import ExperimentProgress
from visgraft.experiment.variant_results import as_table, results_of
from visgraft.reporting.progress import error_console

SIDE, CELL, GLYPH = 1024, 16, 8  # pixels: of a page, of the squares of which each may hold a digit, of a digit
PAPER, MOST_INK = 128, 127
QUESTION = "Which digit?"
NUM_HELD_OUT = 40

EXPERIMENT: dict[str, Any] = {
    "name": "digits",
    "recipe": {
        "model": {
            "vision": "starter:vision",
            "language": "starter:language",
            "image_size": 256,
            "projection": {"pool": 8},  # one image token a picture, as in easy_vqa
            "image_attention": "causal",  # with several tokens a picture learned sooner, as docs/experiments.md says
            "template": "{prompt}",
            "attention": "eager",
        },
        "train": {
            "projection": "full",
            "language": "lora",
            "lora": {"r": 16, "lora_alpha": 32, "target_modules": ["q_proj", "k_proj", "v_proj"]},
            "learning_rate": {"projection": 1.0e-2, "language": 2.0e-3},
            "warmup_steps": 4,
            "epochs": 9,
            "precision": "bf16",
            "cache_vision": "disk",
            "text_tokens_per_step": 48,  # 8 pages
            "micro_batch_rows": 8,
            "checkpoint_every_steps": 1000,
            "validate_every_steps": 1000,
            "sample_every_steps": 1000,
            "exact_match_samples": NUM_HELD_OUT,
            "max_new_tokens": 3,
        },
        "data": {
            "train": [{"source": "parquet", "path": "train.jsonl"}],
            "validation": [{"source": "parquet", "path": "held_out.jsonl"}],
        },
    },
    "variants": {
        "tiles": {"model.tiles.max": 16},
        "whole": {},
    },
}


def glyphs() -> list[NDArray[np.float64]]:
    """Draw the ten digits, [8, 8] each, with the same sum of ink."""
    font = ImageFont.load_default(11)  # digits of 8 pixels, 3 below its top
    drawn = []
    for digit in range(10):
        image = Image.new("L", (GLYPH, GLYPH))
        ImageDraw.Draw(image).text((1, -3), str(digit), font=font, fill=255)
        drawn.append(np.asarray(image) / 255)
        assert drawn[-1][0].any(), "it begins at the top"
        assert drawn[-1][-1].any(), "and is 8 pixels high"
    least = min(each.sum() for each in drawn)
    return [each * (least / each.sum()) for each in drawn]


def draw_page(glyph: NDArray[np.float64], rng: np.random.Generator) -> Image.Image:
    """Strew a page with copies of a digit."""
    values = np.full((SIDE, SIDE), float(PAPER))
    filled = rng.uniform(0.3, 0.7)
    for top in range(0, SIDE, CELL):
        for left in range(0, SIDE, CELL):
            if rng.random() < filled:
                y, x = top + rng.integers(0, CELL - GLYPH + 1), left + rng.integers(0, CELL - GLYPH + 1)
                values[y : y + GLYPH, x : x + GLYPH] += glyph * rng.choice((-1, 1)) * rng.uniform(0.6, 1.0) * MOST_INK
    return Image.fromarray(values.round().astype(np.uint8)).convert("RGB")


def draw_pages(folder: Path, *, number: int) -> Path:
    """Draw pages to learn from and pages held out, and write the experiment beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = glyphs()
    for seed, (name, count) in enumerate((("train", number), ("held_out", NUM_HELD_OUT))):
        rng = np.random.default_rng(seed)
        rows = []
        for index in range(count):
            digit = index % 10
            page = draw_page(drawn[digit], rng)
            if not (folder / f"{name}_{index}.png").exists():  # else what was made of it before can be used
                page.save(folder / f"{name}_{index}.png")
            rows.append({"image": f"{name}_{index}.png", "question": QUESTION, "answer": str(digit)})
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    file = folder / "digits.yaml"
    file.write_text(yaml.safe_dump(EXPERIMENT, sort_keys=False), "utf-8")
    return file


def main() -> int:
    """Draw the pages and run the experiment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=104, help="to learn from")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each variant")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of every run")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/digits"), help="folder of the experiment")
    given = parser.parse_args()
    file = draw_pages(given.output.parent / f"{given.output.name}_pages", number=given.pages)
    experiment = load_experiment(file, seeds=given.seeds, overrides=given.set, output=given.output)
    with ExperimentProgress(error_console()) as progress:
        outcomes = run_experiment(experiment, progress=progress)
    Console().print(as_table(results_of(outcomes)))
    return int(any(outcome.reason is not None for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
