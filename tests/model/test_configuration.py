"""The composite config keeps both parts' own, and refuses what it does not know."""

from pathlib import Path

import pytest
from transformers import CLIPVisionConfig, LlamaConfig

from visgraft.errors import ConfigError
from visgraft.model.configuration import VisionLanguageConfig
from visgraft.model.projection import ProjectionSettings
from visgraft.model.vision import VisionSettings


def test_a_config_comes_back_from_disk(tmp_path: Path) -> None:
    config = VisionLanguageConfig(
        vision_config=CLIPVisionConfig(hidden_size=24),
        text_config=LlamaConfig(hidden_size=32, tie_word_embeddings=True),
        image_attention="causal",
        image_size=64,
        feature_layer=-2,
        keep_class_token=False,
        num_frames=3,
        projection={"type": "mlp"},
        parts={"vision": {"name": "a/b"}},
    )
    config.save_pretrained(tmp_path)
    loaded = VisionLanguageConfig.from_pretrained(tmp_path)
    assert isinstance(loaded.vision_config, CLIPVisionConfig)
    assert isinstance(loaded.text_config, LlamaConfig)
    assert loaded.text_config.tie_word_embeddings
    assert loaded.vision_settings == VisionSettings(64, -2, False)
    assert loaded.projection_settings == ProjectionSettings(type="mlp")
    assert (loaded.image_attention, loaded.num_frames, loaded.parts) == ("causal", 3, config.parts)


def test_each_part_keeps_the_attention_kernel_it_chose() -> None:
    text = LlamaConfig(attn_implementation="eager")
    vision = CLIPVisionConfig(attn_implementation="sdpa")
    config = VisionLanguageConfig(vision_config=vision, text_config=text)
    assert config.text_config._attn_implementation == "eager"
    assert config.vision_config._attn_implementation == "sdpa"


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"model.image_attention: got 'both', allowed are bidirectional, causal"):
        VisionLanguageConfig(image_attention="both")
    with pytest.raises(ConfigError, match=r"model.prefix_at: got 'end', allowed are embeddings, first_layer"):
        VisionLanguageConfig(prefix_at="end")
    with pytest.raises(
        ConfigError, match=r"model.projection: got {'kind': 'mlp'}, allowed keys are type, pool, pixel_"
    ):
        _ = VisionLanguageConfig(projection={"kind": "mlp"}).projection_settings
