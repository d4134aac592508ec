"""How the cost of a training step grows: with an image's tokens, the texts about it, and the images of a step.

    python bench/growth.py                       # writes bench/results/growth.json
    python bench/growth.py --rounds 1 --tiny

One axis at a time, around 197 image tokens, 5 texts an image, 4 images a step; the pair and the texts (10 to 18 tokens)
are those of train_step.py, the number of image tokens is that of a ViT with other patches or pixels. Two variants, with
the kernel that visgraft chooses for the device, in the same rounds:

    rows      a row a text, its image encoded and read again in each row
    shared    what visgraft does by default: an image's texts behind one prefix, rows filled with whole images

Where `rows` would take more than `--most-positions` in all its rows it is left out, and the result says so.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from harness import console, interleave, machine, positive, ratio, write
from train_step import configs, make_data, visgraft_step

MOST_POSITIONS = 21_000


@dataclass(frozen=True)
class Point:
    """The shape of a step."""

    image_tokens: int
    texts: int
    images: int


@dataclass(frozen=True)
class Grid:
    """What is measured: (side, patch) of the pixels behind each number of image tokens, and the values of each axis."""

    center: Point
    pixels: dict[int, tuple[int, int]]
    texts: Sequence[int]
    images: Sequence[int]

    def axes(self) -> dict[str, list[Point]]:
        """Give the points of each axis, the center among them."""
        return {
            "image_tokens": [replace(self.center, image_tokens=value) for value in self.pixels],
            "texts": [replace(self.center, texts=value) for value in sorted({*self.texts, self.center.texts})],
            "images": [replace(self.center, images=value) for value in self.images],
        }


REAL = Grid(
    Point(197, 5, 4),
    pixels={50: (224, 32), 197: (224, 16), 577: (384, 16), 1025: (512, 16)},
    texts=(1, 2, 4, 8, 16, 32),
    images=(1, 4, 16, 64),
)
TINY = Grid(Point(17, 3, 2), pixels={5: (32, 16), 17: (32, 8), 65: (32, 4)}, texts=(1, 2, 8), images=(1, 2))


def measure(point: Point, *, grid: Grid, rounds: int, tiny: bool, most_positions: int) -> dict[str, Any]:
    """Time a step of one shape in both variants; leave out `rows` where it is too large."""
    image = grid.pixels[point.image_tokens]
    vision, language = configs(tiny, image=image)
    data = make_data(point.images, captions=point.texts, side=vision.image_size, vocabulary=language.vocab_size - 1)
    longest = max(len(text) for texts in data.captions for text in texts)
    num_positions = data.num_captions * (point.image_tokens + longest)
    is_left_out = num_positions > most_positions
    console.print(f"[bold]{point}[/]" + (f": rows has {num_positions:,} positions and is left out" * is_left_out))
    steps = {
        name: visgraft_step(data, tiny=tiny, layout=layout, image=image)
        for name, layout in {"rows": "rows", "shared": "filled"}.items()
        if not (name == "rows" and is_left_out)
    }
    measured = interleave(steps, rounds=rounds, units=data.num_captions, unit="texts")
    result: dict[str, Any] = {**asdict(point), "positions_of_rows": num_positions, "variants": measured}
    if is_left_out:
        why = f"{num_positions:,} positions, more than {most_positions:,}"
        return {**result, "shared / rows": None, "rows_left_out": why}
    return {**result, "shared / rows": ratio(measured, slow="rows", fast="shared")}


def main() -> None:
    """Measure every point once and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=positive, default=2)
    parser.add_argument("--most-positions", type=positive, default=MOST_POSITIONS, help="of `rows`, in all its rows")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes: only shows that the script runs")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "growth.json")
    arguments = parser.parse_args()
    grid = TINY if arguments.tiny else REAL
    settings = {"rounds": arguments.rounds, "tiny": arguments.tiny, "most_positions": arguments.most_positions}
    axes = grid.axes()
    points = dict.fromkeys(point for along in axes.values() for point in along)
    measured = {point: measure(point, grid=grid, **settings) for point in points}
    result = {
        "what": "seconds of one training step, and texts per second, along three axes",
        "center": asdict(grid.center),
        "axes": {axis: [measured[point] for point in along] for axis, along in axes.items()},
        "machine": machine(),
    }
    write(result, path=arguments.output)


if __name__ == "__main__":
    main()
