"""The vision tower of a checkpoint: found by structure in configs and in loaded models, and built."""

import json
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as hf

from tests.tiny import LLAMA_LIKE, SQUARE, bare_language, bare_vision
from visgraft import Processor, VisionLanguageModel
from visgraft.errors import CheckpointError, ModelError, UnsupportedModelError
from visgraft.model import vision as module
from visgraft.model.tower import build_tower, find_tower, tower_class, vision_tower_config
from visgraft.model.vision import VisionSettings, _is_channels_last, encode, measure


@pytest.mark.parametrize(
    ("whole", "tower"),
    [
        (hf.CLIPConfig, "clip_vision_model"),
        (hf.LlavaConfig, "clip_vision_model"),
        (hf.PaliGemmaConfig, "siglip_vision_model"),
        (hf.Gemma3Config, "siglip_vision_model"),
        (hf.InternVLConfig, "internvl_vision"),
        (hf.Qwen2_5_VLConfig, "qwen2_5_vl_vision"),
        (hf.Qwen2_5OmniConfig, "qwen2_5_omni_vision_encoder"),  # two levels down, beside an audio tower
        (hf.BlipConfig, "blip_vision_model"),
        (hf.FlavaConfig, "flava_image_model"),
        (hf.SamConfig, "sam_vision_model"),
        (hf.Sam2Config, "sam2_hiera_det_model"),  # the backbone inside its vision part
        (hf.Dinov2Config, "dinov2"),
    ],
)
def test_the_tower_of_a_config_is_what_sees_in_it(whole: Any, tower: str) -> None:
    found = vision_tower_config(whole())
    assert found.model_type == tower
    assert vision_tower_config(found) is found


@pytest.mark.parametrize(
    "config",
    [
        lambda: hf.BlipVisionConfig(**SQUARE),
        lambda: hf.AltCLIPVisionConfig(**SQUARE),
        lambda: hf.MetaClip2VisionConfig(**SQUARE),
        lambda: hf.OwlViTVisionConfig(**SQUARE),
        lambda: hf.CLIPSegVisionConfig(**SQUARE),
    ],
)
def test_a_config_that_auto_model_does_not_know_is_built_from_its_own_class(config: Any) -> None:
    made = config()
    assert type(made) not in hf.AutoModel._model_mapping
    assert type(build_tower(made).config) is type(made)
    shape = measure(made, settings=VisionSettings())
    assert (shape.num_tokens, shape.width) == (5, 24)


def test_a_config_of_no_vision_class_is_refused() -> None:
    class Unknown(hf.PreTrainedConfig):
        model_type = "unknown_to_all"

    with pytest.raises(UnsupportedModelError, match=r"unknown_to_all: transformers has no class .* with a Unknown"):
        tower_class(Unknown())


def test_the_tower_of_a_loaded_model_is_its_part_with_that_config() -> None:
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**SQUARE),
        text_config=hf.LlamaConfig(**LLAMA_LIKE),
        image_token_index=3,
    )
    whole = hf.LlavaForConditionalGeneration(config)
    assert type(find_tower(whole).config) is hf.CLIPVisionConfig
    vision = bare_vision("clip")
    assert find_tower(vision) is vision


def test_a_loaded_model_without_the_tower_that_it_names_is_refused() -> None:
    class Empty(torch.nn.Module):
        config = hf.CLIPConfig()

    with pytest.raises(UnsupportedModelError, match="Empty: its config names a CLIPVisionConfig, but no part"):
        find_tower(Empty())  # type: ignore[arg-type]


def test_a_channels_last_map_is_read_on_its_own_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    class LastChannels(hf.ResNetModel):
        def forward(self, pixel_values: torch.Tensor) -> Any:
            return SimpleNamespace(
                last_hidden_state=super().forward(pixel_values).last_hidden_state.permute(0, 2, 3, 1)
            )

    for width in (24, 2):  # 2: all axes of the map of a square image are equal
        config = hf.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 8, 16, width], depths=[1, 1, 1, 1], layer_type="basic", note=str(width)
        )
        expected = measure(config, settings=VisionSettings(image_size=64))
        assert (expected.grid, expected.width, expected.channels_last) == ((2, 2), width, False)
        config.note = f"last {width}"
        with monkeypatch.context() as patched:
            patched.setattr(module, "build_tower", LastChannels)
            shape = measure(config, settings=VisionSettings(image_size=64))
            assert (shape.grid, shape.width, shape.channels_last) == ((2, 2), width, True)
            model = LastChannels(config).eval()
            pixels = torch.randn(2, 3, 64, 64)
            features = module.encode(model, {"pixel_values": pixels}, settings=VisionSettings(image_size=64))
            assert torch.equal(features, model(pixels).last_hidden_state.flatten(1, 2))


def test_a_map_whose_axes_nothing_tells_is_refused() -> None:
    def stuck() -> torch.Size:
        raise ValueError("only square images")

    with pytest.raises(UnsupportedModelError, match=r"map of shape \[7, 7, 7\], and nothing tells which axis"):
        _is_channels_last(torch.Size((7, 7, 7)), stuck, "Cube")


def test_a_backbone_gives_its_last_map() -> None:
    config = hf.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 24], depths=[1, 1, 1, 1], layer_type="basic", out_indices=[2, 4]
    )
    backbone = hf.ResNetBackbone(config).eval()
    pixels = torch.randn(1, 3, 64, 64)
    features = encode(backbone, {"pixel_values": pixels}, settings=VisionSettings(image_size=64))
    assert torch.equal(features, backbone(pixels).feature_maps[-1].flatten(2).transpose(1, 2))


@pytest.mark.skipif(find_spec("timm") is not None, reason="timm is installed")
def test_an_encoder_of_timm_without_timm_says_what_to_install(tmp_path: Path) -> None:
    values = {"model_type": "timm_wrapper", "architecture": "vit_tiny_patch16_224", "num_classes": 0}
    (tmp_path / "config.json").write_text(json.dumps(values))
    for make in (VisionLanguageModel.from_parts, Processor.from_parts):
        with pytest.raises(CheckpointError, match=r"requires the timm library, which is not installed; run `pip"):
            make(tmp_path, bare_language("llama"))


@pytest.mark.skipif(find_spec("natten") is not None, reason="natten is installed")
def test_an_encoder_that_needs_a_library_is_refused_as_it_is_measured() -> None:
    with pytest.raises(UnsupportedModelError, match="ImportError: DinatModel requires the natten library"):
        measure(hf.DinatConfig(), settings=VisionSettings())


@pytest.mark.parametrize("kind", [hf.VideoMAEConfig, hf.TimesformerConfig, hf.VivitConfig])
def test_an_encoder_of_videos_names_what_it_needs(kind: Any) -> None:
    config = kind(image_size=32, patch_size=16, hidden_size=24, num_attention_heads=2, intermediate_size=48)
    with pytest.raises(ModelError, match=r"needs pixel_values of several frames at once, which visgraft does not make"):
        measure(config, settings=VisionSettings())
