"""Image processors: given exactly the size that was asked for, run, stacked, and refused with a reason."""

from collections import Counter

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from visgraft.data.images.pixels import (
    FastPixels,
    fast_pixels,
    finish_pixels,
    made_image_size,
    make_pixels,
    stack_frames,
    with_image_size,
)
from visgraft.errors import BadSampleError, ConfigError

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
    with pytest.raises(ConfigError, match=r"model.image_size: got 32, but Siglip2\w+ makes images that keep"):
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


def pixels_of(*values: float) -> dict[str, torch.Tensor]:
    """One 2 x 2 image for each value."""
    return {"pixel_values": torch.stack([torch.full((3, 2, 2), value) for value in values])} if values else {}


def test_single_images_stack_without_a_frame_axis():
    stacked = stack_frames([pixels_of(1.0), pixels_of(2.0)])
    assert list(stacked) == ["pixel_values"]
    assert stacked["pixel_values"][:, 0, 0, 0].tolist() == [1.0, 2.0]


def test_unlike_numbers_of_images_get_a_frame_axis_and_a_mask():
    stacked = stack_frames([pixels_of(1.0), pixels_of(), pixels_of(2.0, 3.0)])
    assert stacked["pixel_values"].shape == (3, 2, 3, 2, 2)
    assert stacked["pixel_values"][..., 0, 0, 0].tolist() == [[1.0, 0.0], [0.0, 0.0], [2.0, 3.0]]
    assert stacked["image_mask"].tolist() == [[True, False], [False, False], [True, True]]


def test_nothing_to_stack_stays_nothing():
    assert stack_frames([{}, {}]) == {}


# --- The fast way

SMALL = {"crop_size": {"height": 32, "width": 32}, "size": {"shortest_edge": 40}}
FAST_PROCESSORS = {
    "clip": lambda: transformers.CLIPImageProcessorPil(**SMALL),
    "siglip": lambda: transformers.SiglipImageProcessorPil(size={"height": 48, "width": 32}),
    "vit": lambda: transformers.ViTImageProcessorPil(size={"height": 32, "width": 32}),
    "efficientnet": lambda: transformers.EfficientNetImageProcessorPil(size={"height": 32, "width": 32}),
    "without resizing": lambda: transformers.ViTImageProcessorPil(do_resize=False),
}
SIZES = ((64, 48), (41, 97), (300, 60), (32, 32), (33, 200))


def photo(width, height, *, seed=0):
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("name", FAST_PROCESSORS)
def test_pixels_are_bit_for_bit_those_of_the_image_processor(name):
    processor = FAST_PROCESSORS[name]()
    fast = fast_pixels(processor)
    assert isinstance(fast, FastPixels) and fast_pixels(processor) is fast
    for width, height in SIZES:
        image = photo(width, height)
        expected = processor(images=[image], return_tensors="pt")["pixel_values"]
        assert torch.equal(make_pixels(processor, [image])["pixel_values"], expected)


@pytest.mark.parametrize("name", ["clip", "siglip", "vit"])
def test_quick_pixels_differ_by_one_level_at_most(name):
    processor = FAST_PROCESSORS[name]()
    fast = fast_pixels(processor)
    level = np.diff(fast.table, axis=1).max()
    for width, height in SIZES:
        image = photo(width, height)
        exact, quick = (make_pixels(processor, [image], exact=exact)["pixel_values"] for exact in (True, False))
        assert (exact - quick).abs().max() <= 1.01 * level


def test_images_of_a_sample_are_stacked_and_an_image_that_is_padded_takes_the_long_way():
    processor = transformers.CLIPImageProcessorPil(**{**SMALL, "size": {"shortest_edge": 20}})
    fast = fast_pixels(processor)
    image = photo(64, 48)
    assert fast is None or fast([image]) is None  # 20 px high, where 32 are wanted
    clip = FAST_PROCESSORS["clip"]()
    images = [photo(64, 48, seed=seed) for seed in range(3)]
    expected = clip(images=images, return_tensors="pt")["pixel_values"]
    assert torch.equal(make_pixels(clip, images)["pixel_values"], expected)


def test_a_processor_that_does_anything_else_is_left_alone():
    convnext = transformers.ConvNextImageProcessorPil(size={"shortest_edge": 32})
    assert fast_pixels(convnext) is None
    expected = convnext(images=[photo(64, 48)], return_tensors="pt")["pixel_values"]
    assert torch.equal(make_pixels(convnext, [photo(64, 48)])["pixel_values"], expected)

    class Inverting(transformers.ViTImageProcessorPil):
        def resize(self, image, *args, **kwargs):
            return super().resize(image[:, ::-1], *args, **kwargs)  # upside down

    assert fast_pixels(Inverting(size={"height": 32, "width": 32})) is None


def test_the_image_processor_itself_is_not_asked_for_every_image(monkeypatch):
    calls = Counter()
    processor = FAST_PROCESSORS["vit"]()
    fast_pixels(processor)
    monkeypatch.setattr(type(processor), "__call__", lambda *a, **k: calls.update(["asked"]))
    make_pixels(processor, [photo(64, 48)])
    assert not calls


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("name", FAST_PROCESSORS)
def test_pixels_that_travel_as_bytes_become_the_same_pixels(name, exact):
    processor = FAST_PROCESSORS[name]()
    for width, height in SIZES:
        images = [photo(width, height, seed=seed) for seed in range(2)]
        travelling = make_pixels(processor, images, exact=exact, as_bytes=True)
        whole = make_pixels(processor, images, exact=exact)
        if set(travelling) == {"pixel_bytes"}:
            assert travelling["pixel_bytes"].dtype == torch.uint8 and travelling["pixel_bytes"].is_contiguous()
        assert torch.equal(finish_pixels(processor, travelling)["pixel_values"], whole["pixel_values"])
    assert finish_pixels(processor, {}) == {}


def test_bytes_on_another_device_are_mapped_there():
    fast = fast_pixels(FAST_PROCESSORS["clip"]())
    made = fast.map_bytes(torch.zeros(2, 32, 32, 3, dtype=torch.uint8, device="meta"))
    assert made.shape == (2, 3, 32, 32) and made.dtype == torch.float32 and made.device.type == "meta"
