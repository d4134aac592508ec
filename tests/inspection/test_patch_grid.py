"""PatchGrid lie where the pixels are that their image token is made of: found by changing pixels."""

from typing import Any

import pytest
import torch

from tests.tiny import VISIONS, fresh, joined, random_pixels
from visgraft.errors import UnsupportedModelError
from visgraft.inspection.patch_grid import PatchGrid, find_patch_grid


def squares_of(model: Any, pixels: torch.Tensor) -> tuple[PatchGrid, torch.Tensor]:
    tokens = model.image_prefix(pixels)[0]
    return find_patch_grid(model, {"pixel_values": pixels}, num_tokens=tokens.shape[1]), tokens


def extent(squares: PatchGrid, place: tuple[int, int], height: int, width: int) -> tuple[slice, slice]:
    """Give the pixels of a square as the report draws it."""
    step = squares.height * height / squares.rows, squares.width * width / squares.columns
    return tuple(slice(round(at * size), round((at + 1) * size)) for at, size in zip(place, step, strict=True))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("vision", "settings"),
    [
        *[(vision, {"image_size": 64} if vision == "resnet" else {}) for vision in VISIONS],
        ("clip", {"keep_class_token": False}),
        ("clip", {"image_size": 64}),
        ("clip", {"image_size": 64, "projection": {"pool": 2}}),
        ("clip", {"image_size": 64, "projection": {"pixel_shuffle": 2}}),
        ("dinov2", {"image_size": 42}),
        ("efficientnet", {"projection": {"pool": 2}}),
    ],
)
def test_every_image_token_has_one_square_and_every_square_one_token(vision: str, settings: dict[str, Any]) -> None:
    model = fresh("llama", vision, **settings)
    pixels = random_pixels(1, vision=vision)
    if "image_size" in settings:
        pixels = torch.randn(1, 3, settings["image_size"], settings["image_size"])
    squares, tokens = squares_of(model, pixels)
    places = [squares.place(index) for index in range(tokens.shape[1])]
    assert places[: squares.num_leading] == [None] * squares.num_leading
    whole = [(row, column) for row in range(squares.rows) for column in range(squares.columns)]
    assert places[squares.num_leading :] == whole


@pytest.mark.parametrize("settings", [{}, {"projection": {"pool": 2}}, {"projection": {"pixel_shuffle": 2}}])
def test_a_changed_square_changes_its_own_token_alone_in_front_of_the_encoders_attention(
    settings: dict[str, Any],
) -> None:
    """The first hidden state of a ViT mixes nothing: a token moves if and only if its pixels do."""
    model = fresh("llama", "clip", image_size=64, feature_layer=0, keep_class_token=not settings, **settings)
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    squares, before = squares_of(model, pixels)
    for index in range(squares.num_leading, before.shape[1]):
        place = squares.place(index)
        assert place is not None
        changed = pixels.clone()
        rows, columns = extent(squares, place, 64, 64)
        changed[:, :, rows, columns] += torch.randn(changed[:, :, rows, columns].shape)
        moved = (model.image_prefix(changed)[0] - before)[0].abs().amax(-1) > 1e-6
        assert moved.nonzero().flatten().tolist() == [index]


def test_a_rest_thinner_than_a_patch_is_covered_by_no_square() -> None:
    model = fresh("llama", "vit", image_size=40)
    squares, before = squares_of(model, pixels := torch.randn(1, 3, 40, 40))
    assert (squares.rows, squares.columns, squares.height, squares.width) == (2, 2, 0.8, 0.8)
    changed = pixels.clone()
    changed[:, :, 32:] = 9.0
    assert torch.equal(model.image_prefix(changed)[0], before)


def test_native_resolution_takes_its_grid_from_the_image() -> None:
    inputs = {"pixel_values": torch.zeros(1, 9, 3), "spatial_shapes": torch.tensor([[2, 3]])}
    assert find_patch_grid(joined(), inputs, num_tokens=6) == PatchGrid(0, 2, 3)


def test_tokens_that_are_no_grid_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="made 9 image tokens, which are no grid of 2 x 2 patches"):
        find_patch_grid(joined(), {"pixel_values": random_pixels(1)}, num_tokens=9)
