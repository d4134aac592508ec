"""Every encoder as a sequence of patch features: shapes, order, layers, sizes, and what is refused."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from tests.tiny import IMAGE_SIDE, NUM_TOKENS, SQUARE, VISION_CONFIGS, VISIONS, assert_close, bare_vision, random_pixels
from visgraft import disk_cache
from visgraft.errors import ConfigError, UnsupportedModelError
from visgraft.model import vision as vision_module
from visgraft.model.vision import VisionSettings, encode, measure, vision_tower_config
from visgraft.model.vision_inputs import count_tokens, dummy_inputs, native_image_size

MAPS = ["efficientnet", "convnext", "resnet"]
WITH_CLASS_TOKEN = ["clip", "dinov2", "vit", "beit"]
INTERPOLATING = ["clip", "siglip", "dinov2", "vit", "beit"]


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


def features_of(name: str, pixels: Tensor | None = None, **settings: Any) -> Tensor:
    pixels = random_pixels(2, vision=name) if pixels is None else pixels
    return encode(bare_vision(name), {"pixel_values": pixels}, settings=VisionSettings(**settings))


@pytest.mark.parametrize("name", VISIONS)
def test_features_are_a_sequence_of_the_measured_length_and_width(name: str) -> None:
    features = features_of(name)
    config = VISION_CONFIGS[name]()
    side = IMAGE_SIDE.get(name, 32)
    shape = measure(config, settings=VisionSettings(side))
    assert features.shape == (2, shape.num_tokens, shape.width)
    assert shape.num_tokens == NUM_TOKENS.get(name, 4) or name in MAPS
    assert shape.num_tokens == shape.num_leading + shape.grid[0] * shape.grid[1]
    assert shape.num_leading == (name in WITH_CLASS_TOKEN)


@pytest.mark.parametrize("name", [name for name in VISIONS if name not in MAPS])
def test_a_sequence_is_the_last_hidden_state_with_all_its_tokens(name: str) -> None:
    pixels = random_pixels(2, vision=name)
    assert torch.equal(features_of(name, pixels), bare_vision(name)(pixels).last_hidden_state)


def test_clip_is_read_before_its_last_norm_as_git_llm_reads_it() -> None:
    vision, pixels, caught = bare_vision("clip"), random_pixels(2), []
    vision.encoder.layers[-1].register_forward_hook(lambda *hook: caught.append(hook[2]))
    features = encode(vision, {"pixel_values": pixels}, settings=VisionSettings())
    last = caught[0] if isinstance(caught[0], Tensor) else caught[0][0]
    assert torch.equal(features, last)


@pytest.mark.parametrize("name", MAPS)
def test_a_map_is_read_row_by_row(name: str) -> None:
    pixels = torch.cat([random_pixels(1, vision=name), random_pixels(1, vision=name, seed=1)], -1)  # twice as wide
    features = features_of(name, pixels)
    grid = bare_vision(name)(pixels).last_hidden_state
    rows, columns = grid.shape[-2:]
    assert columns == 2 * rows
    for row in range(rows):
        for column in range(columns):
            assert torch.equal(features[0, row * columns + column], grid[0, :, row, column])


@pytest.mark.parametrize("name", VISIONS)
def test_features_follow_their_patch(name: str) -> None:
    pixels = random_pixels(1, vision=name)
    changed = pixels.clone()
    half = pixels.shape[-1] // 2
    changed[..., half:, :half] += torch.randn(1, 3, half, half, generator=torch.Generator().manual_seed(4))
    amount = (features_of(name, changed) - features_of(name, pixels))[0].abs().mean(-1)
    patches = amount[-4:]  # 2 x 2 of them in every tiny encoder
    assert amount.min() > 0
    if name not in ("efficientnet", "resnet"):  # whose squeeze-and-excitation or wide kernels spread a change
        assert int(patches.argmax()) == 2  # row 1, column 0


@pytest.mark.parametrize("name", WITH_CLASS_TOKEN)
def test_the_class_token_can_be_dropped(name: str) -> None:
    whole, patches = features_of(name), features_of(name, keep_class_token=False)
    assert torch.equal(patches, whole[:, 1:])
    shape = measure(VISION_CONFIGS[name](), settings=VisionSettings(keep_class_token=False))
    assert (shape.num_tokens, shape.num_leading, shape.grid) == (4, 0, (2, 2))


@pytest.mark.parametrize("name", ["siglip", *MAPS])
def test_an_encoder_without_a_class_token_loses_nothing_when_it_is_dropped(name: str) -> None:
    assert torch.equal(features_of(name), features_of(name, keep_class_token=False))


def test_registers_count_among_the_tokens_in_front_of_the_patches() -> None:
    config = hf.Dinov2WithRegistersConfig(**SQUARE, mlp_ratio=2, num_register_tokens=4)
    shape = measure(config, settings=VisionSettings())
    assert (shape.num_tokens, shape.num_leading, shape.grid) == (9, 5, (2, 2))
    vision = hf.AutoModel.from_config(config).eval()
    pixels = random_pixels(1)
    whole = encode(vision, {"pixel_values": pixels}, settings=VisionSettings())
    patches = encode(vision, {"pixel_values": pixels}, settings=VisionSettings(keep_class_token=False))
    assert torch.equal(patches, whole[:, 5:])


@pytest.mark.parametrize("layer", [-2, 0, 1, 2])
@pytest.mark.parametrize("name", ["clip", "siglip", "dinov2", "vit", "beit"])
def test_a_feature_layer_is_what_goes_into_the_next_layer(name: str, layer: int) -> None:
    vision, pixels, entered, left = bare_vision(name), random_pixels(2, vision=name), [], []
    blocks = next(module for module in vision.modules() if isinstance(module, nn.ModuleList) and len(module) == 2)
    for block in blocks:
        block.register_forward_pre_hook(lambda _, arguments: entered.append(arguments[0]))
        block.register_forward_hook(lambda *hook: left.append(hook[2] if isinstance(hook[2], Tensor) else hook[2][0]))
    features = encode(vision, {"pixel_values": pixels}, settings=VisionSettings(feature_layer=layer))
    states = [*entered, left[-1]]
    assert torch.equal(features, states[layer])


@pytest.mark.parametrize("name", MAPS)
def test_an_earlier_layer_of_a_map_is_a_finer_map(name: str) -> None:
    features = features_of(name, feature_layer=-2)
    shape = measure(VISION_CONFIGS[name](), settings=VisionSettings(IMAGE_SIDE[name], feature_layer=-2))
    assert features.shape[1:] == (shape.num_tokens, shape.width)
    assert shape.num_tokens == shape.grid[0] * shape.grid[1] >= 4


@pytest.mark.parametrize(("layer", "count"), [(7, 3), (-4, 3)])
def test_a_feature_layer_that_is_not_there_is_an_error(layer: int, count: int) -> None:
    with pytest.raises(ConfigError, match=rf"model.feature_layer: got {layer}, \w+ has {count} hidden .*-3 to 2"):
        features_of("clip", feature_layer=layer)


# --- Another image size


@pytest.mark.parametrize("name", INTERPOLATING)
def test_another_image_size_makes_another_number_of_tokens(name: str) -> None:
    side = 2 * IMAGE_SIDE.get(name, 32)
    pixels = random_pixels(2, vision=name).repeat(1, 1, 2, 2)
    features = features_of(name, pixels, image_size=side)
    assert features.shape[1] == 16 + (name in WITH_CLASS_TOKEN)
    assert measure(VISION_CONFIGS[name](), settings=VisionSettings(side)).num_tokens == features.shape[1]
    # Four copies of one image: with positions stretched over all of it, no copy looks like another.
    first, last = features[:, -16].clone(), features[:, -16 + 2].clone()
    assert (first - last).abs().max() > 1e-3


@pytest.mark.parametrize("name", MAPS)
def test_a_map_encoder_takes_any_size(name: str) -> None:
    assert measure(VISION_CONFIGS[name](), settings=VisionSettings(96)).num_tokens == 9
    assert features_of(name, torch.randn(1, 3, 96, 96), image_size=96).shape[1] == 9


def test_the_own_size_is_not_interpolated() -> None:
    asked: list[Any] = []
    vision = bare_vision("clip")
    vision.register_forward_pre_hook(lambda _, __, kwargs: asked.append(kwargs), with_kwargs=True)
    for side in (32, 64):
        encode(vision, {"pixel_values": torch.randn(1, 3, side, side)}, settings=VisionSettings(image_size=side))
    assert ["interpolate_pos_encoding" in kwargs for kwargs in asked] == [False, True]


def test_an_image_size_that_the_encoder_cannot_take_is_an_error() -> None:
    class Stubborn(hf.ViTModel):
        def forward(self, pixel_values: Tensor) -> Any:
            raise ValueError("Input image size (48*48) doesn't match model (32*32).")

    config = hf.ViTConfig(**SQUARE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hf.AutoModel, "from_config", lambda config: Stubborn(config))
        with pytest.raises(
            ConfigError, match=r"model.image_size: Stubborn cannot take images of 48 pixels .*size is 32"
        ):
            measure(config, settings=VisionSettings(image_size=48))


# --- Measuring


@pytest.mark.parametrize("name", ["clip", "beit", "efficientnet", "swin"])
def test_measuring_leaves_no_trace(name: str) -> None:
    vision, pixels = bare_vision(name), random_pixels(2, vision=name)
    before = vision(pixels).last_hidden_state
    torch.manual_seed(3)
    measure(VISION_CONFIGS[name](), settings=VisionSettings(feature_layer=-1, keep_class_token=True))
    measure(VISION_CONFIGS[name](), settings=VisionSettings(image_size=pixels.shape[-1]))
    drawn = torch.randn(2)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.randn(2))
    assert torch.equal(bare_vision(name)(pixels).last_hidden_state, before)


def test_a_large_encoder_is_measured_without_its_weights() -> None:
    config = hf.CLIPVisionConfig(hidden_size=4096, num_hidden_layers=64, num_attention_heads=32, patch_size=14)
    shape = measure(config, settings=VisionSettings())
    assert (shape.num_tokens, shape.width) == (257, 4096)  # 20 GB of weights, had they been made


def test_the_vision_tower_of_a_two_tower_checkpoint_is_found() -> None:
    assert vision_tower_config(hf.CLIPConfig()).model_type == "clip_vision_model"
    assert vision_tower_config(hf.SiglipConfig()).model_type == "siglip_vision_model"
    whole, tower = (measure(config, settings=VisionSettings()) for config in (hf.CLIPConfig(), hf.CLIPVisionConfig()))
    assert whole == tower


@pytest.mark.parametrize(("size", "expected"), [(48, 48), ((40, 40), 40), (None, 224)])
def test_the_native_size_is_read_from_the_config(size: Any, expected: int) -> None:
    assert native_image_size(SimpleNamespace(image_size=size)) == expected  # type: ignore[arg-type]


def test_dummy_inputs_are_one_black_image() -> None:
    inputs = dummy_inputs(VISION_CONFIGS["clip"](), image_size=48, device="cpu")
    assert inputs["pixel_values"].shape == (1, 3, 48, 48)
    assert not inputs["pixel_values"].any()


# --- What an encoder may give


def test_features_that_are_neither_a_sequence_nor_a_map_are_refused() -> None:
    class Odd(nn.Module):
        config = SimpleNamespace(image_size=32)

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, pixel_values: Tensor) -> Any:
            return SimpleNamespace(last_hidden_state=pixel_values.mean((1, 2, 3)))

    with pytest.raises(
        UnsupportedModelError, match=r"Odd gives features of shape \[2\]; a sequence \[N, P, D\] or a map"
    ):
        encode(Odd(), {"pixel_values": random_pixels(2)}, settings=VisionSettings())


def test_pixels_take_the_encoders_dtype() -> None:
    vision = bare_vision("clip").bfloat16()
    features = encode(vision, {"pixel_values": random_pixels(2)}, settings=VisionSettings())
    assert features.dtype == torch.bfloat16
    assert_close(features.float(), features_of("clip"), tolerance=0.1)


def test_tokens_are_counted_per_image() -> None:
    pixels = random_pixels(3)
    assert count_tokens({"pixel_values": pixels}, 5).tolist() == [5, 5, 5]
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    assert count_tokens({"pixel_values": torch.zeros(2, 4, 12), "pixel_attention_mask": mask}, 4).tolist() == [3, 1]


def test_an_image_smaller_than_a_patch_is_refused():
    config = hf.CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8
    )
    with pytest.raises(
        ConfigError, match=r"model\.image_size: .* cannot take images of 7 pixels .* its own size is 32"
    ):
        measure(config, settings=VisionSettings(image_size=7))


def test_what_an_encoder_makes_is_measured_once_and_then_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISGRAFT_CACHE", str(tmp_path))
    monkeypatch.setattr(disk_cache, "_FACTS_WORTH_KEEPING_S", 0.0)
    monkeypatch.setattr(vision_module, "_measured", {})
    config, settings = VISION_CONFIGS["efficientnet"](), VisionSettings()
    found = measure(config, settings=settings)
    vision_module._measured.clear()  # as in the next process
    monkeypatch.setattr(vision_module, "_measure", None)
    assert measure(config, settings=settings) == found
