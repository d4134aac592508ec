"""Which square of the picture each image token covers.

In: a model and the pixels of one image. Out: a grid of squares, and the tokens in front of it that lie nowhere.

    squares = find_patch_grid(model, inputs, num_tokens=prefix.shape[1])     # 14 x 14 behind one class token

Pooled and pixel-shuffled tokens cover the squares of patches that they were made of. A class token, and registers, see
the whole picture and lie nowhere on it.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    """

    num_leading: int
    rows: int
    columns: int
    height: float = 1.0
    width: float = 1.0

    def place(self, index: int) -> tuple[int, int] | None:
        """Give (row, column) of an image token, None where it lies nowhere."""
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
    is_native = "spatial_shapes" in vision_inputs
    if is_native:
        rows, columns = vision_inputs["spatial_shapes"][0].tolist()
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
