"""Towers whose image processors are written with torchvision alone: each is fed exactly what they make."""

from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image

from tests.model.test_native_towers import SETTINGS, TOWERS, tower_config
from tests.tiny import randomise
from visgraft.data.images.pixels import made_image_size, make_pixels
from visgraft.data.images.video import join_frames
from visgraft.model.tower import build_tower
from visgraft.model.vision import encode, measure
from visgraft.model.vision_inputs import count_tokens

PROCESSORS: dict[str, Any] = {
    "kimi_k25": lambda: hf.Kimi_K25ImageProcessor(patch_size=4, merge_size=2, max_patches=256),
    "inkling2": lambda: hf.Inkling2ImageProcessor(size={"height": 8, "width": 8}),
    "muse_glimmer": lambda: hf.MuseGlimmerImageProcessor(
        patch_size=4, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 64, "longest_edge": 1024}
    ),
    "paddleocr_vl": lambda: hf.PaddleOCRVLImageProcessor(
        patch_size=4, merge_size=2, size={"shortest_edge": 64, "longest_edge": 1024}
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("name", PROCESSORS)
def test_a_towers_own_image_processor_feeds_it_exactly(name: str) -> None:
    image_processor = PROCESSORS[name]()
    assert made_image_size(image_processor) is None
    with torch.random.fork_rng(devices=[]):
        vision = randomise(build_tower(tower_config(name, **TOWERS[name][0])), seed=2).eval()
    shape = measure(vision.config, settings=SETTINGS)
    rng = np.random.default_rng(0)
    for height, width in ((32, 40), (64, 40)):
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        made: Any = image_processor(images=[image], return_tensors="pt")
        inputs = make_pixels(image_processor, [image])
        [count] = count_tokens(inputs, shape.num_tokens, extent_per_token=shape.extent_per_token).tolist()
        [ours] = encode(vision, inputs, settings=SETTINGS)
        pixels, grid = made["pixel_values"], made["image_grid_thw"]
        own = vision(pixels[None] if name == "paddleocr_vl" else pixels, grid)
        expected = own.pooler_output if shape.is_pooled else own.last_hidden_state
        assert ours.shape == (count, shape.width)
        assert torch.allclose(ours, expected.reshape(ours.shape), atol=1e-4), (height, width)


@torch.no_grad()
def test_the_tiles_that_llama_4_makes_are_pictures_of_their_own() -> None:
    image_processor = hf.Llama4ImageProcessor(
        size={"height": 28, "width": 28}, max_patches=4, resize_to_max_canvas=False
    )
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (56, 84, 3), dtype=np.uint8))
    made: Any = image_processor(images=[image], return_tensors="pt")
    inputs = make_pixels(image_processor, [image])
    assert set(inputs) == {"pixel_values"}
    assert torch.equal(inputs["pixel_values"], made["pixel_values"])
    config = hf.Llama4VisionConfig(
        hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=7,
        vision_output_dim=48, projector_input_dim=48, projector_output_dim=48,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        vision = randomise(build_tower(config), seed=2).eval()
    features = encode(vision, inputs, settings=SETTINGS)
    assert features.shape == (len(made["pixel_values"]), 4, 48)
    assert torch.allclose(features, vision(made["pixel_values"].float()).last_hidden_state, atol=1e-5)


@torch.no_grad()
def test_frames_become_what_qwens_own_video_processor_makes_of_them() -> None:
    sizes = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    limits = {"shortest_edge": 64, "longest_edge": 64 * 64 * 8}
    of_images = hf.Qwen2VLImageProcessor(**sizes, size={"shortest_edge": 64, "longest_edge": 64 * 64})
    of_videos = hf.Qwen2VLVideoProcessor(**sizes, size=limits, do_sample_frames=False)
    rng = np.random.default_rng(0)
    frames = [Image.fromarray(rng.integers(0, 256, (32, 48, 3), dtype=np.uint8)) for _ in range(5)]
    made: Any = of_videos(videos=[np.stack([np.asarray(each) for each in frames])], return_tensors="pt")
    inputs = join_frames(make_pixels(of_images, frames), [True] * 5, depth=2)
    assert inputs["image_grid_thw"].tolist() == [[1, 8, 12]] * 3
    assert made["video_grid_thw"].tolist() == [[3, 8, 12]]
    assert torch.allclose(inputs["pixel_values"].flatten(0, 1), made["pixel_values_videos"], atol=1e-5)
