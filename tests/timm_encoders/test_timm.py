"""Encoders of timm through transformers' wrapper: sizes, axes, pixels, and the way to disk and back."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers as hf
from PIL import Image

from tests.data.made_tokenizers import TOKENIZERS
from tests.tiny import bare_language, randomise
from visgraft.data.images.pixels import fast_pixels, make_pixels
from visgraft.data.sample import Sample, Turn
from visgraft.errors import ConfigError
from visgraft.inference import answer
from visgraft.inference.load import load
from visgraft.model.hf_logging import quiet_transformers
from visgraft.model.vision import VisionSettings, measure
from visgraft.model.vlm import VisionLanguageModel
from visgraft.processor import Processor

# architecture -> (arguments that make it small, side in pixels, tokens, width)
ARCHITECTURES: dict[str, tuple[dict[str, Any], int, int, int]] = {
    "vit_tiny_patch16_224": ({"depth": 2}, 224, 197, 192),
    "vit_base_patch16_siglip_224": ({"depth": 1}, 224, 196, 768),
    "vit_small_patch14_dinov2": ({"depth": 2}, 518, 1370, 384),
    "vit_small_patch16_dinov3": ({"depth": 2}, 256, 261, 384),
    "eva02_tiny_patch14_336": ({"depth": 2}, 336, 577, 192),
    "swin_tiny_patch4_window7_224": ({"depths": (1, 1, 1, 1)}, 224, 49, 768),
    "swinv2_tiny_window8_256": ({"depths": (1, 1, 1, 1)}, 256, 64, 768),
    "convnext_atto": ({"depths": (1, 1, 1, 1)}, 224, 49, 320),
    "mambaout_femto": ({"depths": (1, 1, 1, 1)}, 224, 49, 288),
    "eca_nfnet_l0": ({}, 224, 49, 2304),
    "resnet18": ({}, 224, 49, 512),
    "mobilenetv4_conv_small": ({}, 224, 49, 960),
    "hiera_tiny_224": ({"stages": (1, 1, 1, 1)}, 224, 49, 768),
    "vit_pe_core_tiny_patch16_384": ({"depth": 2}, 384, 577, 192),
    "deit3_small_patch16_224": ({"depth": 2}, 224, 197, 384),
}
CHANNELS_LAST = ("swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "mambaout_femto")
FIXED_SIZE = ("swin_tiny_patch4_window7_224",)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Give the folder of an architecture, as one is that was fetched from the Hub."""
    root = tmp_path_factory.mktemp("timm")

    def make(name: str) -> Path:
        place = root / name
        if not place.is_dir():
            fetched = timm.get_pretrained_cfg(name)
            assert fetched is not None
            config = hf.TimmWrapperConfig(
                architecture=name, model_args=ARCHITECTURES[name][0], pretrained_cfg=fetched.to_dict()
            )
            with quiet_transformers(), torch.random.fork_rng():
                torch.manual_seed(0)
                randomise(hf.AutoModel.from_config(config), seed=1).save_pretrained(place)  # type: ignore[operator]
        return place

    return make


def pixels_of(side: int, number: int = 2) -> torch.Tensor:
    return torch.randn(number, 3, side, side, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_encoder_of_timm_is_joined_saved_and_loaded(name: str, folder: Any, tmp_path: Path) -> None:
    _, side, num_tokens, width = ARCHITECTURES[name]
    language = bare_language("llama", max_position_embeddings=2048)
    model = VisionLanguageModel.from_parts(folder(name), language)
    shape = measure(model.vision.config, settings=VisionSettings())
    assert (shape.num_tokens, shape.width) == (num_tokens, width)
    assert shape.channels_last == (name in CHANNELS_LAST)
    pixels = pixels_of(side)
    both = model.image_prefix(pixels)[0]
    assert both.shape[1] == num_tokens
    alone = model.image_prefix(pixels[1:])[0]
    assert (both[1] - alone[0]).abs().max() < 1e-3 * alone.abs().max()
    model.save_pretrained(tmp_path)
    again = VisionLanguageModel.from_pretrained(tmp_path)
    assert torch.equal(again.image_prefix(pixels)[0], both)


@torch.no_grad()
@pytest.mark.parametrize("name", CHANNELS_LAST)
def test_a_map_with_its_channels_last_is_read_row_by_row(name: str, folder: Any) -> None:
    side = ARCHITECTURES[name][1]
    model = VisionLanguageModel.from_parts(folder(name), bare_language("llama", max_position_embeddings=2048))
    pixels = pixels_of(side, 1)
    grid = model.vision(pixels).last_hidden_state
    features = model.image_features({"pixel_values": pixels})
    columns = grid.shape[2]
    for row, column in ((0, 0), (0, columns - 1), (1, 0), (grid.shape[1] - 1, 2)):
        assert torch.equal(features[0, row * columns + column], grid[0, row, column])


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return TOKENIZERS["opt, llama 3"]()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_pixels_are_those_of_timm_and_come_back_from_disk(
    name: str, folder: Any, tokenizer: Any, tmp_path: Path
) -> None:
    processor = Processor.from_parts(folder(name), tokenizer)
    assert (processor.image_size, processor.num_image_tokens) == ARCHITECTURES[name][1:3]
    image = random_image(300, 200)
    fetched = timm.get_pretrained_cfg(name)
    assert fetched is not None
    transform: Any = timm.data.create_transform(**timm.data.resolve_data_config(fetched.to_dict()))
    pixels = processor(images=image, text="")["pixel_values"]
    assert torch.equal(pixels[0], transform(image))
    processor.save_pretrained(tmp_path)
    again = Processor.from_pretrained(tmp_path)
    assert torch.equal(again(images=image, text="")["pixel_values"], pixels)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto", "resnet18"])
def test_another_image_size_is_made_of_the_same_transform(name: str, folder: Any, tokenizer: Any) -> None:
    if name == "vit_tiny_patch16_224":
        with pytest.raises(ConfigError, match=r"model.image_size: TimmWrapperModel cannot take images of 128 pixels"):
            Processor.from_parts(folder(name), tokenizer, image_size=128)
        return
    processor = Processor.from_parts(folder(name), tokenizer, image_size=128)
    assert processor(images=random_image(300, 200), text="")["pixel_values"].shape == (1, 3, 128, 128)
    assert processor.num_image_tokens == 16


def test_a_model_with_an_encoder_of_timm_answers_from_its_folder(folder: Any, tokenizer: Any, tmp_path: Path) -> None:
    language = bare_language("llama", vocab_size=len(tokenizer), max_position_embeddings=256)
    VisionLanguageModel.from_parts(folder("convnext_atto"), language).save_pretrained(tmp_path)
    Processor.from_parts(folder("convnext_atto"), tokenizer).save_pretrained(tmp_path)
    model, processor = load(tmp_path)
    sample = Sample(images=[random_image(64, 80)], dialogs=[[Turn("What is it?", "")]])
    assert len(answer(model, processor, [sample], max_new_tokens=3)) == 1


def test_tiles_of_an_encoder_of_timm_are_not_cut_off(folder: Any, tokenizer: Any) -> None:
    processor = Processor.from_parts(folder("convnext_atto"), tokenizer, tiles={"max": 4})
    image = random_image(448, 448)
    inputs = processor.make_pixels([image], [image])
    assert inputs["pixel_values"].shape[0] == 5
    upper_left = image.crop((0, 0, 224, 224))
    config: Any = processor.image_processor
    exact = torch.from_numpy(np.asarray(upper_left).copy()).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(config.data_config[key]).view(3, 1, 1) for key in ("mean", "std"))
    assert (inputs["pixel_values"][1] - (exact - mean) / std).abs().max() < 1e-5


# --- Where torchvision is there, transformers makes pixels with it


@pytest.mark.parametrize("encoder", ["CLIP", "Siglip", "ViT", "Bit"])
@pytest.mark.parametrize("size", [(300, 200), (40, 50), (224, 224)])
def test_exact_pixels_are_those_of_either_kind_of_image_processor(encoder: str, size: tuple[int, int]) -> None:
    for name in (f"{encoder}ImageProcessor", f"{encoder}ImageProcessorPil"):
        image_processor = getattr(hf, name)()
        image = random_image(*size)
        expected = image_processor(images=[image], return_tensors="pt")["pixel_values"]
        made = make_pixels(image_processor, [image])["pixel_values"]
        assert torch.equal(made, expected), (name, fast_pixels(image_processor))


def random_image(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)
