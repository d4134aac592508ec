"""Cut an image into tiles of the encoder's own size, so that details are seen as they are.

In: an image and the settings of a recipe's `model.tiles`. Out: pictures of one size, in reading order.

    cut = cut_image(image, side=224, settings=TileSettings(max=6))
    cut.pictures        # the whole image first, small, then its tiles row by row
    cut.ends_row        # True for the last tile of each row

      2 x 3 of an image      w the whole, small; behind c and f a row separator, if there is one
      a b c
      d e f                  tokens: w a b c | d e f |

The grid is that of LLaVA-NeXT (`best_grid`); the image is stretched to it, as by InternVL, so no tile is padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from visgraft.config import TileSettings

ENOUGH = 0.9  # of the most pixels that a grid can show: fewer tiles are then preferred


@dataclass(frozen=True)
class CutImage:
    """An image as pictures of one size.

    Attributes:
        grid: rows and columns of tiles; (1, 1) = the image is one picture.
        pictures: the whole image (if it is shown, and there is more than one tile), then the tiles.
        ends_row: of each picture, whether a row of several tiles ends with it.
    """

    grid: tuple[int, int]
    pictures: tuple[Image.Image, ...]
    ends_row: tuple[bool, ...]


def best_grid(size: tuple[int, int], *, side: int, most: int) -> tuple[int, int]:
    """Choose rows and columns of tiles for an image.

    Of all grids of at most `most` tiles, those that show nearly as many of the image's own pixels as any can; of these
    the one with the fewest tiles, then the one that leaves the least empty (Liu et al. 2024, LLaVA-NeXT).

    Args:
        size: width and height in pixels.
        side: of a tile.
        most: tiles.
    """
    width, height = size

    def shown(grid: tuple[int, int]) -> float:
        scale = min(grid[1] * side / width, grid[0] * side / height, 1.0)
        return width * scale * height * scale

    grids = list(all_grids(most))
    enough = ENOUGH * max(map(shown, grids))
    return min((grid for grid in grids if shown(grid) >= enough), key=lambda grid: (grid[0] * grid[1], -shown(grid)))


def all_grids(most: int) -> Iterator[tuple[int, int]]:
    """List the grids of at most so many tiles."""
    return ((rows, columns) for rows in range(1, most + 1) for columns in range(1, most // rows + 1))


def cut_image(image: Image.Image, *, side: int, settings: TileSettings, is_whole: bool = False) -> CutImage:
    """Cut an image; `is_whole`: leave it one picture (a frame of a video)."""
    rows, columns = (1, 1) if is_whole else best_grid(image.size, side=side, most=settings.max)
    stretched = image.resize((columns * side, rows * side), Image.Resampling.BICUBIC)
    if (rows, columns) == (1, 1):
        return CutImage((1, 1), (stretched,), (False,))
    places = [(column, row) for row in range(rows) for column in range(columns)]
    boxes = [(x * side, y * side, (x + 1) * side, (y + 1) * side) for x, y in places]
    whole = (image.resize((side, side), Image.Resampling.BICUBIC),) if settings.thumbnail else ()
    pictures = (*whole, *map(stretched.crop, boxes))
    return CutImage((rows, columns), pictures, tuple(rows_end((rows, columns), settings)))


def rows_end(grid: tuple[int, int], settings: TileSettings | None) -> list[bool]:
    """Say of each picture of an image whether a row of several tiles ends with it."""
    if grid == (1, 1) or settings is None:
        return [False]
    ends = [column == grid[1] - 1 for _ in range(grid[0]) for column in range(grid[1])]
    return [False, *ends] if settings.thumbnail else ends


def most_pictures(settings: TileSettings | None) -> int:
    """Count the pictures that an image becomes at most."""
    return 1 if settings is None else settings.max + (settings.thumbnail and settings.max > 1)


def most_tokens(settings: TileSettings | None, *, of_picture: int) -> int:
    """Count the image tokens that an image becomes at most, row separators included."""
    if settings is None:
        return of_picture
    separators = settings.max if settings.separator == "learned" and settings.max > 1 else 0
    return most_pictures(settings) * of_picture + separators
