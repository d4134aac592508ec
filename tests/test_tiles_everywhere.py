"""Tiles wherever images are counted, kept or looked at: estimate, kept features and prefixes, inspect, serving."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.test_tiles import DIALOGS, SMALL, TILES, WIDE, made, samples
from tests.test_tiles import parts as parts
from tests.test_tiles import tokenizer as tokenizer
from tests.training.conftest import quiet as quiet
from tests.training.tiny import tiny_recipe
from visgraft.builder.build import build_processor
from visgraft.config import load_recipe
from visgraft.data.sample import Sample, Turn
from visgraft.errors import ConfigError
from visgraft.estimate.outline import outline_run
from visgraft.inference import PrefixCache, answer, prompts_of
from visgraft.inference.decoding import Decoding
from visgraft.inference.engine import Engine
from visgraft.inspection.image_tokens import inspect_image
from visgraft.model.vision_inputs import is_vision_input
from visgraft.model.vlm import VisionLanguageModel
from visgraft.processor import Processor
from visgraft.runs import Run
from visgraft.segments import IMAGE
from visgraft.training import vision_cache
from visgraft.training.loop import train
from visgraft.training.setup import open_session


def recipe_of(folder: Path, *, separator: str = "learned", **train_settings: Any) -> dict[str, Any]:
    """Make a recipe with tiles whose images are of many shapes: one picture, a row of tiles, a grid of them."""
    values = tiny_recipe(folder, num_images=8, **train_settings)
    values["model"]["tiles"] = {"max": 4, "separator": separator}
    for number, place in enumerate(sorted((folder / "train").glob("*.png"))):
        size = ((30, 20), (96, 32), (64, 64), (32, 70))[number % 4]
        Image.open(place).resize(size).save(place)
    return values


# --- Estimate


@pytest.mark.parametrize("separator", ["learned", "none"])
def test_an_estimate_counts_the_tokens_of_the_most_tiles(tmp_path: Path, separator: str) -> None:
    recipe = load_recipe(recipe_of(tmp_path, separator=separator))
    outline = outline_run(recipe, dtype=None, device=torch.device("cpu"))
    processor = build_processor(recipe)
    for batch in outline.micro_batches:
        assert batch.vision_inputs["pixel_values"].is_meta
        pictures = batch.vision_inputs["pixel_values"].shape[0]
        images = len(
            {
                (row, group)
                for row, column in (batch.kind == IMAGE).nonzero().tolist()
                for group in [int(batch.group[row, column])]
            }
        )
        assert pictures == 5 * images  # the whole and four tiles
        assert int(batch.num_image_tokens.sum()) == images * processor.most_image_tokens
    widest = processor.encode(Sample([Image.new("RGB", (32, 128))], DIALOGS))  # one tile a row: the most separators
    assert sum(widest.num_image_tokens) == processor.most_image_tokens == 25 + 4 * (separator == "learned")


# --- Features on disk


@pytest.mark.slow
def test_a_run_with_tiles_and_kept_features_is_the_same_run(
    tmp_path: Path, quiet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISGRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(vision_cache, "BATCH", 3)  # pictures, not images: some batches end inside an image
    values = recipe_of(tmp_path, max_steps=3, exact_match_samples=2)
    kept = {**values, "train": {**values["train"], "cache_vision": "disk"}}
    runs = [Run.open(train(load_recipe(each), progress=quiet)) for each in (values, kept)]
    plain, cached = ([record["loss"] for record in run.read_metrics() if "loss" in record] for run in runs)
    assert len(plain) == 3
    assert cached == pytest.approx(plain, rel=1e-4)


@pytest.mark.slow
def test_every_picture_of_an_image_is_encoded_once_and_found_by_the_next_run(
    tmp_path: Path, quiet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISGRAFT_CACHE", str(tmp_path / "cache"))
    encoded: list[int] = []
    real = vision_cache._encode
    monkeypatch.setattr(
        vision_cache, "_encode", lambda m, x, **k: encoded.append(len(x["pixel_values"])) or real(m, x, **k)
    )
    values = recipe_of(tmp_path, cache_vision="disk")
    values["data"].pop("validation")
    recipe = load_recipe(values)
    processor = build_processor(recipe)
    places = sorted((tmp_path / "train").glob("*.png"))
    pictures = sum(len(processor.encode(Sample([place], DIALOGS)).num_image_tokens) for place in places)
    assert pictures > len(places)
    for expected in (pictures, 0):
        encoded.clear()
        open_session(recipe, progress=quiet)
        assert sum(encoded) == expected + 1  # the first is an example, to see how large it is


# --- Kept prefixes, and the path of a server


def test_a_second_question_about_tiles_finds_them_read(parts: Any) -> None:
    model, processor = made(parts)
    asked = [[Sample([WIDE], [[Turn(text, "")]])] for text in ("What is it?", "Where?")]
    alone = [answer(model, processor, each, max_new_tokens=4) for each in asked]
    cache = PrefixCache()
    assert [answer(model, processor, each, max_new_tokens=4, prefix_cache=cache) for each in asked] == alone
    assert (cache.num_hits, cache.num_misses) == (1, 1)


def test_the_same_picture_cut_otherwise_is_another_prefix(parts: Any) -> None:
    """The upper left tile of a picture alone has the pixels of that tile, and must not be taken for the whole."""
    model, processor = made(parts)
    cache = PrefixCache()
    turned = WIDE.transpose(Image.Transpose.TRANSPOSE)
    for image in (WIDE, turned, SMALL, WIDE.crop((0, 0, 32, 32))):
        answer(model, processor, [Sample([image], [[Turn("What?", "")]])], max_new_tokens=2, prefix_cache=cache)
    assert (cache.num_hits, cache.num_misses) == (0, 4)


def test_what_a_server_asks_of_tiles_is_answered_as_by_generate(parts: Any) -> None:
    model, processor = made(parts)
    model.eval()
    texts = {}
    for name, image in {"wide": WIDE, "small": SMALL}.items():
        inputs = processor(images=image, text="What is it?")
        assert all(map(is_vision_input, set(inputs) - {"input_ids", "attention_mask", "image_mask"}))
        ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        texts[name] = processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
    engine = Engine(model, processor)
    replies = [
        engine.submit(prompt, Decoding.of(max_new_tokens=4))
        for image in (WIDE, SMALL)
        for prompt in prompts_of(processor, Sample([image], [[Turn("What is it?", "")]]))
    ]
    assert [reply.answer(timeout_s=60).text.strip() for reply in replies] == [texts["wide"], texts["small"]]


def test_prompts_of_unequal_numbers_of_tiles_are_answered_together_as_alone(parts: Any) -> None:
    model, processor = made(parts)
    images = [WIDE, None, SMALL]
    inputs = processor(images=images, text=["What is it?"] * 3)
    together = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    for row, image in enumerate(images):
        own = processor(images=image, text="What is it?")
        alone = model.generate(**own, max_new_tokens=3, do_sample=False)
        assert torch.equal(together[row, -3:], alone[0, -3:]), row


# --- Inspect


def test_words_and_attention_lie_where_their_tile_lies(parts: Any) -> None:
    model, processor = made(parts)
    look = inspect_image(model, processor, WIDE, prompt="What is it?", max_new_tokens=2)
    tokens = sum(processor.encode(samples()[0]).num_image_tokens)
    assert len(look.nearest.image_norms) == tokens
    assert look.attention is not None
    assert look.attention.weights.shape[-1] == tokens
    assert torch.allclose(look.attention.weights.sum(-1), torch.ones(()), atol=1e-4)
    assert [token["place"] for token in look.as_json()["image_tokens"]] == [
        look.squares.place(index) for index in range(tokens)
    ]
    inputs = {name: value[None] for name, value in processor.make_pixels([WIDE], [WIDE]).items()}
    pixels = np.asarray(WIDE).copy()
    pixels[32:, 64:] = 255 - pixels[32:, 64:]  # the lower right tile
    changed = Image.fromarray(pixels)
    other = {name: value[None] for name, value in processor.make_pixels([changed], [changed]).items()}
    moved = (model.image_prefix(**other)[0] - model.image_prefix(**inputs)[0])[0].abs().amax(-1)
    real = model.image_prefix(**inputs)[1][0]
    felt = {look.squares.place(index) for index in moved[real].nonzero().flatten().tolist()} - {None}
    assert felt == {(row, column) for row in (2, 3) for column in (4, 5)}


# --- What cuts images already


def test_an_image_processor_that_cuts_images_itself_takes_no_tiles(parts: Any, tokenizer: Any) -> None:
    import transformers as hf

    cutting = hf.Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    with pytest.raises(
        ConfigError, match=r"model.tiles: Idefics3ImageProcessorPil cuts images itself, or .*; leave tiles out"
    ):
        Processor(cutting, tokenizer, num_image_tokens=5, image_size=64, tiles=TILES)


# --- What tiles are for


def test_what_only_the_detail_tells_is_learned_with_tiles_and_not_without(parts: Any) -> None:
    """A fine chequered pattern and its negative are one grey image where they are made small (see bench/digits.py)."""
    fine = np.indices((128, 128)).sum(0) % 2 * 100 + 78
    pictures = {"A cat.": fine, "A dog.": 256 - fine}
    asked = [
        Sample([Image.fromarray(values.astype(np.uint8)).convert("RGB")], [[Turn("What is it?", text)]])
        for text, values in pictures.items()
    ]
    told: dict[bool, list[str]] = {}
    for has_tiles in (True, False):
        tiles = {**TILES, "max": 16} if has_tiles else None
        torch.manual_seed(0)
        model = VisionLanguageModel.from_parts(*parts, tiles=tiles)
        processor = Processor.from_parts(*parts, tiles=tiles)
        batch = processor.collate(asked)
        pixels = batch.vision_inputs["pixel_values"]
        assert torch.equal(*pixels.chunk(2)) != has_tiles
        trained = [*model.projection.parameters(), *model.language.parameters()]
        optimizer = torch.optim.AdamW(trained, lr=3e-3)
        for _ in range(40):
            optimizer.zero_grad()
            model.loss(batch).loss.backward()
            optimizer.step()
        told[has_tiles] = answer(model, processor, asked, max_new_tokens=8)
    assert told[True] == list(pictures)
    assert told[False][0] == told[False][1]
