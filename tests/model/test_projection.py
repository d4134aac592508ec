"""The projection against loops and hand-made formulas."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.tiny import assert_close, bare, fresh, random_pixels, randomise
from visgraft.errors import ConfigError, ModelError
from visgraft.model.language import embedding_scale
from visgraft.model.projection import Projection, ProjectionSettings, num_image_tokens, reduced_grid
from visgraft.model.vision import VisionShape

SHAPE = VisionShape(num_tokens=25, width=6, grid=(4, 6), num_leading=1)


def projection(num_frames: int = 0, scale: float = 1.0, **settings: Any) -> Projection:
    torch.manual_seed(0)
    made = Projection(SHAPE, width=8, settings=ProjectionSettings(**settings), num_frames=num_frames, scale=scale)
    randomise(made, seed=1)
    return made


def features(num_images: int = 2) -> Tensor:
    return torch.randn(num_images, 25, 6, generator=torch.Generator().manual_seed(2))


def by_hand(made: Projection, inputs: Tensor) -> Tensor:
    """Compute GIT's linear + LayerNorm, one token at a time."""
    outputs = torch.zeros(*inputs.shape[:-1], 8)
    assert made.norm is not None
    for image in range(inputs.shape[0]):
        for token in range(inputs.shape[1]):
            hidden = made.linear.weight @ inputs[image, token] + made.linear.bias
            centred = hidden - hidden.mean()
            outputs[image, token] = centred / ((centred**2).mean() + 1e-5).sqrt() * made.norm.weight + made.norm.bias
    return outputs


def test_the_default_is_gits_linear_and_layer_norm() -> None:
    made, inputs = projection(), features()
    assert_close(made(inputs), by_hand(made, inputs))
    assert set(made.state_dict()) == {"linear.weight", "linear.bias", "norm.weight", "norm.bias"}


def test_the_mlp_is_two_linears_around_a_gelu() -> None:
    made, inputs = projection(type="mlp"), features()
    hidden = inputs @ made.linear.weight.T + made.linear.bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    assert made.linear_2 is not None
    assert_close(made(inputs), hidden @ made.linear_2.weight.T + made.linear_2.bias)
    assert set(made.state_dict()) == {"linear.weight", "linear.bias", "linear_2.weight", "linear_2.bias"}


@pytest.mark.parametrize("way", ["pool", "pixel_shuffle"])
def test_squares_of_patches_become_one_image_token(way: str) -> None:
    made, inputs = projection(**{way: 2}), features()
    patches = inputs[:, 1:]  # without the class token
    squares = []
    for row in range(0, 4, 2):
        for column in range(0, 6, 2):
            four = [patches[:, (row + r) * 6 + column + c] for r in range(2) for c in range(2)]
            squares.append(sum(four) / 4 if way == "pool" else torch.cat(four, -1))
    assert_close(made(inputs), by_hand(made, torch.stack(squares, 1)))
    assert made.num_tokens == num_image_tokens(SHAPE, ProjectionSettings(**{way: 2})) == 6


def test_pooling_acts_before_an_mlp_too() -> None:
    made, inputs = projection(type="mlp", pool=2), features()
    plain = projection(type="mlp")
    pooled = inputs[:, 1:].view(2, 2, 2, 3, 2, 6).mean((2, 4)).flatten(1, 2)
    assert_close(made(inputs), plain(torch.cat([pooled, pooled], 1))[:, :6])


def test_without_a_reduction_every_token_stays() -> None:
    assert num_image_tokens(SHAPE, ProjectionSettings()) == 25
    assert reduced_grid(SHAPE, ProjectionSettings()) == (4, 6)
    assert projection()(features()).shape == (2, 25, 8)


# --- Frames


def test_a_frame_adds_its_temporal_embedding_before_the_projection() -> None:
    made, inputs = projection(num_frames=3), features(4)
    assert made.temporal_embedding is not None
    frames = [0, 2, -1, 1]
    added = inputs.clone()
    for image, frame in enumerate(frames):
        if frame >= 0:
            added[image] += made.temporal_embedding[frame]
    assert_close(made(inputs, frame_index=torch.tensor(frames)), by_hand(made, added))
    assert_close(made(inputs), by_hand(made, inputs))


def test_temporal_embeddings_start_at_zero() -> None:
    made = Projection(SHAPE, width=8, settings=ProjectionSettings(), num_frames=2)
    assert made.temporal_embedding is not None
    assert not made.temporal_embedding.any()


def test_frames_without_temporal_embeddings_are_alike() -> None:
    made, inputs = projection(), features()
    assert torch.equal(made(inputs, frame_index=torch.tensor([0, 5])), made(inputs))


def test_a_frame_beyond_the_temporal_embeddings_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"a sample has 4 images, the model has temporal embeddings for 3: set"):
        projection(num_frames=3)(features(), frame_index=torch.tensor([0, 3]))


# --- The start


@pytest.mark.parametrize("type", ["linear", "mlp"])
@pytest.mark.parametrize("language", ["llama", "gemma3", "opt_post_norm"])
def test_image_tokens_start_at_the_scale_of_the_token_embeddings(language: str, type: str) -> None:
    torch.manual_seed(0)
    scale = embedding_scale(bare(language))
    shape = VisionShape(num_tokens=64, width=256, grid=(8, 8), num_leading=0)
    made = Projection(shape, width=128, settings=ProjectionSettings(type=type), scale=scale)
    tokens = made(torch.randn(8, 64, 256))
    assert float(tokens.std()) == pytest.approx(scale, rel=0.35)
    if made.norm is not None:
        assert torch.equal(made.norm.weight, torch.full((128,), scale))
        assert float(made.linear.weight.std()) == pytest.approx(0.02, rel=0.05)
        assert not made.linear.bias.any() and not made.norm.bias.any()


def test_a_joined_model_starts_its_projection_at_the_language_models_scale() -> None:
    model = fresh("gemma3")
    model.projection.reset_parameters(embedding_scale(model.language))
    tokens = model.encode_images({"pixel_values": random_pixels(4)})
    ids = torch.arange(96)
    assert float(tokens.std()) == pytest.approx(float(model.get_input_embeddings()(ids).std()), rel=0.1)


def test_features_of_another_dtype_are_taken() -> None:
    assert projection()(features().bfloat16()).dtype == torch.float32


def test_gradients_reach_every_parameter() -> None:
    for settings in ({}, {"type": "mlp"}, {"pixel_shuffle": 2}):
        made = projection(num_frames=2, **settings)
        made(features(), frame_index=torch.tensor([0, 1])).square().sum().backward()
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in made.parameters())


# --- Refusals


@pytest.mark.parametrize("way", ["pool", "pixel_shuffle"])
def test_a_factor_that_does_not_divide_the_grid_is_an_error(way: str) -> None:
    message = rf"model.projection.{way}: got 3, a grid of 4 x 6 patches takes \[1, 2\]"
    with pytest.raises(ConfigError, match=message):
        reduced_grid(SHAPE, ProjectionSettings(**{way: 3}))


def test_pooling_and_pixel_shuffle_together_are_an_error() -> None:
    with pytest.raises(ConfigError, match=r"model.projection: give pool or pixel_shuffle, not both"):
        projection(pool=2, pixel_shuffle=2)


def test_an_unknown_setting_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"model.projection: got \{'poll': 2\}, allowed keys are type, pool"):
        fresh(projection={"poll": 2})


@pytest.mark.parametrize("settings", [{"type": "mpl"}, {"pool": 0}, {"pixel_shuffle": -1}], ids=str)
def test_a_value_that_means_nothing_is_an_error(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"model.projection.\w+: got "):
        fresh(projection=settings)


def test_modules_of_a_projection_are_what_trains() -> None:
    assert {type(module) for module in projection().children()} == {nn.Linear, nn.LayerNorm}
