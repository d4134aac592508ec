"""Image processors: found, resized to the exact size that was asked for, run, and refused with a reason."""

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from visgraft.data import pixels
from visgraft.data.pixels import load_image_processor, made_image_size, make_pixels, with_image_size
from visgraft.errors import BadSampleError, CheckpointError, ConfigError

# Each with sizes as its checkpoints have them (DINOv2 resizes to 256 and crops to 224, DeiT likewise).
IMAGE_PROCESSORS = {
    "clip": ("CLIPImageProcessorPil", {}),
    "vit": ("ViTImageProcessorPil", {}),
    "siglip": ("SiglipImageProcessorPil", {}),
    "dinov2": ("BitImageProcessorPil", {"size": {"shortest_edge": 256}}),
    "beit": ("BeitImageProcessorPil", {}),
    "deit": ("DeiTImageProcessorPil", {}),
    "efficientnet": ("EfficientNetImageProcessorPil", {}),
    "efficientnet that crops": ("EfficientNetImageProcessorPil", {"do_center_crop": True}),
    "convnext": ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 224}}),
    "levit": ("LevitImageProcessorPil", {}),
    "poolformer": ("PoolFormerImageProcessorPil", {}),
}


class Refuses:
    """AutoImageProcessor as it is in transformers 5.17 where torchvision is missing."""

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        raise ImportError("AutoImageProcessor requires the Torchvision library")


def make(name: str):
    class_name, settings = IMAGE_PROCESSORS[name]
    return getattr(transformers, class_name)(**settings)


@pytest.fixture
def image() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.mark.parametrize("image_size", [32, 400])  # ConvNeXt stops cropping at 384
@pytest.mark.parametrize("name", IMAGE_PROCESSORS)
def test_the_image_size_that_is_asked_for_is_the_size_of_the_pixels(name, image_size, image):
    original = make(name)
    before = original.to_dict()
    changed = with_image_size(original, image_size=image_size)
    for picture in (image, image.rotate(90, expand=True)):
        assert make_pixels(changed, [picture])["pixel_values"].shape == (1, 3, image_size, image_size)
    assert made_image_size(changed) == image_size
    assert original.to_dict() == before


@pytest.mark.parametrize("name", IMAGE_PROCESSORS)
def test_asking_for_the_size_it_has_changes_no_pixel(name, image):
    original = make(name)
    changed = with_image_size(original, image_size=made_image_size(original))
    assert torch.equal(make_pixels(changed, [image])["pixel_values"], make_pixels(original, [image])["pixel_values"])


def test_a_larger_size_cuts_off_the_same_share():
    changed = with_image_size(make("dinov2"), image_size=448)
    assert (changed.size["shortest_edge"], changed.crop_size["height"]) == (512, 448)


def test_pixels_are_those_of_the_image_processor_itself(image):
    image_processor = with_image_size(make("clip"), image_size=32)
    expected = image_processor(images=[image, image.rotate(90, expand=True)], return_tensors="pt")
    made = make_pixels(image_processor, [image, image.rotate(90, expand=True)])
    assert list(made) == ["pixel_values"]
    assert torch.equal(made["pixel_values"], expected["pixel_values"])


def test_no_image_makes_no_pixels():
    assert make_pixels(make("vit"), []) == {}


def test_native_resolution_has_no_image_size():
    image_processor = transformers.Siglip2ImageProcessorPil(max_num_patches=16)
    assert made_image_size(image_processor) is None
    made = make_pixels(image_processor, [Image.new("RGB", (64, 32))])
    assert sorted(made) == ["pixel_attention_mask", "pixel_values", "spatial_shapes"]
    with pytest.raises(ConfigError, match=r"model.image_size: got 32, but Siglip2ImageProcessorPil makes images of"):
        with_image_size(image_processor, image_size=32)


def test_sizes_that_depend_on_the_image_are_refused():
    image_processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, do_center_crop=False)
    with pytest.raises(ConfigError, match=r"\(32, 48\) and \(40, 32\), but all need one square size; set model"):
        made_image_size(image_processor)
    assert made_image_size(with_image_size(image_processor, image_size=32)) == 32


@pytest.mark.parametrize("size", [(1, 101), (101, 1)])
def test_a_line_is_refused_before_it_is_blown_up(size):
    with pytest.raises(BadSampleError, match="image is too narrow"):
        make_pixels(make("clip"), [Image.new("RGB", size)])


def test_a_narrow_image_is_still_an_image():
    image_processor = with_image_size(make("clip"), image_size=8)
    assert make_pixels(image_processor, [Image.new("RGB", (3, 300))])["pixel_values"].shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    "spelling",
    [{}, {"image_processor_type": "CLIPImageProcessorFast"}, {"feature_extractor_type": "CLIPFeatureExtractor"}],
)
@pytest.mark.parametrize("auto_class_refuses", [False, True])
def test_a_saved_image_processor_is_found(spelling, auto_class_refuses, tmp_path, monkeypatch):
    make("clip").save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    settings = json.loads(file.read_text())
    if "feature_extractor_type" in spelling:  # as the first CLIP checkpoints were saved
        del settings["image_processor_type"]
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    file.write_text(json.dumps({**settings, **spelling}))
    if auto_class_refuses:
        monkeypatch.setattr(pixels, "AutoImageProcessor", Refuses)
    found = load_image_processor(tmp_path)
    assert {**found.to_dict(), "feature_extractor_type": ""} == {**make("clip").to_dict(), "feature_extractor_type": ""}


def test_a_folder_without_an_image_processor_says_what_to_add(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(CheckpointError, match=r"has no preprocessor_config.json.*copy that file from the encoder"):
        load_image_processor(tmp_path)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere: found no image processor there"):
        load_image_processor(tmp_path / "nowhere")


def test_an_image_processor_that_needs_a_missing_package_says_so(tmp_path, monkeypatch):
    make("clip").save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "image_processor_type": "UnheardOfImageProcessor"}))
    monkeypatch.setattr(pixels, "AutoImageProcessor", Refuses)
    with pytest.raises(CheckpointError, match="cannot be loaded: UnheardOfImageProcessor needs torchvision"):
        load_image_processor(tmp_path)
