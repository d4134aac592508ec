"""Which square of the picture each image token covers.

In: a model and the pixels of one image. Out: a grid of squares, and the tokens in front of it that lie nowhere.

    squares = find_patch_grid(model, inputs, num_tokens=prefix.shape[1])     # 14 x 14 behind one class token

Where an image is cut into tiles, their grids together are the grid of the picture; the small picture of the whole in
front of them, and the row separators between them, lie nowhere. Pooled and pixel-shuffled tokens cover the squares of
patches that they were made of. A class token, and registers, see the whole picture and lie nowhere on it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from visgraft.errors import UnsupportedModelError
from visgraft.model.projection import reduced_grid
from visgraft.model.vision import measure
from visgraft.model.vlm import VisionLanguageModel


@dataclass(frozen=True)
class PatchGrid:
    """Image tokens on a picture, row by row.

    Attributes:
        num_leading: tokens in front of the squares, which lie nowhere (class token, registers).
        rows: of squares.
        columns: of squares.
        height: share of the picture's height that the squares cover; a rest thinner than a patch is never seen.
        width: the same of its width.
        places: (row, column) of every image token, or None where it lies nowhere; of tiles, which are not row by row.
    """

    num_leading: int
    rows: int
    columns: int
    height: float = 1.0
    width: float = 1.0
    places: tuple[tuple[int, int] | None, ...] | None = None

    def place(self, index: int) -> tuple[int, int] | None:
        """Give (row, column) of an image token, None where it lies nowhere."""
        if self.places is not None:
            return self.places[index]
        return None if index < self.num_leading else divmod(index - self.num_leading, self.columns)


def find_patch_grid(model: VisionLanguageModel, vision_inputs: Mapping[str, Tensor], *, num_tokens: int) -> PatchGrid:
    """Find the squares of one image.

    Args:
        model: which makes the image tokens.
        vision_inputs: `pixel_values` [1, 3, H, W], or patches [1, P, D] with `spatial_shapes` [1, 2].
        num_tokens: image tokens that the model made of it.

    Raises:
        UnsupportedModelError: the number of tokens fits no grid of the encoder's.
    """
    shape = measure(model.vision.config, settings=model.config.vision_settings)
    is_native = shape.extent_per_token > 0 or "spatial_shapes" in vision_inputs
    if is_native:
        rows, columns = native_grid(vision_inputs, shape.extent_per_token)
    else:
        rows, columns = reduced_grid(shape, model.projection.settings)
    num_leading = num_tokens - rows * columns
    if num_leading < 0 or num_leading > shape.num_leading:
        raise UnsupportedModelError(
            f"{model.vision.config.model_type} made {num_tokens} image tokens, which are no grid of {rows} x {columns} "
            "patches: visgraft cannot say where on the picture they lie"
        )
    patch = getattr(model.vision.config, "patch_size", None)
    if is_native or not isinstance(patch, int):
        return PatchGrid(num_leading, rows, columns)
    covered = [
        count * patch / side if count == side // patch else 1.0  # hierarchical encoders merge patches: all is covered
        for count, side in zip(shape.grid, vision_inputs["pixel_values"].shape[-2:], strict=True)
    ]
    return PatchGrid(num_leading, rows, columns, height=covered[0], width=covered[1])


def native_grid(vision_inputs: Mapping[str, Tensor], extent_per_token: int) -> tuple[int, int]:
    """Give rows and columns of the image tokens of one image that keeps its own shape.

    Raises:
        UnsupportedModelError: what says how large it is says no grid.
    """
    merge = max(1, math.isqrt(extent_per_token))
    for name, value in vision_inputs.items():
        if name in ("spatial_shapes", "image_sizes", "target_sizes") or "grid" in name:
            height, width = value.reshape(-1, value.shape[-1])[0, -2:].tolist()
            return height // merge, width // merge
        if name.endswith("position_ids"):
            width, height = (value.reshape(-1, 2).amax(0) + 1).tolist()
            return height // merge, width // merge
    raise UnsupportedModelError("nothing says how large the image is: visgraft cannot say where its tokens lie")


def join_grids(one: PatchGrid, *, num_tokens: int, grid: tuple[int, int], ends_row: Sequence[bool]) -> PatchGrid:
    """Lay the grids of tiles side by side.

    Args:
        one: of each tile.
        num_tokens: of each picture, row separators apart.
        grid: rows and columns of tiles.
        ends_row: of each picture, whether a row separator stands behind it; the first may be the whole image.
    """
    places: list[tuple[int, int] | None] = []
    num_whole = len(ends_row) - grid[0] * grid[1]
    for number, ends in enumerate(ends_row):
        row, column = divmod(number - num_whole, grid[1])
        for index in range(num_tokens):
            inside = None if number < num_whole else one.place(index)
            places.append(inside and (row * one.rows + inside[0], column * one.columns + inside[1]))
        places += [None] * ends
    num_leading = num_whole * num_tokens + one.num_leading
    return PatchGrid(num_leading, grid[0] * one.rows, grid[1] * one.columns, places=tuple(places))
