from collections import Counter

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from visgraft.data.images.fast_pixels import FastPixels, fast_pixels
from visgraft.data.images.pixels import finish_pixels, make_pixels

SMALL = {"crop_size": {"height": 32, "width": 32}, "size": {"shortest_edge": 40}}
PROCESSORS = {
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


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_are_bit_for_bit_those_of_the_image_processor(name):
    processor = PROCESSORS[name]()
    fast = fast_pixels(processor)
    assert isinstance(fast, FastPixels) and fast_pixels(processor) is fast
    for width, height in SIZES:
        image = photo(width, height)
        expected = processor(images=[image], return_tensors="pt")["pixel_values"]
        assert torch.equal(make_pixels(processor, [image])["pixel_values"], expected)


@pytest.mark.parametrize("name", ["clip", "siglip", "vit"])
def test_quick_pixels_differ_by_one_level_at_most(name):
    processor = PROCESSORS[name]()
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
    clip = PROCESSORS["clip"]()
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
    processor = PROCESSORS["vit"]()
    fast_pixels(processor)
    monkeypatch.setattr(type(processor), "__call__", lambda *a, **k: calls.update(["asked"]))
    make_pixels(processor, [photo(64, 48)])
    assert not calls


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_that_travel_as_bytes_become_the_same_pixels(name, exact):
    processor = PROCESSORS[name]()
    for width, height in SIZES:
        images = [photo(width, height, seed=seed) for seed in range(2)]
        travelling = make_pixels(processor, images, exact=exact, as_bytes=True)
        whole = make_pixels(processor, images, exact=exact)
        if set(travelling) == {"pixel_bytes"}:
            assert travelling["pixel_bytes"].dtype == torch.uint8 and travelling["pixel_bytes"].is_contiguous()
        assert torch.equal(finish_pixels(processor, travelling)["pixel_values"], whole["pixel_values"])
    assert finish_pixels(processor, {}) == {}


def test_bytes_on_another_device_are_looked_up_there():
    fast = fast_pixels(PROCESSORS["clip"]())
    made = fast.look_up(torch.zeros(2, 32, 32, 3, dtype=torch.uint8, device="meta"))
    assert made.shape == (2, 3, 32, 32) and made.dtype == torch.float32 and made.device.type == "meta"
