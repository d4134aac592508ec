"""An image is read once for all that is asked about it, and what is kept is what computing again would give."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.inference.asked import QUESTIONS, ask, picture
from tests.tiny import randomise
from tests.training.tiny import save_parts
from visgraft import Processor, VisionLanguageModel
from visgraft.errors import BadSampleError, ConfigError, ModelError
from visgraft.inference import PrefixCache, answer, answer_each
from visgraft.inference.prefix_cache import encode_prefixes, open_pixels, read_prefixes

Pair = tuple[VisionLanguageModel, Processor]


@pytest.fixture
def runs(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What the model does: images encoded, images read by the language model."""
    model, _ = pair
    done: list[tuple[str, int]] = []
    encode_images, read_image = model.encode_images, model.read_image
    monkeypatch.setattr(
        model,
        "encode_images",
        lambda x, **rest: done.append(("encode", len(x["pixel_values"]))) or encode_images(x, **rest),
    )
    monkeypatch.setattr(model, "read_image", lambda x, **rest: done.append(("read", len(x))) or read_image(x, **rest))
    return done


def test_a_second_question_finds_the_image_read_and_its_answer_is_the_same(pair: Pair, runs: Any) -> None:
    cache = PrefixCache()
    alone = [answer(*pair, [ask(question, images=(picture(0),))], max_new_tokens=6) for question in QUESTIONS]
    runs.clear()
    kept = [
        answer(*pair, [ask(question, images=(picture(0),))], max_new_tokens=6, prefix_cache=cache)
        for question in QUESTIONS
    ]
    assert kept == alone
    assert runs == [("encode", 1), ("read", 1)]
    assert (cache.num_hits, cache.num_misses, len(cache)) == (len(QUESTIONS) - 1, 1, 1)


def test_an_image_is_known_by_its_pixels_however_it_comes(pair: Pair, runs: Any, tmp_path: Path) -> None:
    cache, path = PrefixCache(), tmp_path / "a.png"
    picture(0).save(path)
    for image in (picture(0), path, str(path), picture(0).copy()):
        answer(*pair, [ask("Why?", images=(image,))], max_new_tokens=2, prefix_cache=cache)
    assert runs == [("encode", 1), ("read", 1)]
    picture(1).save(path)  # another image under the same name
    answer(*pair, [ask("Why?", images=(path,))], max_new_tokens=2, prefix_cache=cache)
    answer(*pair, [ask("Why?", images=(picture(0), picture(1)))], max_new_tokens=2, prefix_cache=cache)
    assert runs[2:] == [("encode", 1), ("read", 1), ("encode", 2), ("read", 1)]
    assert len(cache) == 3


def test_kept_states_are_bit_by_bit_those_computed_anew(pair: Pair) -> None:
    model, processor = pair
    pixels = open_pixels(processor, [picture(3)])
    states = []
    with torch.no_grad():
        for cache in (PrefixCache(), shared := PrefixCache(), shared):
            [prefix] = encode_prefixes(model, [pixels], cache=cache, batch_size=1)
            read_prefixes(model, [prefix], cache=cache)
            assert prefix.states is not None
            states.append(prefix.states)
    assert states[1] is states[2]
    for one, other in zip(states[0].layers, states[2].layers, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


def test_questions_on_few_images_read_each_image_once_however_they_are_batched(pair: Pair, runs: Any) -> None:
    samples = [ask(question, images=(picture(seed),)) for question in QUESTIONS for seed in range(3)]
    expected = [answer(*pair, [sample], max_new_tokens=4)[0] for sample in samples]
    runs.clear()
    assert answer(*pair, samples, max_new_tokens=4, batch_size=4, prefix_cache=PrefixCache()) == expected
    assert sum(number for what, number in runs if what == "read") == 3
    runs.clear()
    assert answer(*pair, samples, max_new_tokens=4, batch_size=4, prefix_cache=PrefixCache(max_bytes=0)) == expected


@pytest.mark.parametrize(
    "settings",
    [{"num_beams": 3}, {"do_sample": True, "top_k": 1}, {"prompt_lookup_num_tokens": 2}, {"use_cache": False}],
    ids=str,
)
def test_every_way_to_decode_gives_what_generate_gives_without_kept_prefixes(pair: Pair, settings: Any) -> None:
    model, processor = pair
    sample = ask("Is it a cat or a dog?", images=(picture(0),))
    inputs = processor(images=picture(0), text="Is it a cat or a dog?")
    length = inputs["input_ids"].shape[1]
    own = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": processor.tokenizer.eos_token_id, **settings}
    torch.manual_seed(0)
    expected = processor.tokenizer.decode(model.generate(**inputs, **own)[0, length:], skip_special_tokens=True).strip()
    for _ in range(2):
        torch.manual_seed(0)
        assert answer(model, processor, [sample], prefix_cache=PrefixCache(), **own) == [expected]


def test_beams_of_several_questions_are_those_of_each_alone(pair: Pair) -> None:
    samples = [ask(*QUESTIONS, images=(picture(0),)), ask(*QUESTIONS[:2], images=(picture(1), picture(2))), ask("Why?")]
    settings = {"max_new_tokens": 5, "num_beams": 3}
    alone = [
        answer(*pair, [ask(dialog[0].prompt, images=sample.images)], **settings)[0]
        for sample in samples
        for dialog in sample.dialogs
    ]
    assert answer(*pair, samples, batch_size=4, **settings) == alone


def test_what_was_used_longest_ago_is_forgotten_when_the_bytes_are_full(pair: Pair, runs: Any) -> None:
    one = PrefixCache()
    answer(*pair, [ask("Why?", images=(picture(0),))], max_new_tokens=2, prefix_cache=one)
    cache = PrefixCache(max_bytes=2 * one.size_bytes)
    for seed in (0, 1, 0, 2):  # 1 was used longest ago when 2 comes
        answer(*pair, [ask("Why?", images=(picture(seed),))], max_new_tokens=2, prefix_cache=cache)
    assert (len(cache), cache.size_bytes) == (2, 2 * one.size_bytes)
    runs.clear()
    for seed in (0, 2):
        answer(*pair, [ask("Why?", images=(picture(seed),))], max_new_tokens=2, prefix_cache=cache)
    assert runs == []
    answer(*pair, [ask("Why?", images=(picture(1),))], max_new_tokens=2, prefix_cache=cache)
    assert runs == [("encode", 1), ("read", 1)]
    cache.clear()
    assert (len(cache), cache.size_bytes) == (0, 0)
    with pytest.raises(ConfigError, match=r"max_bytes: got -1, need 0 \(keep nothing\) or more"):
        PrefixCache(max_bytes=-1)


def test_a_weight_that_changes_makes_the_cache_forget(tmp_path: Path) -> None:
    parts = save_parts(tmp_path)
    model, processor = VisionLanguageModel.from_parts(*parts), Processor.from_parts(*parts)
    randomise(model.projection, seed=1)
    cache, sample = PrefixCache(), [ask("Why?", images=(picture(0),))]

    def misses() -> int:
        before = cache.num_misses
        assert answer(model, processor, sample, max_new_tokens=4, prefix_cache=cache) == answer(
            model, processor, sample, max_new_tokens=4
        )
        return cache.num_misses - before

    assert [misses(), misses()] == [1, 0]
    optimizer = torch.optim.SGD(model.projection.parameters(), lr=1.0)
    for parameter in model.projection.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert [misses(), misses()] == [1, 0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert [misses(), misses()] == [1, 0]
    other = VisionLanguageModel.from_parts(*parts)
    answer(other, processor, sample, max_new_tokens=2, prefix_cache=cache)
    assert [misses(), misses()] == [1, 0]


def test_a_bad_image_spoils_its_own_sample_alone(pair: Pair) -> None:
    samples = [ask("Why?", images=(picture(0),)), ask("Why?", "What?", images=("nowhere.png",)), ask("Is it red?")]
    answers = list(answer_each(*pair, samples, max_new_tokens=4))
    assert [str(answered.error) if answered.error else "" for answered in answers] == [
        "",
        "image file is missing",
        "image file is missing",
        "",
    ]
    assert answers[0].text == answer(*pair, samples[:1], max_new_tokens=4)[0]
    assert answers[3].text == answer(*pair, samples[2:], max_new_tokens=4)[0]
    with pytest.raises(BadSampleError, match="image file is missing"):
        answer(*pair, samples, max_new_tokens=4)


def test_answers_of_any_number_of_samples_come_as_they_are_ready(pair: Pair) -> None:
    opened = []

    def samples() -> Any:
        for seed in range(40):
            opened.append(seed)
            yield ask("Why?", images=(picture(seed % 3),))

    stream = answer_each(*pair, samples(), max_new_tokens=2, batch_size=2)
    next(stream)
    assert len(opened) <= 24  # what is answered, what is ready behind it, and one that is being opened
    assert len(list(stream)) == 39
    [too_long] = answer_each(*pair, [ask("cat " * 200)])
    assert isinstance(too_long.error, ModelError)
