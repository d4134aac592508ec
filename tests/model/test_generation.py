"""Generation with a cache, padded or not, is generation without one; text only, it is the bare language model's."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, StaticCache

from tests.tiny import (
    LANGUAGES,
    OTHER_KERNELS,
    WINDOWED,
    P,
    bare,
    bare_language,
    fresh,
    joined,
    random_ids,
    random_pixels,
)
from visgraft.errors import ModelError
from visgraft.model.cache import CACHE_NAME
from visgraft.model.vlm import VisionLanguageModel

every_language = pytest.mark.parametrize("language", LANGUAGES + OTHER_KERNELS)
some_languages = pytest.mark.parametrize("language", ["llama", "opt", "gpt2", "bloom", *WINDOWED])
NEW = 7
LENGTHS = (6, 2, 4)
GREEDY: dict[str, Any] = {
    "max_new_tokens": NEW,
    "do_sample": False,
    "eos_token_id": None,
    "pad_token_id": 0,
    "use_cache": True,
}


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


def prompts(where: str) -> tuple[Tensor, Tensor]:
    """Make three prompts of different lengths, padded to 8 with an ordinary token, and their mask."""
    ids, mask = torch.full((3, 8), 5), torch.zeros(3, 8, dtype=torch.long)
    for row, length in enumerate(LENGTHS):
        half = length // 2
        columns = {
            "left": range(8 - length, 8),
            "right": range(length),
            "middle": [*range(1, 1 + half), *range(7 - length + half, 7)],
        }[where]
        ids[row, list(columns)] = random_ids(length, seed=length)
        mask[row, list(columns)] = 1
    return ids, mask


def decode_by_hand(model: VisionLanguageModel, ids: Tensor, pixels: Tensor | None, num_new: int = NEW) -> list[int]:
    """Decode one unpadded row greedily, running the whole row again for every token."""
    row = ids[None]
    for _ in range(num_new):
        logits = model(input_ids=row, pixel_values=pixels).logits
        row = torch.cat([row, logits[:, -1:].argmax(-1)], 1)
    return row[0, len(ids) :].tolist()


@functools.cache
def expected_answers(language: str) -> list[list[int]]:
    pixels = random_pixels(3)
    return [
        decode_by_hand(joined(language), random_ids(length, seed=length), pixels[row : row + 1])
        for row, length in enumerate(LENGTHS)
    ]


@every_language
def test_a_padded_batch_is_answered_as_each_row_alone_without_a_cache(language: str) -> None:
    padded = [prompts(where) for where in ("left", "right", "middle")]
    ids, mask = (torch.cat(tensors) for tensors in zip(*padded, strict=True))
    pixels = random_pixels(3).repeat(3, 1, 1, 1)
    answers = joined(language).generate(input_ids=ids, attention_mask=mask, pixel_values=pixels, **GREEDY)
    assert torch.equal(answers[:, :8], ids)  # the given ids come back untouched
    assert answers[:, 8:].tolist() == expected_answers(language) * 3


@every_language
def test_a_static_cache_gives_the_same_answers(language: str) -> None:
    ids, mask = prompts("left")
    answers = joined(language).generate(
        input_ids=ids, attention_mask=mask, pixel_values=random_pixels(3), cache_implementation="static", **GREEDY
    )
    assert answers[:, 8:].tolist() == expected_answers(language)


@some_languages
def test_without_a_cache_the_answers_are_the_same(language: str) -> None:
    ids, mask = prompts("right")
    answers = joined(language).generate(
        input_ids=ids, attention_mask=mask, pixel_values=random_pixels(3), **{**GREEDY, "use_cache": False}
    )
    assert answers[:, 8:].tolist() == expected_answers(language)


# --- Text only


@every_language
def test_text_only_generation_is_that_of_the_bare_model(language: str) -> None:
    ids, mask = prompts("left")
    ours = joined(language).generate(input_ids=ids, attention_mask=mask, **GREEDY)
    for row, length in enumerate(LENGTHS):
        alone = ids[row : row + 1, 8 - length :]
        theirs = bare(language).generate(alone, attention_mask=torch.ones_like(alone), **GREEDY)
        assert ours[row, 8:].tolist() == theirs[0, length:].tolist()


@some_languages
def test_a_text_only_batch_padded_on_the_left_is_that_of_the_bare_model(language: str) -> None:
    ids, mask = prompts("left")
    settings = {**GREEDY, "num_beams": 2, "num_return_sequences": 2}
    theirs = bare(language).generate(ids, attention_mask=mask, **settings)
    assert torch.equal(joined(language).generate(input_ids=ids, attention_mask=mask, **settings), theirs)


@pytest.mark.parametrize(
    ("language", "settings"),
    [
        *((language, {"num_beams": 3}) for language in LANGUAGES + OTHER_KERNELS),
        *((language, {"do_sample": True, "top_k": 5}) for language in ("llama", "opt", "bloom", "gemma3")),
    ],
    ids=str,
)
def test_a_causal_prefix_generates_what_the_bare_model_does(language: str, settings: dict[str, Any]) -> None:
    model, ids, pixels = _causal(language), random_ids(2, 4), random_pixels(2)
    embeds = torch.cat([model.image_prefix(pixels)[0], bare(language).get_input_embeddings()(ids)], 1)
    settings = {**GREEDY, **settings}
    torch.manual_seed(3)
    theirs = bare(language).generate(
        inputs_embeds=embeds, attention_mask=torch.ones(2, P + 4, dtype=torch.long), **settings
    )
    torch.manual_seed(3)
    assert model.generate(input_ids=ids, pixel_values=pixels, **settings)[:, 4:].tolist() == theirs.tolist()


@functools.cache
def _causal(language: str) -> VisionLanguageModel:
    return fresh(language, image_attention="causal")


# --- Beams, samples, copies


@some_languages
@pytest.mark.parametrize("settings", [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}], ids=str)
def test_beams_with_a_cache_are_beams_without_one(language: str, settings: dict[str, Any]) -> None:
    model, pixels = joined(language), random_pixels(3)
    ids, mask = prompts("right")
    copies = settings.get("num_return_sequences", 1)
    together = model.generate(input_ids=ids, attention_mask=mask, pixel_values=pixels, **GREEDY, **settings)
    assert together.shape == (3 * copies, 8 + NEW)
    assert torch.equal(together[:, :8], ids.repeat_interleave(copies, 0))
    for row, length in enumerate(LENGTHS):
        alone = model.generate(
            input_ids=random_ids(length, seed=length)[None],
            pixel_values=pixels[row : row + 1],
            **{**GREEDY, **settings, "use_cache": False},
        )
        assert together[row * copies : (row + 1) * copies, 8:].tolist() == alone[:, length:].tolist()


def test_sampling_with_a_seed_can_be_repeated_and_needs_no_cache() -> None:
    model, (ids, mask) = joined(), prompts("left")
    settings = {**GREEDY, "do_sample": True, "num_return_sequences": 3}

    def draw(seed: int, **more: Any) -> list[list[int]]:
        torch.manual_seed(seed)
        given = {"input_ids": ids, "attention_mask": mask, "pixel_values": random_pixels(3)}
        return model.generate(**given, **{**settings, **more}).tolist()

    assert draw(1) == draw(1) == draw(1, use_cache=False)
    assert draw(1) != draw(2)
    assert len({tuple(row) for row in draw(1)[:3]}) > 1  # copies are drawn apart


# --- Images of a batch


@some_languages
@pytest.mark.parametrize("settings", [{}, {"num_beams": 2}], ids=str)
def test_rows_with_different_numbers_of_images_are_answered_as_each_alone(
    language: str, settings: dict[str, Any]
) -> None:
    model = joined(language, num_frames=2)
    pixels, image_mask = random_pixels(3, 2), torch.tensor([[True, True], [False, False], [False, True]])
    ids, mask = prompts("right")
    given = {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels, "image_mask": image_mask}
    together = model.generate(**given, **GREEDY, **settings)[:, 8:]
    for row, (length, prefix) in enumerate(zip(LENGTHS, (pixels[:1], None, pixels[2:, 1]), strict=True)):
        alone = random_ids(length, seed=length)[None]
        answer = model.generate(input_ids=alone, pixel_values=prefix, **GREEDY, **settings)
        assert together[row].tolist() == answer[0, length:].tolist()


def test_the_image_is_encoded_once() -> None:
    model, runs = joined(), []
    handle = model.vision.register_forward_hook(lambda *_: runs.append(1))
    model.generate(input_ids=random_ids(1, 3), pixel_values=random_pixels(1), num_beams=2, **GREEDY)
    handle.remove()
    assert len(runs) == 1


def test_without_ids_every_image_gets_one_start_token() -> None:
    model, pixels = joined(), random_pixels(2)
    answers = model.generate(pixel_values=pixels, **GREEDY)
    assert torch.equal(
        answers, model.generate(input_ids=torch.ones(2, 1, dtype=torch.long), pixel_values=pixels, **GREEDY)
    )
    assert answers.shape == (2, 1 + NEW)


def test_a_language_model_without_a_start_token_needs_ids() -> None:
    model = fresh("llama")
    for config in (model.language.config, model.generation_config):
        config.bos_token_id = config.eos_token_id = None
    with pytest.raises(ModelError, match="names no bos_token_id or eos_token_id to start from: give input_ids"):
        model.generate(pixel_values=random_pixels(1), max_new_tokens=2)


# --- Several new tokens behind a cache


@every_language
def test_a_second_turn_goes_on_from_the_cache_of_the_first(language: str) -> None:
    model, pixels, ids = joined(language), random_pixels(2), random_ids(2, 5)
    first = model.generate(input_ids=ids, pixel_values=pixels, return_dict_in_generate=True, **GREEDY)
    second_turn = torch.cat([first.sequences, random_ids(2, 4, seed=8)], 1)
    runs: list[int] = []
    handle = model.get_input_embeddings().register_forward_hook(lambda _, __, output: runs.append(output.shape[1]))
    answers = model.generate(input_ids=second_turn, pixel_values=pixels, past_key_values=first[CACHE_NAME], **GREEDY)
    handle.remove()
    assert runs == [5] + [1] * (NEW - 1)  # the last token of the first answer and the second prompt; then one by one
    for row in range(2):
        alone = decode_by_hand(model, second_turn[row], pixels[row : row + 1])
        assert answers[row, second_turn.shape[1] :].tolist() == alone


@some_languages
def test_a_second_turn_behind_a_padded_first_one(language: str) -> None:
    model, pixels = joined(language), random_pixels(3)
    ids, mask = prompts("left")
    given = {"pixel_values": pixels, **GREEDY}
    first = model.generate(input_ids=ids, attention_mask=mask, return_dict_in_generate=True, **given)
    second_turn = torch.cat([first.sequences, random_ids(3, 4, seed=8)], 1)
    mask = torch.cat([mask, torch.ones(3, NEW + 4, dtype=torch.long)], 1)
    answers = model.generate(input_ids=second_turn, attention_mask=mask, past_key_values=first[CACHE_NAME], **given)
    for row in range(3):
        alone = decode_by_hand(model, second_turn[row][mask[row].bool()], pixels[row : row + 1])
        assert answers[row, second_turn.shape[1] :].tolist() == alone


@some_languages
def test_a_chunk_of_tokens_behind_a_cache_sees_no_future(language: str) -> None:
    model, pixels, ids = joined(language), random_pixels(1), random_ids(1, 9)
    start = model(input_ids=ids[:, :3], pixel_values=pixels, use_cache=True)
    real = torch.ones(1, P, dtype=torch.bool)
    chunk = model(input_ids=ids[:, 3:], past_key_values=start[CACHE_NAME], image_token_mask=real)
    whole = model(input_ids=ids, pixel_values=pixels)
    torch.testing.assert_close(chunk.logits, whole.logits[:, P + 3 :], atol=2e-5, rtol=1e-5)


def test_pads_behind_a_cache_are_refused() -> None:
    model, pixels, ids = joined(), random_pixels(1), random_ids(1, 4)
    first = model.generate(input_ids=ids, pixel_values=pixels, return_dict_in_generate=True, **GREEDY)
    longer = torch.cat([first.sequences, random_ids(1, 3)], 1)
    mask = torch.ones_like(longer)
    mask[0, -1] = 0
    with pytest.raises(ModelError, match="a cache was given: pads may then stand only in front of the whole text"):
        model.generate(
            input_ids=longer, attention_mask=mask, pixel_values=pixels, past_key_values=first[CACHE_NAME], **GREEDY
        )


def test_pads_in_a_chunk_behind_a_cache_are_refused() -> None:
    model, pixels, ids = joined(), random_pixels(2), random_ids(2, 7)
    start = model(input_ids=ids[:, :4], pixel_values=pixels, use_cache=True)
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, 4] = 0
    with pytest.raises(ModelError, match="a cache was given: pads may then stand only in front of the whole text"):
        model(
            input_ids=ids[:, 4:],
            attention_mask=mask,
            past_key_values=start[CACHE_NAME],
            image_token_mask=torch.ones(2, P, dtype=torch.bool),
        )


def test_prompt_lookup_decoding_is_greedy_decoding() -> None:
    model, pixels, ids = joined(), random_pixels(1), random_ids(1, 3).repeat(1, 3)
    settings = {**GREEDY, "max_new_tokens": 16}
    plain = model.generate(input_ids=ids, pixel_values=pixels, **settings)
    looked_up = model.generate(input_ids=ids, pixel_values=pixels, prompt_lookup_num_tokens=3, **settings)
    assert torch.equal(plain, looked_up)


# --- Windows, static caches and lengths


@pytest.mark.parametrize("language", WINDOWED)
@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("where", ["left", "right"])
def test_image_and_text_longer_than_the_window(language: str, cache: str | None, where: str) -> None:
    model, pixels = joined(language), random_pixels(2, 3)  # 15 image tokens, a window of 4
    lengths, ids, mask = (13, 3), torch.full((2, 13), 5), torch.zeros(2, 13, dtype=torch.long)
    for row, length in enumerate(lengths):
        columns = slice(13 - length, 13) if where == "left" else slice(0, length)
        ids[row, columns] = random_ids(length, seed=length)
        mask[row, columns] = 1
    settings = {**GREEDY, "max_new_tokens": 9}
    answers = model.generate(
        input_ids=ids, attention_mask=mask, pixel_values=pixels, cache_implementation=cache, **settings
    )
    for row, length in enumerate(lengths):
        alone = decode_by_hand(model, random_ids(length, seed=length), pixels[row : row + 1], num_new=9)
        assert answers[row, 13:].tolist() == alone


def test_a_static_cache_has_room_for_the_image() -> None:
    model = joined()
    output = model.generate(
        input_ids=random_ids(1, 3),
        pixel_values=random_pixels(1),
        cache_implementation="static",
        return_dict_in_generate=True,
        **GREEDY,
    )
    assert isinstance(output[CACHE_NAME], StaticCache)
    assert output[CACHE_NAME].layers[0].max_cache_len >= P + 3 + NEW - 1


def test_lengths_count_text_tokens_only() -> None:
    model, ids, pixels = joined(), random_ids(1, 3), random_pixels(1)
    settings = {key: value for key, value in GREEDY.items() if key != "max_new_tokens"}
    assert model.generate(input_ids=ids, pixel_values=pixels, max_length=8, **settings).shape == (1, 8)
    assert model.generate(input_ids=ids, pixel_values=pixels, max_new_tokens=4, **settings).shape == (1, 7)


def test_a_row_that_outgrows_the_positions_is_an_error() -> None:
    model, ids = fresh("gpt2"), random_ids(1, 56)  # 5 image tokens, 64 positions
    assert model.generate(input_ids=ids, pixel_values=random_pixels(1), **{**GREEDY, "max_new_tokens": 4}).shape == (
        1,
        60,
    )
    with pytest.raises(ModelError, match=r"a row of 65 positions .* is longer than the 64 positions of gpt2: shorten"):
        model.generate(input_ids=ids, pixel_values=random_pixels(1), **GREEDY)


# --- Manners


def test_stop_tokens_are_taken_over_from_the_language_model() -> None:
    language = bare_language("llama")
    plain = joined().generate(input_ids=random_ids(1, 3), pixel_values=random_pixels(1), **GREEDY)[0, 3:].tolist()
    language.generation_config = GenerationConfig(eos_token_id=[90, plain[2]], pad_token_id=0, bos_token_id=1)
    model = VisionLanguageModel.from_parts(joined().vision, language)
    model.projection.load_state_dict(joined().projection.state_dict())
    answer = model.generate(input_ids=random_ids(1, 3), pixel_values=random_pixels(1), max_new_tokens=NEW)
    assert answer[0, 3:].tolist() == plain[: plain.index(plain[2]) + 1]


def test_the_output_object_holds_whole_sequences_and_scores() -> None:
    model, (ids, mask) = joined(), prompts("right")
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        pixel_values=random_pixels(3),
        return_dict_in_generate=True,
        output_scores=True,
        **GREEDY,
    )
    assert torch.equal(output.sequences[:, :8], ids)
    assert len(output.scores) == NEW
    assert [step.argmax(-1).tolist() for step in output.scores] == output.sequences[:, 8:].T.tolist()


def test_a_mistyped_setting_is_an_error() -> None:
    with pytest.raises(ValueError, match="max_new_tokans"):
        joined().generate(input_ids=random_ids(1, 3), pixel_values=random_pixels(1), max_new_tokans=3)


def test_generation_leaves_no_gradient_and_no_hook() -> None:
    model = fresh()
    with torch.enable_grad():
        answer = model.generate(input_ids=random_ids(1, 3), pixel_values=random_pixels(1), **GREEDY)
    assert not answer.requires_grad
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_generate_ends_at_a_template_s_token_too_here_and_where_the_model_is_saved(tmp_path: Path) -> None:
    model, given = fresh(), {"input_ids": random_ids(1, 3), "pixel_values": random_pixels(1), "do_sample": False}
    plain = model.generate(**given, max_new_tokens=NEW, eos_token_id=None, pad_token_id=0)[0, 3:].tolist()
    own = model.language.generation_config.eos_token_id
    model.stop_also_at(plain[1])
    assert model.generate(**given, max_new_tokens=NEW)[0, 3:].tolist() == plain[: plain.index(plain[1]) + 1]
    assert model.generation_config.eos_token_id == [own, plain[1]]
    assert model.language.generation_config.eos_token_id == own  # the language model's settings stay its own
    model.save_pretrained(tmp_path)
    again = VisionLanguageModel.from_pretrained(tmp_path)
    again.stop_also_at(plain[1])
    assert again.generation_config.eos_token_id == [own, plain[1]]
    again.generation_config.eos_token_id = None
    again.stop_also_at(5)
    assert again.generation_config.eos_token_id == 5
