"""Hidden states and attention weights are those of the language model itself, of whole rows in the order given."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny import (
    HYBRIDS,
    LANGUAGES,
    OTHER_KERNELS,
    P,
    bare,
    bare_language,
    fresh,
    joined,
    random_ids,
    random_pixels,
)
from visgraft.errors import ModelError

SHOW: dict[str, Any] = {"output_hidden_states": True, "output_attentions": True}
# Those whose layers were given another forward, or that have no attention
WITHOUT_ATTENTION = ["mpt", "mamba2", "rwkv"]


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


def padded() -> tuple[Tensor, Tensor]:
    ids, mask = random_ids(2 * 8, seed=1).view(2, 8), torch.ones(2, 8, dtype=torch.long)
    mask[1, 6:] = 0
    return ids, mask


@pytest.mark.parametrize("language", LANGUAGES + OTHER_KERNELS + HYBRIDS)
def test_of_text_alone_they_are_those_of_the_bare_language_model(language: str) -> None:
    ids = random_ids(7, seed=1)[None]
    alone = bare_language(language)
    has_attention = language not in WITHOUT_ATTENTION
    asked = {**SHOW, "output_attentions": has_attention}
    shown = joined(language)(input_ids=ids, **asked)
    if language == "falcon_alibi":  # alone it adds its ALiBi twice where it is asked for attention
        has_attention, asked = False, {"output_hidden_states": True}
    if has_attention:
        alone.set_attn_implementation("eager")
        alone.config._attn_implementation = "eager"  # of Falcon, which the line before does not reach
    expected = alone(input_ids=ids, use_cache=False, **asked)
    for name in ("hidden_states", *(["attentions"] if has_attention else [])):
        ours, theirs = getattr(shown, name), getattr(expected, name)
        assert len(ours) == len(theirs) > 0
        for mine, own in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, own, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("language", LANGUAGES + OTHER_KERNELS + HYBRIDS)
def test_asking_for_them_changes_no_logits_behind_an_image(language: str) -> None:
    model, (ids, mask), pixels = joined(language), padded(), random_pixels(2)
    asked = {**SHOW, "output_attentions": language not in WITHOUT_ATTENTION}
    inputs = {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}
    shown, plain = model(**inputs, **asked), model(**inputs)
    is_real = torch.cat([torch.ones(2, P, dtype=torch.bool), mask.bool()], 1)
    torch.testing.assert_close(shown.logits[is_real], plain.logits[is_real], atol=1e-5, rtol=1e-5)
    length = P + ids.shape[1]
    assert all(state.shape == (2, length, state.shape[2]) for state in shown.hidden_states)
    for weights in shown.attentions or ():
        assert weights.shape[2:] == (length, length)
        assert (weights[:, :, :, P + 6 :][1][:, is_real[1]] == 0).all(), "a pad is looked at"
        torch.testing.assert_close(weights.sum(-1)[0], torch.ones(weights.shape[1], length), atol=1e-4, rtol=0)
    after = model.language.config.get_text_config(decoder=True)._attn_implementation
    assert after == bare(language).config.get_text_config(decoder=True)._attn_implementation
    assert torch.equal(model(**inputs).logits, plain.logits)


@pytest.mark.parametrize("language", ["llama", "mistral", "gemma3", "bloom", "qwen3_5", "jamba", "falcon_h1"])
@pytest.mark.parametrize("cache", [None, "static"])
def test_generation_shows_of_every_token_what_the_whole_row_shows(language: str, cache: str | None) -> None:
    if cache is not None and language in HYBRIDS:
        pytest.skip("they have a cache of their own")
    model, pixels = joined(language), random_pixels(2)
    ids, mask = random_ids(2 * 5, seed=1).view(2, 5), torch.ones(2, 5, dtype=torch.long)
    mask[1, 3:] = 0  # on the right, which generation moves to the left
    made = model.generate(
        input_ids=ids, attention_mask=mask, pixel_values=pixels, max_new_tokens=4, do_sample=False, eos_token_id=None,
        pad_token_id=0, return_dict_in_generate=True, cache_implementation=cache, **SHOW,
    )  # fmt: skip
    lefted = ids.clone()
    lefted[1] = ids[1].roll(2)
    whole_ids, whole_mask = torch.cat([lefted, made.sequences[:, 5:-1]], 1), torch.ones(2, 8, dtype=torch.long)
    whole_mask[1, :2] = 0
    whole = model(input_ids=whole_ids, attention_mask=whole_mask, pixel_values=pixels, **SHOW)
    is_real = torch.cat([torch.ones(2, P, dtype=torch.bool), whole_mask.bool()], 1)
    start = 0
    for hidden, attention in zip(made.hidden_states, made.attentions, strict=True):
        end = start + hidden[0].shape[1]
        real = is_real[:, start:end]
        for mine, own in zip(hidden, whole.hidden_states, strict=True):
            torch.testing.assert_close(mine[real], own[:, start:end][real], atol=1e-5, rtol=1e-4)
        for mine, own in zip(attention, whole.attentions, strict=True):
            assert mine.shape[2:] == (end - start, end)
            got, expected = mine.transpose(1, 2)[real], own[:, :, start:end, :end].transpose(1, 2)[real]
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
        start = end
    assert start == P + 8


def test_they_keep_the_order_of_the_row_where_a_cache_packs_it() -> None:
    model, (ids, mask), pixels = joined(), padded(), random_pixels(2)
    inputs = {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}
    packed, plain = model(**inputs, use_cache=True, **SHOW), model(**inputs, **SHOW)
    is_real = torch.cat([torch.ones(2, P, dtype=torch.bool), mask.bool()], 1)
    for mine, own in zip(packed.hidden_states, plain.hidden_states, strict=True):
        torch.testing.assert_close(mine[is_real], own[is_real], atol=1e-5, rtol=1e-5)
    for mine, own in zip(packed.attentions, plain.attentions, strict=True):
        torch.testing.assert_close(mine.transpose(1, 2)[is_real], own.transpose(1, 2)[is_real], atol=1e-5, rtol=1e-5)


def test_the_config_may_ask_for_them_and_for_tuples() -> None:
    model, ids = fresh(), random_ids(1, 6)
    model.config.output_hidden_states = True
    assert len(model(input_ids=ids).hidden_states) == 3
    assert model(input_ids=ids, output_hidden_states=False).hidden_states is None
    model.config.return_dict = False
    logits, hidden_states, *_ = model(input_ids=ids)
    assert torch.equal(logits, model(input_ids=ids, return_dict=True).logits)
    assert len(hidden_states) == 3
    loss, logits, *_ = model(input_ids=ids, labels=ids)
    assert loss.ndim == 0
    assert logits.ndim == 3


def test_a_language_model_that_shows_no_attention_is_told_so() -> None:
    with pytest.raises(ModelError, match=r"output_attentions: got True, but .* gives no attentions"):
        joined("mpt")(input_ids=random_ids(1, 6), output_attentions=True)


def test_text_may_be_given_as_embeddings() -> None:
    model, (ids, mask), pixels = joined("gemma3"), padded(), random_pixels(2)
    embeds = model.get_input_embeddings()(ids)
    inputs = {"attention_mask": mask, "pixel_values": pixels}
    assert torch.equal(model(inputs_embeds=embeds, **inputs).logits, model(input_ids=ids, **inputs).logits)
    with pytest.raises(ModelError, match="inputs_embeds in their place"):
        model(input_ids=ids, inputs_embeds=embeds)
    with pytest.raises(ModelError, match="inputs_embeds in their place"):
        model(pixel_values=pixels)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("language", ["llama", "qwen3_5"])
def test_generation_goes_on_from_embeddings(language: str, use_cache: bool) -> None:
    model, (ids, mask), pixels = joined(language), padded(), random_pixels(2)
    settings = {"attention_mask": mask, "pixel_values": pixels, "max_new_tokens": 5, "do_sample": False,
                "eos_token_id": None, "pad_token_id": 0, "use_cache": use_cache}  # fmt: skip
    embeds = model.get_input_embeddings()(ids)
    expected = model.generate(input_ids=ids, **settings)
    assert torch.equal(model.generate(inputs_embeds=embeds, **settings), expected[:, 8:])
    assert torch.equal(model.generate(input_ids=ids, inputs_embeds=embeds, **settings), expected)


def test_a_prompt_is_not_read_in_chunks() -> None:
    with pytest.raises(ModelError, match="prefill_chunk_size: got 2"):
        joined().generate(input_ids=random_ids(1, 6), prefill_chunk_size=2)


def test_an_image_behind_a_cache_is_refused_instead_of_dropped() -> None:
    model, ids = joined(), random_ids(1, 6)
    cache = model(input_ids=ids, use_cache=True).past_key_values
    with pytest.raises(ModelError, match="beside a cache that holds 6 positions"):
        model(input_ids=ids, pixel_values=random_pixels(1), past_key_values=cache)


def test_gradients_reach_what_was_shown() -> None:
    with torch.enable_grad():
        shown = fresh()(input_ids=random_ids(2, 7), pixel_values=random_pixels(2), **SHOW)
        kept = (shown.hidden_states[0], shown.attentions[0])
        for tensor in kept:
            tensor.retain_grad()
        shown.logits.sum().backward()
    assert all(tensor.grad is not None for tensor in kept)
