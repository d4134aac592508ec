"""Answers do not depend on who else is asked, nor on whether the model is in training."""

from typing import Any

import pytest
import torch

from tests.inference.asked import QUESTIONS, Say, ask, picture
from visgraft import Processor, Sample, Turn, VisionLanguageModel
from visgraft.errors import ModelError
from visgraft.inference import answer, answer_each, num_prompt_positions


def test_answers_do_not_depend_on_who_else_is_asked(pair: tuple[VisionLanguageModel, Processor]) -> None:
    samples = [ask(question, images=(picture(seed),)) for seed, question in enumerate(QUESTIONS)]
    samples += [ask("Two of them?", images=(picture(0), picture(1))), ask("And without any image?")]
    alone = [answer(*pair, [sample], max_new_tokens=6)[0] for sample in samples]
    assert len(set(alone)) > 4  # else they could be confused unseen
    assert answer(*pair, samples, max_new_tokens=6) == alone
    assert answer(*pair, samples[::-1], max_new_tokens=6, batch_size=3) == alone[::-1]
    assert answer(*pair, samples, max_new_tokens=6, batch_size=1) == alone


def test_dialogs_of_one_sample_are_answered_in_their_order_behind_one_image(
    pair: tuple[VisionLanguageModel, Processor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = pair
    image = picture(7)
    alone = [answer(model, processor, [ask(question, images=(image,))], max_new_tokens=6)[0] for question in QUESTIONS]
    encoded: list[int] = []
    encode = model.encode_images
    monkeypatch.setattr(
        model, "encode_images", lambda x, **rest: encoded.append(len(x["pixel_values"])) or encode(x, **rest)
    )
    samples = [ask(*QUESTIONS, images=(image,)), ask("What is it?", images=(image,))]
    assert answer(model, processor, samples, max_new_tokens=6, batch_size=4) == [*alone, alone[0]]
    assert encoded == [1]


def test_only_the_last_turn_is_answered_and_its_own_answer_is_ignored(
    pair: tuple[VisionLanguageModel, Processor],
) -> None:
    def chat(first: str, last: str) -> list[str]:
        turns = [Turn("What is it?", first), Turn("Is it red?", last)]
        return answer(*pair, [Sample(images=[picture(0)], dialogs=[turns])], max_new_tokens=6)

    assert chat("A cat.", "") == chat("A cat.", "Yes.")
    assert chat("A cat.", "") != chat("Two dogs on a sofa.", "")


def test_an_answer_is_new_text_without_special_tokens_or_outer_space(
    pair: tuple[VisionLanguageModel, Processor],
) -> None:
    model, processor = pair
    sample = ask("What is it?", images=(picture(0),))
    assert answer(model, processor, [sample], logits_processor=[Say(processor, " a cat ")]) == ["a cat"]


def test_whether_an_answer_stopped_by_itself_is_told_of_each_dialog(
    pair: tuple[VisionLanguageModel, Processor],
) -> None:
    model, processor = pair
    sample = ask("What is it?", images=(picture(0),))
    stopped: list[bool] = []
    answer(model, processor, [sample], logits_processor=[Say(processor, "a cat")], stopped=stopped)
    assert stopped == [True]
    answer(
        model, processor, [sample], logits_processor=[Say(processor, "a cat " * 9)], max_new_tokens=3, stopped=stopped
    )
    assert stopped == [False]
    samples = [ask(question, images=(picture(seed),)) for seed, question in enumerate(QUESTIONS)]
    inputs = processor(text=QUESTIONS[1], images=picture(1))
    third = model.generate(**inputs, max_new_tokens=3, do_sample=False)[0, -1].item()
    own = model.generation_config.eos_token_id
    try:
        model.generation_config.eos_token_id = [third]
        answer(model, processor, samples, max_new_tokens=6, stopped=stopped)
        together = list(stopped)
        for sample, expected in zip(samples, together, strict=True):
            answer(model, processor, [sample], max_new_tokens=6, stopped=stopped)
            assert stopped == [expected]
    finally:
        model.generation_config.eos_token_id = own
    assert together[1]
    assert not all(together)


def test_answers_stop_where_the_language_model_itself_stops(pair: tuple[VisionLanguageModel, Processor]) -> None:
    model, processor = pair
    sample = ask("What is it?", images=(picture(0),))
    [whole] = answer(model, processor, [sample], max_new_tokens=8)
    inputs = processor(text="What is it?", images=picture(0))
    new = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()
    own = model.generation_config.eos_token_id
    try:
        model.generation_config.eos_token_id = [new[3]]
        [cut] = answer(model, processor, [sample], max_new_tokens=8)
    finally:
        model.generation_config.eos_token_id = own
    assert whole.startswith(cut)
    assert cut == processor.tokenizer.decode(new[: new.index(new[3])], skip_special_tokens=True).strip()


def test_settings_of_generate_reach_it_and_greedy_is_the_default(pair: tuple[VisionLanguageModel, Processor]) -> None:
    model, processor = pair
    sample = ask("What is it?", images=(picture(0),))
    greedy = answer(model, processor, [sample], max_new_tokens=8)
    model.generation_config.do_sample, model.generation_config.temperature = True, 9.0
    try:
        assert answer(model, processor, [sample], max_new_tokens=8) == greedy
    finally:
        model.generation_config.do_sample, model.generation_config.temperature = None, None
    torch.manual_seed(0)
    assert answer(model, processor, [sample], max_new_tokens=8, do_sample=True, temperature=9.0) != greedy


def test_a_model_in_training_answers_without_dropout_and_goes_on_training(parts: tuple[str, str]) -> None:
    model, processor = VisionLanguageModel.from_parts(*parts), Processor.from_parts(*parts)
    sample = ask("What is it?", images=(picture(0),))
    expected = answer(model, processor, [sample], max_new_tokens=4)
    assert not model.training
    model.train()
    assert answer(model, processor, [sample], max_new_tokens=4) == expected
    assert model.training
    assert model.projection.training


def test_the_callers_autocast_stays_in_force(pair: tuple[VisionLanguageModel, Processor]) -> None:
    model, processor = pair
    seen: list[torch.dtype] = []
    head = model.language.get_output_embeddings()
    handle = head.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answer(model, processor, [ask("What is it?", images=(picture(0),))], max_new_tokens=2)
    answer(model, processor, [ask("What is it?", images=(picture(0),))], max_new_tokens=2)
    handle.remove()
    assert seen == [torch.bfloat16] * 3 + [torch.float32] * 3  # the image, the prompt, one token


def test_answers_are_cut_where_the_positions_of_the_language_model_end(
    pair: tuple[VisionLanguageModel, Processor],
) -> None:
    model, processor = pair
    assert model.attention_spec.max_positions == 128
    long = ask("cat " * 110, images=(picture(0),))
    left = 128 - num_prompt_positions(model, processor, long)
    assert 0 < left < 16
    short = ask("What is it?", images=(picture(0),))
    alone = [answer(model, processor, [sample], max_new_tokens=16)[0] for sample in (long, short)]
    assert answer(model, processor, [long, short], max_new_tokens=16) == alone
    with pytest.raises(ModelError, match=r"the 128 positions of llama leave no room for an answer; shorten the prompt"):
        answer(model, processor, [ask("cat " * 200, images=(picture(0),))])


@pytest.mark.parametrize("settings", [{}, {"num_beams": 2}])
def test_a_prompt_without_room_for_an_answer_costs_itself_alone(
    settings: dict[str, Any], pair: tuple[VisionLanguageModel, Processor]
) -> None:
    model, processor = pair
    many = tuple(picture(seed) for seed in range(26))  # 130 image tokens
    good = [ask("What is it?", images=(picture(seed),)) for seed in range(3)]
    asked = [good[0], ask("cat " * 200, images=(picture(0),)), good[1], ask("Why?", images=many)]
    asked += [ask("", "a " * 300), good[2]]
    given = [*answer_each(model, processor, asked, max_new_tokens=4, batch_size=4, **settings)]
    assert [each.error is None for each in given] == [True, False, True, False, True, False, True]
    for each in given:
        if each.error is not None:
            assert isinstance(each.error, ModelError)
            assert (each.text, each.token_ids, each.finish) == ("", (), None)
            assert "positions of llama leave no room for an answer; shorten the prompt" in str(each.error)
    alone = [answer(model, processor, [sample], max_new_tokens=4, **settings)[0] for sample in (*good, ask(""))]
    assert [given[place].text for place in (0, 2, 6, 4)] == alone


def test_another_cache_is_refused_as_answers_keep_their_own(pair: tuple[VisionLanguageModel, Processor]) -> None:
    model, processor = pair
    question = ask("What is it?", images=(picture(0),))
    with pytest.raises(
        ModelError, match=r"cache_implementation: got 'static', but answers are made with visgraft's own"
    ):
        answer(model, processor, [question], cache_implementation="static")
    assert answer(model, processor, [question], cache_implementation=None) == answer(model, processor, [question])


def test_a_dialog_without_room_for_an_answer_is_an_answer_with_its_error_and_the_others_go_on(
    pair: tuple[VisionLanguageModel, Processor],
) -> None:
    prompts = ["What is it?", "word " * 400, "Which colour?"]
    samples = [Sample(images=[picture(0)], dialogs=[[Turn(prompt, "")]]) for prompt in prompts]
    alone = answer(*pair, [samples[0], samples[2]], max_new_tokens=4)
    first, second, third = answer_each(*pair, samples, max_new_tokens=4)
    assert [first.text, third.text] == alone
    assert (first.error, third.error) == (None, None)
    assert "leave no room for an answer" in str(second.error)
