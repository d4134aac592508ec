"""Tiles: which grid an image gets, what is cut, and how many image tokens that makes."""

import numpy as np
import pytest
from PIL import Image

from visgraft.config import TileSettings
from visgraft.data.images.tiles import all_grids, best_grid, cut_image, most_pictures, most_tokens, rows_end


@pytest.mark.parametrize(
    ("size", "most", "grid"),
    [
        ((100, 100), 6, (1, 1)),  # fits into one tile
        ((224, 224), 6, (1, 1)),
        ((230, 230), 6, (1, 1)),  # four tiles would show 5 % more
        ((448, 448), 6, (2, 2)),
        ((1024, 1024), 6, (2, 2)),  # six tiles show no more of a square
        ((1024, 768), 6, (2, 3)),
        ((768, 1024), 6, (3, 2)),
        ((2000, 300), 6, (1, 6)),
        ((2000, 300), 4, (1, 4)),
        ((5000, 5000), 1, (1, 1)),
    ],
)
def test_an_image_gets_the_grid_that_shows_most_of_it(size: tuple[int, int], most: int, grid: tuple[int, int]) -> None:
    assert best_grid(size, side=224, most=most) == grid


def test_no_grid_has_more_tiles_than_allowed() -> None:
    for most in (1, 2, 6, 9):
        grids = list(all_grids(most))
        assert len(grids) == len(set(grids))
        assert all(rows * columns <= most for rows, columns in grids)
        assert {(1, most), (most, 1)} <= set(grids)


def test_tiles_come_in_reading_order_behind_the_whole_image() -> None:
    values = np.zeros((64, 96, 3), np.uint8)
    for row in range(2):
        for column in range(3):
            values[row * 32 : row * 32 + 32, column * 32 : column * 32 + 32] = 10 * (3 * row + column)
    image = Image.fromarray(values)
    cut = cut_image(image, side=32, settings=TileSettings(max=6))
    assert cut.grid == (2, 3)
    assert [picture.size for picture in cut.pictures] == [(32, 32)] * 7
    assert [np.asarray(picture).mean() for picture in cut.pictures[1:]] == [0, 10, 20, 30, 40, 50]
    assert np.asarray(cut.pictures[0]).mean() == pytest.approx(25, abs=1)
    assert cut.ends_row == (False, False, False, True, False, False, True)
    bare = cut_image(image, side=32, settings=TileSettings(max=6, thumbnail=False))
    assert [np.asarray(picture).mean() for picture in bare.pictures] == [0, 10, 20, 30, 40, 50]


def test_a_small_image_and_a_frame_stay_one_picture() -> None:
    settings = TileSettings(max=6)
    small = cut_image(Image.new("RGB", (20, 30)), side=32, settings=settings)
    frame = cut_image(Image.new("RGB", (320, 320)), side=32, settings=settings, is_whole=True)
    for cut in (small, frame):
        assert (cut.grid, len(cut.pictures), cut.ends_row) == ((1, 1), 1, (False,))


@pytest.mark.parametrize("thumbnail", [True, False])
@pytest.mark.parametrize("separator", ["learned", "none"])
def test_no_image_has_more_tokens_than_is_said(thumbnail: bool, separator: str) -> None:
    settings = TileSettings(max=5, thumbnail=thumbnail, separator=separator)  # type: ignore[arg-type]
    for grid in all_grids(5):
        ends = rows_end(grid, settings)
        tokens = 9 * len(ends) + (sum(ends) if separator == "learned" else 0)
        assert tokens <= most_tokens(settings, of_picture=9)
        assert len(ends) <= most_pictures(settings)
    assert most_tokens(None, of_picture=9) == 9
