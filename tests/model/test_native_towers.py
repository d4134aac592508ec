"""Towers that take patches in a form of their own, tiny: each image alone, beside others, and through its processor."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from torch import Tensor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.tiny import bare_language, randomise
from tests.versions import since
from visgraft.data.images.pixels import make_pixels, stack_frames
from visgraft.errors import ModelError, UnsupportedModelError
from visgraft.model.tower import build_tower, model_class, vision_tower_config
from visgraft.model.vision import VisionSettings, encode, measure
from visgraft.model.vision_inputs import count_tokens, dummy_inputs, patch_form
from visgraft.model.vlm import VisionLanguageModel

SETTINGS = VisionSettings()
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


def tower_config(model_type: str, **changes: Any) -> Any:
    """Make the tower's config of a checkpoint of this type, tiny."""
    kind = type(vision_tower_config(CONFIG_MAPPING[model_type]()))
    return kind(**{**SMALL, **changes})


# model type -> (config, form of its patches, patches or pixels that one token is made of, width of a token)
TOWERS: dict[str, tuple[dict[str, Any], str, int, int]] = {
    "kimi_k25": ({"patch_size": 4, "pos_emb_height": 8, "pos_emb_width": 8}, "squares", 4, 4 * 32),
    "paddleocr_vl": ({"patch_size": 4, "image_size": 32}, "row of squares", 1, 32),
    "muse_glimmer": ({"patch_size": 4, "layer_types": ["full_attention"] * 2}, "flat", 4, 4 * 32),
    "inkling2": ({"patch_size": 4, "text_hidden_size": 24, "projection_hidden_dim": 40}, "coloured squares", 1, 24),
    "minicpmv4_6": ({"patch_size": 4, "image_size": 32, "insert_layer_id": 0}, "strip", 4, 32),
    "siglip2": ({"patch_size": 4, "num_patches": 64}, "picture", 1, 32),
    "pix2struct": ({"patch_embed_hidden_size": 48, "d_ff": 48, "d_kv": 16, "seq_len": 256}, "picture", 1, 32),
}


SINCE = {
    "inkling2": since("transformers", "5.23", "has no Inkling 2"),
    "minicpmv4_6": since("transformers", "5.19", "its MiniCPM-V cuts pictures that are not square wrongly"),
}


def towers(names: Iterable[str]) -> list[Any]:
    return [pytest.param(name, marks=SINCE.get(name, ())) for name in names]


@pytest.fixture(params=towers(TOWERS))
def tower(request: pytest.FixtureRequest) -> Any:
    name = request.param
    config = tower_config(name, **TOWERS[name][0])
    with torch.random.fork_rng(devices=[]):
        return name, randomise(build_tower(config), seed=2).eval()


@torch.no_grad()
def test_two_images_of_unequal_size_are_each_as_alone(tower: Any) -> None:
    name, vision = tower
    _, form, extent, width = TOWERS[name]
    shape = measure(vision.config, settings=SETTINGS)
    assert (patch_form(vision.config), shape.extent_per_token, shape.width) == (form, extent, width)
    generator = torch.Generator().manual_seed(0)
    images = [dummy_inputs(vision.config, image_size=32, device="cpu", stretch=times) for times in (1, 2)]
    for image in images:
        image["pixel_values"] = torch.randn(image["pixel_values"].shape, generator=generator)
    both = stack_frames(images)
    counts = count_tokens(both, shape.num_tokens, extent_per_token=shape.extent_per_token).tolist()
    assert counts[1] == 2 * counts[0] > 1
    model = VisionLanguageModel.from_parts(vision, bare_language("llama", max_position_embeddings=512))
    together, real = model.image_prefix(**both)
    for row, (image, count) in enumerate(zip(images, counts, strict=True)):
        alone, own = model.image_prefix(**image)
        assert int(own.sum()) == count == int(real[row].sum())
        assert torch.allclose(together[row][real[row]], alone[0][own[0]], atol=1e-4)


@torch.no_grad()
def test_what_a_tower_gives_is_what_its_own_class_gives(tower: Any) -> None:
    name, vision = tower
    inputs = dummy_inputs(vision.config, image_size=32, device="cpu")
    inputs["pixel_values"] = inputs["pixel_values"] + 0.1 * torch.randn(inputs["pixel_values"].shape)
    own = _own_arguments(name, inputs)
    output = vision(**own)
    features = encode(vision, inputs, settings=SETTINGS)
    shape = measure(vision.config, settings=SETTINGS)
    expected = output.pooler_output.reshape(-1, shape.width) if shape.is_pooled else output.last_hidden_state
    assert torch.equal(features.reshape(-1, shape.width), expected.reshape(-1, shape.width))


def _own_arguments(name: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Write the arguments of `forward` as the documentation of the class does."""
    patches = inputs["pixel_values"][0]
    places = inputs.get("image_position_ids")
    match name:
        case "kimi_k25":
            return {"pixel_values": patches.view(-1, 3, 4, 4), "grid_thw": inputs["image_grid_thw"]}
        case "paddleocr_vl":
            return {"pixel_values": patches.view(1, -1, 3, 4, 4), "grid_thw": inputs["image_grid_thw"]}
        case "muse_glimmer":
            return {"pixel_values": patches, "grid_thw": inputs["image_grid_thw"]}
        case "inkling2":
            return {"pixel_values": patches.view(-1, 8, 8, 3), "image_grid_thw": inputs["image_grid_thw"]}
        case "minicpmv4_6":
            strip = torch.cat(list(patches.view(-1, 3, 4, 4)), dim=-1)[None]
            return {"pixel_values": strip, "target_sizes": inputs["target_sizes"]}
        case "pix2struct":
            assert places is not None
            rows, columns = places[..., 1:] + 1, places[..., :1] + 1
            return {"flattened_patches": torch.cat([rows, columns, inputs["pixel_values"]], dim=-1)}
    return inputs


PROCESSORS: dict[str, Any] = {
    "paddleocr_vl": lambda: hf.PaddleOCRVLImageProcessorPil(
        patch_size=4, merge_size=2, size={"shortest_edge": 64, "longest_edge": 1024}
    ),
    "minicpmv4_6": lambda: hf.MiniCPMV4_6ImageProcessorPil(patch_size=4, scale_resolution=32, max_slice_nums=4),
    "pix2struct": lambda: hf.Pix2StructImageProcessorPil(patch_size={"height": 4, "width": 4}, max_patches=40),
    "siglip2": lambda: hf.Siglip2ImageProcessorPil(patch_size=4, max_num_patches=40),
}


@torch.no_grad()
@pytest.mark.parametrize("name", towers(PROCESSORS))
def test_a_towers_own_image_processor_feeds_it_exactly(name: str) -> None:
    image_processor = PROCESSORS[name]()
    config = tower_config(name, **TOWERS[name][0])
    with torch.random.fork_rng(devices=[]):
        vision = randomise(build_tower(config), seed=2).eval()
    rng = np.random.default_rng(0)
    for height, width in ((30, 40), (64, 40), (48, 90)):
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        made: Any = image_processor(images=[image], return_tensors="pt")
        inputs = make_pixels(image_processor, [image])
        shape = measure(vision.config, settings=SETTINGS)
        counts = count_tokens(inputs, shape.num_tokens, extent_per_token=shape.extent_per_token).tolist()
        ours = torch.cat(
            [row[:count] for row, count in zip(encode(vision, inputs, settings=SETTINGS), counts, strict=True)]
        )
        if name == "pix2struct":
            own = vision(made["flattened_patches"], attention_mask=made["attention_mask"]).last_hidden_state
            own = own[made["attention_mask"].bool()]
        elif name == "siglip2":
            arguments = {key: made[key] for key in ("pixel_values", "spatial_shapes")}
            own = vision(**arguments, pixel_attention_mask=made["pixel_attention_mask"]).last_hidden_state
            own = own[made["pixel_attention_mask"].bool()]
        elif name == "minicpmv4_6":
            assert len(counts) == len(made["target_sizes"])
            own = vision(made["pixel_values"], target_sizes=made["target_sizes"]).last_hidden_state[0]
        else:
            own = vision(made["pixel_values"][None], grid_thw=made["image_grid_thw"]).last_hidden_state
        assert torch.allclose(ours, own.reshape(ours.shape), atol=1e-4), (height, width)


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [
        ("florence2", "Florence2VisionBackbone"),
        pytest.param(  # whose config names two encoders, one behind the other
            "deepseek_ocr2", "DeepseekOcr2VisionModel", marks=since("transformers", "5.22", "names another config")
        ),
        pytest.param(  # no head: "For" begins another word
            "pp_formulanet", "PPFormulaNetVisionModel", marks=since("transformers", "5.23", "names another config")
        ),
        ("sam", "SamVisionModel"),
        ("qwen2_5_vl", "Qwen2_5_VisionTransformerPretrainedModel"),
    ],
)
def test_the_class_that_sees_is_found_beside_its_config(model_type: str, expected: str) -> None:
    assert model_class(vision_tower_config(CONFIG_MAPPING[model_type]())).__name__ == expected


def test_a_tower_without_a_class_is_not_taken_for_the_model_around_it() -> None:
    config = vision_tower_config(CONFIG_MAPPING["idefics"]())
    with pytest.raises(UnsupportedModelError, match=r"idefics_vision: transformers has no class that makes features"):
        measure(config, settings=SETTINGS)


@torch.no_grad()
def test_a_grid_that_may_be_left_out_is() -> None:
    config = hf.RadioConfig(**SMALL, patch_size=4, image_size=32, max_img_size=64)
    assert patch_form(config) == "picture"
    vision = randomise(build_tower(config), seed=2).eval()
    pixels = torch.randn(2, 3, 32, 32)
    assert torch.equal(encode(vision, {"pixel_values": pixels}, settings=SETTINGS), vision(pixels).last_hidden_state)


def test_a_tower_that_needs_more_than_an_image_names_it() -> None:
    config = vision_tower_config(CONFIG_MAPPING["mllama"]())
    with pytest.raises(ModelError, match="MllamaVisionModel needs aspect_ratio_ids, aspect_ratio_mask, which visgraft"):
        measure(config, settings=SETTINGS)
