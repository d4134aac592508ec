"""The prefix enters at the first layer where a checkpoint says so, in training, serving and on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import (
    P,
    assert_same_gradients,
    bare_language,
    bare_vision,
    batch,
    gradients,
    random_ids,
    random_pixels,
    randomise,
    samples,
)
from visgraft.errors import ConfigError, ModelError
from visgraft.model.cache import PreallocatedCache
from visgraft.model.checks.preflight import preflight
from visgraft.model.configuration import VisionLanguageConfig
from visgraft.model.sequence import (
    TEXT,
    append_segment,
    empty_table,
    image_then_text,
    pads_first,
    shared_prefix,
    text_positions,
)
from visgraft.model.vlm import VisionLanguageModel

IDS = random_ids(2, 6)


def at_first_layer(language: str, **settings: Any) -> VisionLanguageModel:
    vision, lm = bare_vision("clip"), bare_language(language, **settings)
    config = VisionLanguageConfig(vision_config=vision.config, text_config=lm.config, prefix_at="first_layer")
    config.parts = {part: {"name": None, "revision": None} for part in ("vision", "language")}
    model = VisionLanguageModel(config, vision=vision, language=lm)
    randomise(model.projection, seed=3)
    return model.eval()


def test_positions_count_text_alone() -> None:
    image = torch.tensor([[True, True], [True, True]])
    text = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]])
    table = image_then_text(image, text)
    assert text_positions(table).tolist() == [[0, 0, 0, 1, 2, -1], [0, 0, -1, 0, 1, 2]]
    packed, _ = pads_first(table)
    assert text_positions(packed).tolist() == [[-1, 0, 0, 0, 1, 2], [-1, 0, 0, 0, 1, 2]]
    behind_one_prefix = shared_prefix(num_image_tokens=2, text_lengths=[3, 2])
    assert text_positions(behind_one_prefix).tolist() == [[0, 0, 0, 1, 2, 0, 1]]


def test_without_an_image_it_is_the_language_model() -> None:
    model = at_first_layer("opt_post_norm")
    assert torch.equal(model(input_ids=IDS).logits, model.language(input_ids=IDS).logits)


@pytest.mark.parametrize("language", ["opt", "opt_post_norm"])
def test_the_prefix_is_the_input_of_the_first_layer(language: str) -> None:
    model = at_first_layer(language)
    seen: list[torch.Tensor] = []
    layer = model.language.get_decoder().layers[0]
    layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    pixels = random_pixels(2)
    model(input_ids=IDS, pixel_values=pixels)
    model(input_ids=IDS)
    prefix, _ = model.image_prefix(pixels)
    assert prefix.shape[-1] == model.language.config.hidden_size
    assert torch.equal(seen[0][:, :P], prefix)
    assert torch.equal(seen[0][:, P:], seen[1])  # as the text is without an image, positions too


@pytest.mark.parametrize("checkpointing", [False, True])
def test_texts_share_a_prefix_exactly(checkpointing: bool) -> None:
    model = at_first_layer("opt_post_norm")
    model.requires_grad_(True)
    if checkpointing:
        model.language.gradient_checkpointing_enable({"use_reentrant": False})
        model.language.config.dropout = 0.0
        model.train()
        for module in model.modules():
            if hasattr(module, "dropout") and isinstance(module.dropout, float):
                module.dropout = 0.0
    shared, rows = (batch(samples(), layout=layout) for layout in ("shared", "rows"))
    first, second = model.loss(shared), model.loss(rows)
    torch.testing.assert_close(first.loss, second.loss, atol=1e-5, rtol=0)
    assert_same_gradients(gradients(model, first.loss), gradients(model, model.loss(rows).loss))


def test_cached_generation_is_uncached_generation_whatever_the_pads() -> None:
    model = at_first_layer("opt_post_norm")
    mask = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pixel_values": random_pixels(2)}
    cached = model.generate(input_ids=IDS, attention_mask=mask, **settings)
    assert torch.equal(cached, model.generate(input_ids=IDS, attention_mask=mask, use_cache=False, **settings))
    settings["pixel_values"] = settings["pixel_values"][1:]
    assert torch.equal(cached[1:, 6:], model.generate(input_ids=IDS[1:, 2:], **settings)[:, 4:])


def test_only_text_counts_against_the_length_of_the_table() -> None:
    model = at_first_layer("opt", max_position_embeddings=8)
    assert model(input_ids=random_ids(1, 8), pixel_values=random_pixels(1)).logits.shape[1] == P + 8
    with pytest.raises(ModelError, match="a row of 9 positions"):
        model(input_ids=random_ids(1, 9), pixel_values=random_pixels(1))


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    model = at_first_layer("opt_post_norm")
    model.save_pretrained(tmp_path)
    loaded = VisionLanguageModel.from_pretrained(tmp_path)
    assert loaded.config.prefix_at == "first_layer"
    inputs = {"input_ids": IDS, "pixel_values": random_pixels(2)}
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


def test_it_passes_the_preflight() -> None:
    assert preflight(at_first_layer("opt_post_norm"), batch(samples())).num_supervised > 0


def test_a_language_model_without_a_table_of_positions_is_refused() -> None:
    with pytest.raises(ConfigError, match="got first_layer, which needs a language model with a table of positions"):
        at_first_layer("llama")
    with pytest.raises(ConfigError, match="prefix_at: got 'end', allowed are embeddings, first_layer"):
        VisionLanguageConfig(prefix_at="end")


@pytest.mark.parametrize("language", ["opt", "opt_post_norm"])
@torch.no_grad()
def test_an_image_and_a_text_read_on_behind_a_cache_are_one_forward(language: str) -> None:
    model, pixels = at_first_layer(language), random_pixels(2)
    expected = model(input_ids=IDS, pixel_values=pixels).logits[:, P:]
    tokens, mask = model.image_prefix(pixels)
    cache = PreallocatedCache(capacity=P + 6)
    context = model.read_image(tokens, image_token_mask=mask, context=empty_table(2), cache=cache)
    read = [model.read_text(IDS[:, start : start + 2], context=context, cache=cache).logits for start in (0, 2, 4)]
    torch.testing.assert_close(torch.cat([logits for logits in read if logits is not None], 1), expected)
    later = append_segment(context, torch.ones(2, 6, dtype=torch.bool), kind=TEXT)
    later = model.read_image(tokens.flip(0), image_token_mask=mask, context=later, cache=cache)
    behind = append_segment(later, torch.ones(2, 3, dtype=torch.bool), kind=TEXT)
    assert (
        model.prefix_injection.positions(behind)[:, -3:].tolist() == [[6, 7, 8]] * 2
    )  # the text counts its own tokens
    assert model.read_text(IDS[:, :3], context=later, cache=cache).logits is not None
