"""What is found out about an encoder before it is joined: random maskers, packed batches, what cannot come back."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from tests.tiny import SQUARE, VISION_CONFIGS, bare_language, bare_vision, random_pixels, randomise
from visgraft.errors import ModelError, UnsupportedModelError
from visgraft.model.checks.encoder import check_encoder
from visgraft.model.tower import build_tower
from visgraft.model.vision import VisionSettings, encode, measure
from visgraft.model.vlm import VisionLanguageModel

SETTINGS = VisionSettings()


def encoder(config: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        return randomise(build_tower(config), seed=2).eval()


@pytest.mark.parametrize("name", VISION_CONFIGS)
def test_ordinary_encoders_take_their_images_together(name: str) -> None:
    side = 64 if name == "resnet" else None
    assert check_encoder(bare_vision(name), settings=VisionSettings(image_size=side)) is False


def test_a_masked_autoencoder_is_told_to_hide_nothing() -> None:
    vision = encoder(hf.ViTMAEConfig(**SQUARE, decoder_num_hidden_layers=1, mask_ratio=0.75))
    pixels = random_pixels(1)
    assert vision(pixels).last_hidden_state.shape[1] == 2  # a class token and one of four patches
    model = VisionLanguageModel.from_parts(vision, bare_language("llama"))
    assert model.vision.config.mask_ratio == 0
    first, again = (model.image_features({"pixel_values": pixels}) for _ in range(2))
    assert first.shape[1] == 5
    assert torch.equal(first, again)
    changed = pixels.clone()
    changed[..., 16:, :16] += 1
    moved = (model.image_features({"pixel_values": changed}) - first)[0].abs().mean(-1)
    assert int(moved[1:].argmax()) == 2  # patches in reading order


def test_an_encoder_that_draws_random_numbers_is_refused() -> None:
    class Noisy(hf.ViTModel):
        def forward(self, pixel_values: Tensor) -> Any:
            return super().forward(pixel_values + torch.randn_like(pixel_values))

    vision = randomise(Noisy(hf.ViTConfig(**SQUARE)), seed=2).eval()
    with pytest.raises(UnsupportedModelError, match=r"Noisy .* other features every time .*draws random numbers"):
        check_encoder(vision, settings=SETTINGS)


def test_an_encoder_that_ignores_its_image_is_refused() -> None:
    class Blind(hf.ViTModel):
        def forward(self, pixel_values: Tensor) -> Any:
            return super().forward(torch.zeros_like(pixel_values))

    with pytest.raises(UnsupportedModelError, match="two different images the same features"):
        check_encoder(Blind(hf.ViTConfig(**SQUARE)).eval(), settings=SETTINGS)


def test_an_encoder_whose_features_are_no_numbers_is_refused() -> None:
    class Broken(hf.ViTModel):
        def forward(self, pixel_values: Tensor) -> Any:
            return SimpleNamespace(last_hidden_state=super().forward(pixel_values).last_hidden_state / 0 * 0)

    with pytest.raises(UnsupportedModelError, match=r"other features every time|no finite numbers"):
        check_encoder(Broken(hf.ViTConfig(**SQUARE)).eval(), settings=SETTINGS)


def test_images_that_change_one_another_go_through_one_at_a_time() -> None:
    class Mixing(hf.ViTModel):
        def forward(self, pixel_values: Tensor) -> Any:
            return super().forward(pixel_values - pixel_values.mean(0, keepdim=True) * (len(pixel_values) > 1))

    vision = randomise(Mixing(hf.ViTConfig(**SQUARE)), seed=2).eval()
    model = VisionLanguageModel.from_parts(vision, bare_language("llama"))
    assert model.config.image_by_image
    pixels = random_pixels(2)
    both = model.image_prefix(pixels)[0]
    for row in range(2):
        assert torch.equal(both[row], model.image_prefix(pixels[row : row + 1])[0][0])


def test_what_could_not_be_loaded_again_is_refused() -> None:
    class Wider(hf.ViTModel):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.extra = nn.Linear(2, 2)

    with pytest.raises(UnsupportedModelError, match=r"Wider .* could not be loaded again: its config makes another"):
        check_encoder(Wider(hf.ViTConfig(**SQUARE)).eval(), settings=SETTINGS)


def test_pixtral_gives_each_image_of_a_batch_its_own_tokens() -> None:
    config = hf.PixtralVisionConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    vision = encoder(config)
    pixels = random_pixels(2)
    assert vision(pixels).last_hidden_state.shape == (1, 32, 24)  # both images in one row
    model = fresh_with(vision)
    both = model.image_prefix(pixels)[0]
    assert both.shape[:2] == (2, 16)
    for row in range(2):
        alone = model.image_prefix(pixels[row : row + 1])[0][0]
        assert (both[row] - alone).abs().max() < 1e-5


def test_pixtral_takes_images_of_several_sizes() -> None:
    config = hf.PixtralVisionConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    model = fresh_with(encoder(config))
    pixels, sizes = random_pixels(2), torch.tensor([[32, 32], [16, 24]])
    prefix, real = model.image_prefix(pixels, image_sizes=sizes)
    assert real.sum(1).tolist() == [16, 6]
    alone = model.image_prefix(pixels[1:, :, :16, :24], image_sizes=sizes[1:])[0][0]
    assert (prefix[1][real[1]] - alone).abs().max() < 1e-5


def fresh_with(vision: Any) -> VisionLanguageModel:
    return VisionLanguageModel.from_parts(vision, bare_language("llama"))


QWEN = hf.Qwen2_5_VLConfig().vision_config


def tiny_qwen() -> Any:
    return type(QWEN)(
        depth=2, hidden_size=32, intermediate_size=48, num_heads=2, out_hidden_size=40, patch_size=4,
        spatial_merge_size=2, temporal_patch_size=2, window_size=16, fullatt_block_indexes=[1],
    )  # fmt: skip


def test_the_tower_of_qwen_is_read_behind_its_merger_with_as_many_tokens_as_each_image_has() -> None:
    model = fresh_with(encoder(tiny_qwen()))
    grids = torch.tensor([[1, 4, 8], [1, 6, 4]])
    patches = torch.randn(2, 32, 3 * 2 * 4 * 4)
    prefix, real = model.image_prefix(patches, image_grid_thw=grids)
    assert real.sum(1).tolist() == [8, 6]
    direct = model.vision(patches[1, :24], grids[1:]).pooler_output
    assert (model.image_features({"pixel_values": patches, "image_grid_thw": grids})[1, :6] - direct).abs().max() < 1e-5
    for row in range(2):
        alone, own = model.image_prefix(patches[row : row + 1], image_grid_thw=grids[row : row + 1])
        assert (alone[0][own[0]] - prefix[row][real[row]]).abs().max() < 1e-5


def test_an_encoder_that_needs_what_no_image_processor_makes_is_refused_by_the_name_of_that() -> None:
    class Needy(hf.ViTModel):
        def forward(self, pixel_values: Tensor, depth_map: Tensor) -> Any:
            return super().forward(pixel_values + depth_map)

    with pytest.raises(ModelError, match="Needy needs depth_map, which visgraft does not make of an image"):
        encode(Needy(hf.ViTConfig(**SQUARE)), {"pixel_values": random_pixels(1)}, settings=SETTINGS)


def test_a_model_that_sees_nothing_is_refused_with_its_reason() -> None:
    with pytest.raises(UnsupportedModelError, match="bert reads text, and its config names no part that only sees"):
        check_encoder(hf.BertModel(hf.BertConfig(**SMALL_TEXT)).eval(), settings=SETTINGS)
    pairs = hf.EfficientLoFTRConfig()
    with pytest.raises(
        UnsupportedModelError, match=r"makes no features of an image of 224 x 224 pixels: \w+: Input must"
    ):
        measure(pairs, settings=SETTINGS)


SMALL_TEXT = {
    "vocab_size": 96, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
}  # fmt: skip
