"""Tiles, and images of their own size, from the processor through the model to an answer."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image

from tests.data.made_tokenizers import TOKENIZERS
from tests.tiny import SQUARE, assert_same_gradients, bare_language, gradients, randomise
from visgraft.config import AugmentSettings, DataSettings, ModelSettings, TileSettings
from visgraft.data.images.augment import augment
from visgraft.data.images.feature_cache import FeatureCache, image_version, picture_version
from visgraft.data.images.video import VideoFrame, frames_of
from visgraft.data.records import Looker
from visgraft.data.sample import Sample, Turn
from visgraft.errors import BadSampleError, ConfigError, ModelError
from visgraft.inference import answer
from visgraft.inference.load import load
from visgraft.inspection.image_tokens import inspect_image
from visgraft.model.tower import build_tower
from visgraft.model.vlm import VisionLanguageModel
from visgraft.processor import Processor

TILES = {"max": 6, "thumbnail": True, "separator": "learned"}
NOISE = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
WIDE, SMALL = Image.fromarray(NOISE), Image.fromarray(NOISE[:30, :20].copy())
DIALOGS = [[Turn("What is it?", "A cat.")], [Turn("", "a cat on a sofa")]]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return TOKENIZERS["opt, llama 3"]()


@pytest.fixture(scope="module")
def parts(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    vision, language = tmp_path_factory.mktemp("vision"), tmp_path_factory.mktemp("language")
    randomise(hf.CLIPVisionModel(hf.CLIPVisionConfig(**SQUARE)), seed=1).save_pretrained(vision)  # type: ignore[operator]
    hf.CLIPImageProcessorPil(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}).save_pretrained(vision)
    bare_language("llama", vocab_size=len(tokenizer), max_position_embeddings=256).save_pretrained(language)
    tokenizer.save_pretrained(language)
    return vision, language


def made(parts: tuple[Path, Path], **tiles: Any) -> tuple[VisionLanguageModel, Processor]:
    chosen = {**TILES, **tiles}
    model = VisionLanguageModel.from_parts(*parts, tiles=chosen)
    randomise(model.projection, seed=3)
    return model, Processor.from_parts(*parts, tiles=chosen)


def samples() -> list[Sample]:
    return [Sample(images=[WIDE], dialogs=DIALOGS), Sample(images=[SMALL], dialogs=DIALOGS[:1])]


@pytest.mark.parametrize("separator", ["learned", "none"])
def test_the_number_of_image_tokens_is_known_before_the_model_runs(parts: Any, separator: str) -> None:
    model, processor = made(parts, separator=separator)
    encoded = processor.encode(samples()[0])
    separators = [0, 0, 0, 1, 0, 0, 1] if separator == "learned" else [0] * 7
    assert encoded.num_image_tokens == tuple(5 + each for each in separators)
    assert processor.encode(samples()[1]).num_image_tokens == (5,)
    inputs = processor(images=WIDE, text="What is it?")
    _, real = model.image_prefix(**{k: v for k, v in inputs.items() if k not in ("input_ids", "attention_mask")})
    assert int(real.sum()) == sum(encoded.num_image_tokens) <= processor.most_image_tokens


def test_a_shared_prefix_of_tiles_equals_rows(parts: Any) -> None:
    model, processor = made(parts)
    losses, grads = [], []
    for layout in ("shared", "rows"):
        loss = model.loss(processor.collate(samples(), layout=layout)).loss  # type: ignore[arg-type]
        losses.append(loss.detach())
        grads.append(gradients(model, loss))
    assert torch.allclose(*losses, atol=1e-6)
    assert_same_gradients(*grads)
    assert grads[0]["projection.row_separator"].abs().max() > 0


def test_the_separator_stands_behind_each_row_of_tiles(parts: Any) -> None:
    model, processor = made(parts)
    inputs = processor.make_pixels([WIDE], [WIDE])
    prefix, real = model.image_prefix(**{name: value[None] for name, value in inputs.items()})
    tokens = prefix[0][real[0]]
    places = (tokens == model.projection.row_separator).all(-1).nonzero().flatten().tolist()
    assert places == [4 * 5, 7 * 5 + 1]


def test_nothing_of_a_tile_is_cut_off(parts: Any) -> None:
    _, processor = made(parts)
    pixels = processor.make_pixels([WIDE], [WIDE])["pixel_values"]
    changed = WIDE.copy()
    changed.putpixel((0, 0), (255, 0, 255))
    moved = (processor.make_pixels([changed], [changed])["pixel_values"] - pixels)[1].abs().amax(0)
    assert moved.nonzero().tolist() == [[0, 0]]


def test_bytes_become_the_same_pixels(parts: Any) -> None:
    _, processor = made(parts)
    whole = processor.collate([processor.encode(each) for each in samples()])
    later = processor.finish(processor.collate([processor.encode(each, as_bytes=True) for each in samples()]))
    assert whole.vision_inputs.keys() == later.vision_inputs.keys()
    for name, value in whole.vision_inputs.items():
        assert torch.equal(value, later.vision_inputs[name])


def test_a_model_with_tiles_is_saved_loaded_and_answers_from_its_folder(parts: Any, tmp_path: Path) -> None:
    model, processor = made(parts)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "processor_config.json").read_text())["tiles"] == TILES
    again, its_processor = load(tmp_path)
    asked = [Sample(images=[each], dialogs=[[Turn("What is it?", "")]]) for each in (WIDE, SMALL)]
    together = answer(again, its_processor, asked, max_new_tokens=4)
    alone = [answer(model, processor, [each], max_new_tokens=4)[0] for each in asked]
    assert together == alone
    inputs = processor(images=WIDE, text="What is it?")
    ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert processor.tokenizer.decode(ids, skip_special_tokens=True).strip() == alone[0]


def test_kept_features_of_tiles_stand_for_the_image(parts: Any, tmp_path: Path) -> None:
    model, processor = made(parts)
    path = tmp_path / "wide.png"
    WIDE.save(path)
    sample = Sample(images=[str(path)], dialogs=DIALOGS)
    encoded = processor.encode(sample)
    features = model.image_features(encoded.vision_inputs).detach()
    cache = FeatureCache(tmp_path / "kept", shape=(5, 24), dtype=torch.float32, tiles=processor.tile_settings)
    version = image_version(str(path))
    assert version is not None
    assert cache.find([str(path)]) is None
    with cache.writer() as add:
        for number, own in enumerate(features):
            add(picture_version(version, (2, 3), number), own)
    found = cache.find([str(path)])
    assert found is not None
    assert processor.count_image_tokens(found) == encoded.num_image_tokens
    assert torch.equal(model.encode_images(found), model.encode_images(encoded.vision_inputs))


def test_inspecting_lays_the_tokens_of_tiles_over_the_whole_picture(parts: Any) -> None:
    model, processor = made(parts)
    look = inspect_image(model, processor, WIDE, prompt="What is it?", max_new_tokens=2)
    assert (look.squares.rows, look.squares.columns) == (4, 6)
    places = [look.squares.place(index) for index in range(sum(processor.encode(samples()[0]).num_image_tokens))]
    assert len([place for place in places if place is not None]) == len(set(places) - {None}) == 24
    assert places[6:10] == [(0, 0), (0, 1), (1, 0), (1, 1)]  # of the first tile, behind the whole and a class token
    assert places[-2] == (3, 5)
    assert places[-1] is None  # the separator


def test_frames_of_a_video_are_not_cut(parts: Any, tmp_path: Path) -> None:
    _, processor = made(parts)
    WIDE.save(tmp_path / "0.png")
    [of_folder] = frames_of(tmp_path, num_frames=2, spacing_s=None)
    of_video = VideoFrame(Path("cat.mp4"), place=0.5)
    for frame in (of_video, of_folder):
        changed = augment(Sample([frame], []), AugmentSettings(flip=1.0), occasion="0", max_pixels=10**6).images[0]
        pictures = processor.make_pixels([frame, changed, WIDE], [WIDE] * 3)["pixel_values"]
        assert pictures.shape[0] == 1 + 1 + 7, frame
    assert processor.encode(Sample([of_folder], DIALOGS)).num_image_tokens == (5,)
    assert processor.encode(Sample([Path(of_folder)], DIALOGS)).num_image_tokens != (5,)
    with pytest.raises(ConfigError, match=r"model.tiles: got tiles and num_frames 4; frames of a video are not cut"):
        ModelSettings(vision="a", tiles=TileSettings(), num_frames=4)


def test_a_check_of_the_data_cuts_what_training_cuts(parts: Any, tmp_path: Path) -> None:
    WIDE.save(tmp_path / "0.png")
    [frame] = frames_of(tmp_path, num_frames=1, spacing_s=None)
    looker = Looker(Processor.from_parts(*parts, tiles=TILES, max_positions=30), settings=DataSettings())
    assert looker.look(Sample([frame], DIALOGS), number=0).reason is None
    cut = looker.look(Sample([tmp_path / "0.png"], DIALOGS), number=1)
    assert cut.reason == "too long for the language model: 50 positions, 30 allowed"


def test_tiles_that_need_more_positions_than_there_are_make_a_bad_sample(parts: Any) -> None:
    processor = Processor.from_parts(*parts, tiles=TILES, max_positions=30)
    assert processor.encode(samples()[1]).num_image_tokens == (5,)
    with pytest.raises(BadSampleError, match=r"too long for the language model: 50 positions, 30 allowed"):
        processor.encode(samples()[0])


def test_separators_without_a_model_for_them_are_an_error(parts: Any) -> None:
    model = VisionLanguageModel.from_parts(*parts)
    processor = Processor.from_parts(*parts, tiles=TILES)
    with pytest.raises(ModelError, match="got row separators between tiles, which the model was not joined with"):
        model(**processor(images=WIDE, text="What is it?"))
    with pytest.raises(ModelError, match=r"the batch counts \[5, 6\] image tokens an image, the model makes"):
        model.loss(processor.collate(samples()))


# --- Images of their own size


def qwen(tokenizer: Any, tmp_path: Path) -> tuple[Path, Any]:
    kind = type(hf.Qwen2_5_VLConfig().vision_config)
    config = kind(
        depth=2, hidden_size=32, intermediate_size=48, num_heads=2, out_hidden_size=40, patch_size=4,
        spatial_merge_size=2, temporal_patch_size=2, window_size=16, fullatt_block_indexes=[1],
    )  # fmt: skip
    vision = randomise(build_tower(config), seed=2)
    vision.save_pretrained(tmp_path)  # type: ignore[operator]
    sizes = {"shortest_edge": 8 * 8, "longest_edge": 64 * 64}
    hf.Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, size=sizes).save_pretrained(tmp_path)
    return tmp_path, bare_language("llama", vocab_size=len(tokenizer), max_position_embeddings=256)


def test_a_tower_that_takes_patches_and_grids_is_trained_and_asked(tokenizer: Any, tmp_path: Path) -> None:
    folder, language = qwen(tokenizer, tmp_path)
    model = VisionLanguageModel.from_parts(folder, language)
    randomise(model.projection, seed=3)
    processor = Processor.from_parts(folder, tokenizer)
    assert processor.image_size is None
    both = [Sample(images=[WIDE], dialogs=DIALOGS), Sample(images=[SMALL, WIDE], dialogs=DIALOGS[:1])]
    wide, small = processor.encode(both[0]).num_image_tokens[0], processor.encode(both[1]).num_image_tokens[0]
    assert wide == (72 // 8) * (48 // 8) > small > 1  # 96 x 64 pixels, made as few as the processor allows
    losses, grads = [], []
    for layout in ("shared", "rows"):
        loss = model.loss(processor.collate(both, layout=layout)).loss  # type: ignore[arg-type]
        losses.append(loss.detach())
        grads.append(gradients(model, loss))
    assert torch.allclose(*losses, atol=1e-6)
    assert_same_gradients(*grads)
    processor.save_pretrained(tmp_path / "model")
    model.save_pretrained(tmp_path / "model", full=True)
    again, its_processor = load(tmp_path / "model")
    asked = [Sample(images=[each], dialogs=[[Turn("What is it?", "")]]) for each in (WIDE, SMALL)]
    together = answer(again, its_processor, asked, max_new_tokens=4)
    assert together == [answer(model, processor, [each], max_new_tokens=4)[0] for each in asked]
    ids = again.generate(**its_processor(images=[WIDE, SMALL], text=["What is it?"] * 2), max_new_tokens=2)
    assert ids.shape[0] == 2
    look = inspect_image(model, processor, WIDE)
    assert (look.squares.rows, look.squares.columns) == (6, 9)


def test_the_number_of_patches_follows_the_image_size_that_is_asked_for(tokenizer: Any, tmp_path: Path) -> None:
    folder, _ = qwen(tokenizer, tmp_path)
    processor = Processor.from_parts(folder, tokenizer, image_size=32)
    assert processor.encode(Sample(images=[WIDE], dialogs=DIALOGS)).num_image_tokens[0] <= 16


def test_tiles_of_images_that_keep_their_own_size_are_refused(tokenizer: Any, tmp_path: Path) -> None:
    folder, _ = qwen(tokenizer, tmp_path)
    with pytest.raises(ConfigError, match=r"model.tiles: this encoder takes images in their own resolution"):
        Processor.from_parts(folder, tokenizer, tiles=TILES)
